//! Rows of A with rows of B.

use pulp::{Simd, WithSimd};

use super::tiles::{Tile, Tiled, begin, compute_tiles, load, store};
use super::{Right, Rows, dispatch, farthest};

/// Rows of C from which on [`Rows`] has B packed: each panel is then read by eight tiles or more.
const N_ROWS_PACKED_MIN: usize = 64;

impl Rows<'_> {
    /// Computes it.
    ///
    /// # Panics
    /// If an operand is too short.
    pub fn compute(self) {
        let (m, k, n) = (self.a_rows.len(), self.run * self.a_runs.len(), self.b.n_columns());
        assert_eq!(m, self.c_rows.len(), "A and C have the same rows");
        if m == 0 || n == 0 {
            return;
        }
        assert!(k > 0, "a product has an inner dimension");
        assert!(self.a_rows.farthest + farthest(self.a_runs) + self.run <= self.a.len(), "A holds its rows");
        match self.b {
            Right::Matrix(values, _) => assert!(k * n <= values.len(), "B holds its rows"),
            Right::Panels(panels) => assert_eq!(k, panels.n_places, "B holds its rows"),
        }
        assert!(self.c_rows.farthest + n <= self.c.len(), "C holds its rows");
        dispatch(n, self);
    }
}

impl Tiled for Rows<'_> {
    fn size(&self) -> [usize; 3] {
        [self.a_rows.len(), self.b.n_columns(), self.run * self.a_runs.len()]
    }

    fn is_worth_packing(&self) -> bool {
        matches!(self.b, Right::Matrix(..)) && self.a_rows.len() >= N_ROWS_PACKED_MIN
    }

    fn row_of_b(&self, place: usize) -> &[f32] {
        match self.b {
            Right::Matrix(values, n) => &values[place * n..][..n],
            Right::Panels(_) => unreachable!("what is packed is not packed again"),
        }
    }

    #[inline(always)]
    fn panel<S: Simd>(&self, first: usize, width: usize) -> Option<&[f32]> {
        match self.b {
            Right::Matrix(..) => None,
            Right::Panels(panels) => Some(panels.panel::<S>(first, width)),
        }
    }

    #[inline(always)]
    #[expect(unsafe_code, reason = "bounds are checked once for all tiles, in `compute`")]
    unsafe fn tile<S: Simd, const MR: usize, const NV: usize, const CUT: bool>(&self, simd: S, tile: &Tile<S>) {
        let row_of = |i: usize| (tile.row + i).min(self.a_rows.len() - 1);
        let edge = tile.edge;
        // SAFETY: every row is one of `a_rows` and `c_rows`, every place within it below `run` or `n`, and `compute` has
        // checked that A, B and C hold those. A packed B has as many rows, of whole vectors. C is `self`'s alone.
        unsafe {
            let a: [*const f32; MR] = std::array::from_fn(|i| self.a.as_ptr().add(self.a_rows[row_of(i)]));
            let c: [*mut f32; MR] = std::array::from_fn(|i| tile.c.add(self.c_rows[row_of(i)] + tile.first));
            let (mut b, b_stride) = match (&tile.packed, self.b) {
                (Some(packed), _) => (packed.b.as_ptr(), NV * S::F32_LANES),
                (None, Right::Matrix(values, n)) => (values.as_ptr().add(tile.first), n),
                (None, Right::Panels(_)) => unreachable!("a tile is given its panel"),
            };
            let mut sums = begin::<S, MR, NV, CUT>(simd, edge, self.accumulate, c);
            for &start in self.a_runs {
                for k in start..start + self.run {
                    let row: [S::f32s; NV] = load::<S, NV, CUT>(simd, edge, b);
                    for (sums, a) in sums.iter_mut().zip(a) {
                        let factor = simd.splat_f32s(*a.add(k));
                        for (sum, value) in sums.iter_mut().zip(row) {
                            *sum = simd.mul_add_e_f32s(factor, value, *sum);
                        }
                    }
                    b = b.add(b_stride);
                }
            }
            store::<S, MR, NV, CUT>(simd, edge, sums, c);
        }
    }
}

impl WithSimd for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let c = self.c.as_mut_ptr();
        compute_tiles(&self, simd, c);
    }
}
