//! Columns of A with rows of B.

use pulp::{Simd, WithSimd};

use super::tiles::{Edge, HEIGHT_MAX, Tile, Tiled, begin, compute_tiles, load, store, tiles};
use super::{Accumulate, Outer, dispatch};
use crate::layers::fused::buffers::Buffer;

/// Rows of C from which on [`Outer`] may have its operands packed.
const N_ROWS_PACKED_MIN: usize = 24;
/// Places of the inner dimension from which on [`Outer`] may have its operands packed: with each in a page of its own, more than
/// a CPU knows the addresses of at once (64 on Intel's Skylake, for example).
const N_PLACES_PACKED_MIN: usize = 33;
/// Places of the inner dimension that [`Outer`] takes at once: what of both operands belongs to them stays in the second cache.
const N_PLACES_MAX: usize = 128;

impl Outer<'_> {
    /// Computes it.
    ///
    /// # Panics
    /// If an operand is too short.
    pub fn compute(self) {
        assert_eq!(self.a_rows.len(), self.b_rows.len(), "A and B have the same inner dimension");
        if self.m == 0 || self.n == 0 {
            return;
        }
        if !self.a_rows.is_empty() {
            assert!(self.a_rows.farthest + self.m <= self.a.len(), "A holds its rows");
            assert!(self.b_rows.farthest + self.n <= self.b.len(), "B holds its rows");
        }
        assert!((self.m - 1) * self.c_stride + self.n <= self.c.len(), "C holds its rows");
        let Self { a, m, b, n, c_stride, .. } = self;
        // One block after the other, so that the order of a sum is that of the inner dimension. Without places, zeros.
        for first in (0..self.a_rows.len().max(1)).step_by(N_PLACES_MAX) {
            let places = first..self.a_rows.len().min(first + N_PLACES_MAX);
            let (a_rows, b_rows) = (&self.a_rows[places.clone()], &self.b_rows[places]);
            let accumulate = if first == 0 { self.accumulate } else { Accumulate::Add };
            dispatch(n, OuterBlock { a, a_rows, m, b, b_rows, n, c: self.c, c_stride, accumulate });
        }
    }
}

/// An [`Outer`] over some of the places of its inner dimension, which holds its bounds.
struct OuterBlock<'a> {
    a: &'a [f32],
    a_rows: &'a [usize],
    m: usize,
    b: &'a [f32],
    b_rows: &'a [usize],
    n: usize,
    c: &'a mut [f32],
    c_stride: usize,
    accumulate: Accumulate,
}

impl OuterBlock<'_> {
    /// Copies the factors of `MR` rows, whose number is known when this is compiled: not value by value.
    fn pack_rows<const MR: usize>(&self, row: usize, into: &mut [f32]) {
        for (into, &start) in into.as_chunks_mut::<MR>().0.iter_mut().zip(self.a_rows) {
            into.copy_from_slice(&self.a[start + row..][..MR]);
        }
    }
}

impl Tiled for OuterBlock<'_> {
    fn size(&self) -> [usize; 3] {
        [self.m, self.n, self.a_rows.len()]
    }

    fn is_worth_packing(&self) -> bool {
        self.m >= N_ROWS_PACKED_MIN && self.a_rows.len() >= N_PLACES_PACKED_MIN
    }

    fn row_of_b(&self, place: usize) -> &[f32] {
        &self.b[self.b_rows[place]..][..self.n]
    }

    fn packed_a<S: Simd>(&self, n_vectors: usize) -> Option<Buffer> {
        let depth = self.a_rows.len();
        let mut packed = Buffer::new((self.m + HEIGHT_MAX) * depth);
        for (row, height) in tiles::<S>(self.m, n_vectors) {
            let into = &mut packed[row * depth..][..height * depth];
            match height {
                _ if row + height > self.m => {
                    for (into, &start) in into.chunks_exact_mut(height).zip(self.a_rows) {
                        for (i, into) in into.iter_mut().enumerate() {
                            *into = self.a[start + (row + i).min(self.m - 1)]; // a row beyond the last one is that one again
                        }
                    }
                }
                HEIGHT_MAX => self.pack_rows::<HEIGHT_MAX>(row, into),
                6 => self.pack_rows::<6>(row, into),
                4 => self.pack_rows::<4>(row, into),
                _ => unreachable!("there is no tile of {height} rows"),
            }
        }
        Some(packed)
    }

    #[inline(always)]
    #[expect(unsafe_code, reason = "bounds are checked once for all tiles, in `compute`")]
    unsafe fn tile<S: Simd, const MR: usize, const NV: usize, const CUT: bool>(&self, simd: S, tile: &Tile<S>) {
        let row_of = |i: usize| (tile.row + i).min(self.m - 1);
        let (edge, depth) = (tile.edge, self.a_rows.len());
        // SAFETY: every row is below `m`, every column below `n`, and `compute` has checked that A, B and C hold those. What is
        // packed has as many places, of `MR` values and of whole vectors. C is `self`'s alone.
        unsafe {
            let c: [*mut f32; MR] = std::array::from_fn(|i| tile.c.add(row_of(i) * self.c_stride + tile.first));
            let mut sums = begin::<S, MR, NV, CUT>(simd, edge, self.accumulate, c);
            let (a, b) = (self.a.as_ptr(), self.b.as_ptr().add(tile.first));
            if let Some(packed) = &tile.packed {
                let (a, b) = (packed.a.as_ptr().add(tile.row * depth), packed.b.as_ptr());
                for place in 0..depth {
                    let b = b.add(place * NV * S::F32_LANES);
                    add_place::<S, MR, NV, CUT>(simd, edge, &mut sums, a.add(place * MR), |i| i, b);
                }
            } else if tile.row + MR <= self.m {
                // Rows that are known to lie side by side need no address each.
                for (&a_row, &b_row) in self.a_rows.iter().zip(self.b_rows.iter()) {
                    add_place::<S, MR, NV, CUT>(simd, edge, &mut sums, a.add(a_row + tile.row), |i| i, b.add(b_row));
                }
            } else {
                for (&a_row, &b_row) in self.a_rows.iter().zip(self.b_rows.iter()) {
                    add_place::<S, MR, NV, CUT>(simd, edge, &mut sums, a.add(a_row), row_of, b.add(b_row));
                }
            }
            store::<S, MR, NV, CUT>(simd, edge, sums, c);
        }
    }
}

/// Adds one place of the inner dimension to a tile's sums: `a_rows` says how far from `a` each row's factor lies.
///
/// # Safety
/// Those places have to be readable.
#[inline(always)]
#[expect(unsafe_code, reason = "the caller has checked the bounds of all tiles")]
unsafe fn add_place<S: Simd, const MR: usize, const NV: usize, const CUT: bool>(
    simd: S,
    edge: Edge<S>,
    sums: &mut [[S::f32s; NV]; MR],
    a: *const f32,
    row_of: impl Fn(usize) -> usize,
    b: *const f32,
) {
    // SAFETY: as the caller promises.
    unsafe {
        let values: [S::f32s; NV] = load::<S, NV, CUT>(simd, edge, b);
        for (i, sums) in sums.iter_mut().enumerate() {
            let factor = simd.splat_f32s(*a.add(row_of(i)));
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum = simd.mul_add_e_f32s(factor, value, *sum);
            }
        }
    }
}

impl WithSimd for OuterBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let c = self.c.as_mut_ptr();
        compute_tiles(&self, simd, c);
    }
}
