//! Products of small matrices, without packing and without copies of transposed operands: a tile of sums stays in registers
//! over the whole inner dimension, and each operand is read as it lies. There are three forms, by which operand lies how:
//! [`Rows`] (rows of A, rows of B), [`Outer`] (columns of A, rows of B) and [`Dots`] (rows of A, columns of B).
//!
//! Each sum is taken in the order of the inner dimension, in [`Dots`] as many side by side as a vector has lanes, so that a
//! result depends on the operands and the CPU's vector width alone.

use std::ops::Deref;

use pulp::{Arch, MemMask, Simd, WithSimd};

/// What becomes of the values that a product's place holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onto {
    /// They are overwritten.
    Nothing,
    /// The product is added to them.
    Values,
}

/// `C[i, j] (+)= Σ over r, k of A[a_rows[i] + a_runs[r] + k] · B[(r · run + k) · b_stride + j]`, C's row i beginning at
/// `c_rows[i]`. The inner dimension is cut into runs that are contiguous in A: one for a matrix, one for each row of the
/// window for a convolution.
#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "the rows of three matrices")]
pub struct Rows<'a> {
    /// Values of A.
    pub a: &'a [f32],
    /// Where each row of A begins.
    pub a_rows: &'a Places,
    /// Where each run lies, from a row's beginning.
    pub a_runs: &'a [usize],
    /// Length of a run.
    pub run: usize,
    /// Values of B: [runs · run, `b_stride`].
    pub b: &'a [f32],
    /// From one row of B to the next.
    pub b_stride: usize,
    /// Columns of B and C.
    pub n: usize,
    /// Values of C.
    pub c: &'a mut [f32],
    /// Where each row of C begins.
    pub c_rows: &'a Places,
    /// What C holds before.
    pub onto: Onto,
}

/// `C[i, j] (+)= Σ over p of A[a_rows[p] + i] · B[b_rows[p] + j]`.
#[derive(Debug)]
pub struct Outer<'a> {
    /// Values of A.
    pub a: &'a [f32],
    /// Where each place of the inner dimension begins in A.
    pub a_rows: &'a Places,
    /// Rows of C.
    pub m: usize,
    /// Values of B.
    pub b: &'a [f32],
    /// Where each place of the inner dimension begins in B.
    pub b_rows: &'a Places,
    /// Columns of C.
    pub n: usize,
    /// Values of C.
    pub c: &'a mut [f32],
    /// From one row of C to the next.
    pub c_stride: usize,
    /// What C holds before.
    pub onto: Onto,
}

/// `C[i, j] = Σ over k of A[i · a_stride + k] · B[j · b_stride + k]`.
#[derive(Debug)]
pub struct Dots<'a> {
    /// Values of A.
    pub a: &'a [f32],
    /// From one row of A to the next.
    pub a_stride: usize,
    /// Rows of A and C.
    pub m: usize,
    /// Values of B.
    pub b: &'a [f32],
    /// From one row of B to the next.
    pub b_stride: usize,
    /// Rows of B, columns of C.
    pub n: usize,
    /// The inner dimension.
    pub k: usize,
    /// Values of C.
    pub c: &'a mut [f32],
    /// From one row of C to the next.
    pub c_stride: usize,
}

/// Where rows begin. The farthest is known, since a product's bounds are checked each time that it is computed, and an LSTM
/// computes the same ones at each step.
#[derive(Debug, Default)]
pub struct Places {
    starts: Vec<usize>,
    farthest: usize,
}

impl FromIterator<usize> for Places {
    fn from_iter<I: IntoIterator<Item = usize>>(starts: I) -> Self {
        let starts: Vec<usize> = starts.into_iter().collect();
        let farthest = farthest(&starts);
        Self { starts, farthest }
    }
}

impl Deref for Places {
    type Target = [usize];

    fn deref(&self) -> &[usize] {
        &self.starts
    }
}

/// Where the rows of a matrix begin that lies as it is.
pub fn rows(n_rows: usize, stride: usize) -> Places {
    (0..n_rows).map(|row| row * stride).collect()
}

fn farthest(places: &[usize]) -> usize {
    places.iter().copied().max().unwrap_or(0)
}

/// Computes with vectors as wide as the CPU has, or half as wide where those hold all columns: a wide one that is cut has to
/// be masked with each value of the inner dimension. Sums are taken lane by lane, so that both give the same bits.
fn dispatch(n_columns: usize, product: impl WithSimd) {
    #[cfg(target_arch = "x86_64")]
    if n_columns <= <pulp::x86::V3 as Simd>::F32_LANES
        && let Some(simd) = pulp::x86::V3::try_new()
    {
        Simd::vectorize(simd, product);
        return;
    }
    Arch::new().dispatch(product);
}

impl Rows<'_> {
    /// Computes it.
    ///
    /// # Panics
    /// If an operand is too short.
    pub fn compute(self) {
        let (m, k) = (self.a_rows.len(), self.run * self.a_runs.len());
        assert_eq!(m, self.c_rows.len(), "A and C have the same rows");
        if m == 0 || self.n == 0 {
            return;
        }
        assert!(k > 0, "a product has an inner dimension");
        assert!(self.a_rows.farthest + farthest(self.a_runs) + self.run <= self.a.len(), "A holds its rows");
        assert!((k - 1) * self.b_stride + self.n <= self.b.len(), "B holds its rows");
        assert!(self.c_rows.farthest + self.n <= self.c.len(), "C holds its rows");
        dispatch(self.n, self);
    }
}

impl Tiled for Rows<'_> {
    fn size(&self) -> [usize; 2] {
        [self.a_rows.len(), self.n]
    }

    #[inline(always)]
    #[expect(unsafe_code, reason = "bounds are checked once for all tiles, in `compute`")]
    fn tile<S: Simd, const MR: usize, const NV: usize, const CUT: bool>(
        &self,
        simd: S,
        edge: Edge<S>,
        c: *mut f32,
        first: usize,
        first_row: usize,
    ) {
        let row_of = |i: usize| (first_row + i).min(self.a_rows.len() - 1);
        // SAFETY: every row is one of `a_rows` and `c_rows`, every place within it below `run` or `n`, and `compute` has
        // checked that A, B and C hold those. `c` is C's pointer, which `self` alone may use.
        unsafe {
            let a: [*const f32; MR] = std::array::from_fn(|i| self.a.as_ptr().add(self.a_rows[row_of(i)]));
            let c: [*mut f32; MR] = std::array::from_fn(|i| c.add(self.c_rows[row_of(i)] + first));
            let mut sums = begin::<S, MR, NV, CUT>(simd, edge, self.onto, c);
            let mut b = self.b.as_ptr().add(first);
            for &start in self.a_runs {
                for k in start..start + self.run {
                    let row: [S::f32s; NV] = load::<S, NV, CUT>(simd, edge, b);
                    for (sums, a) in sums.iter_mut().zip(a) {
                        let factor = simd.splat_f32s(*a.add(k));
                        for (sum, value) in sums.iter_mut().zip(row) {
                            *sum = simd.mul_add_e_f32s(factor, value, *sum);
                        }
                    }
                    b = b.add(self.b_stride);
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
        dispatch(self.n, self);
    }
}

impl Tiled for Outer<'_> {
    fn size(&self) -> [usize; 2] {
        [self.m, self.n]
    }

    #[inline(always)]
    #[expect(unsafe_code, reason = "bounds are checked once for all tiles, in `compute`")]
    fn tile<S: Simd, const MR: usize, const NV: usize, const CUT: bool>(
        &self,
        simd: S,
        edge: Edge<S>,
        c: *mut f32,
        first: usize,
        first_row: usize,
    ) {
        let row_of = |i: usize| (first_row + i).min(self.m - 1);
        // SAFETY: every row is below `m`, every column below `n`, and `compute` has checked that A, B and C hold those. `c`
        // is C's pointer, which `self` alone may use.
        unsafe {
            let c: [*mut f32; MR] = std::array::from_fn(|i| c.add(row_of(i) * self.c_stride + first));
            let mut sums = begin::<S, MR, NV, CUT>(simd, edge, self.onto, c);
            // Rows that are known to lie side by side need no address each.
            if first_row + MR <= self.m {
                self.add_places::<S, MR, NV, CUT>(simd, edge, first, &mut sums, |i| first_row + i);
            } else {
                self.add_places::<S, MR, NV, CUT>(simd, edge, first, &mut sums, row_of);
            }
            store::<S, MR, NV, CUT>(simd, edge, sums, c);
        }
    }
}

impl Outer<'_> {
    /// Adds all places of the inner dimension to a tile's sums.
    ///
    /// # Safety
    /// Rows have to be below `m`, and columns from `first` on as `edge` says below `n`.
    #[inline(always)]
    #[expect(unsafe_code, reason = "bounds are checked once for all tiles, in `compute`")]
    unsafe fn add_places<S: Simd, const MR: usize, const NV: usize, const CUT: bool>(
        &self,
        simd: S,
        edge: Edge<S>,
        first: usize,
        sums: &mut [[S::f32s; NV]; MR],
        row_of: impl Fn(usize) -> usize,
    ) {
        let mut added = *sums;
        // SAFETY: as the caller promises, and `compute` has checked that A and B hold those.
        unsafe {
            let (a, b) = (self.a.as_ptr(), self.b.as_ptr().add(first));
            for (&a_row, &b_row) in self.a_rows.iter().zip(self.b_rows.iter()) {
                let values: [S::f32s; NV] = load::<S, NV, CUT>(simd, edge, b.add(b_row));
                let a = a.add(a_row);
                for (i, sums) in added.iter_mut().enumerate() {
                    let factor = simd.splat_f32s(*a.add(row_of(i)));
                    for (sum, value) in sums.iter_mut().zip(values) {
                        *sum = simd.mul_add_e_f32s(factor, value, *sum);
                    }
                }
            }
        }
        *sums = added;
    }
}

impl WithSimd for Outer<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let c = self.c.as_mut_ptr();
        compute_tiles(&self, simd, c);
    }
}

impl Dots<'_> {
    /// Computes it.
    ///
    /// # Panics
    /// If an operand is too short.
    pub fn compute(self) {
        if self.m == 0 || self.n == 0 {
            return;
        }
        assert!((self.m - 1) * self.a_stride + self.k <= self.a.len(), "A holds its rows");
        assert!((self.n - 1) * self.b_stride + self.k <= self.b.len(), "B holds its rows");
        assert!((self.m - 1) * self.c_stride + self.n <= self.c.len(), "C holds its rows");
        Arch::new().dispatch(self);
    }

    #[inline(always)]
    #[expect(unsafe_code, reason = "bounds are checked once for all tiles, in `compute`")]
    fn tile<S: Simd, const MR: usize, const NR: usize>(
        &self,
        simd: S,
        c: *mut f32,
        first_row: usize,
        first_column: usize,
    ) {
        let row: [usize; MR] = std::array::from_fn(|i| (first_row + i).min(self.m - 1));
        let column: [usize; NR] = std::array::from_fn(|j| (first_column + j).min(self.n - 1));
        let (n_whole, n_rest) = (self.k / S::F32_LANES, self.k % S::F32_LANES);
        // SAFETY: every row is below `m`, every column below `n`, every place below `k`, and `compute` has checked that A, B
        // and C hold those. `c` is C's pointer, which `self` alone may use.
        unsafe {
            let a: [*const f32; MR] = std::array::from_fn(|i| self.a.as_ptr().add(row[i] * self.a_stride));
            let b: [*const f32; NR] = std::array::from_fn(|j| self.b.as_ptr().add(column[j] * self.b_stride));
            let mut sums = [[simd.splat_f32s(0.0); NR]; MR];
            for vector in 0..n_whole {
                let place = vector * S::F32_LANES;
                let values: [S::f32s; NR] = std::array::from_fn(|j| b[j].add(place).cast::<S::f32s>().read_unaligned());
                for (sums, a) in sums.iter_mut().zip(a) {
                    let factor = a.add(place).cast::<S::f32s>().read_unaligned();
                    for (sum, value) in sums.iter_mut().zip(values) {
                        *sum = simd.mul_add_e_f32s(factor, value, *sum);
                    }
                }
            }
            if n_rest > 0 {
                let (edge, place) = (Edge::new(simd, n_rest, 1), n_whole * S::F32_LANES);
                let values: [S::f32s; NR] =
                    std::array::from_fn(|j| simd.mask_load_ptr_f32s(edge.mask, b[j].add(place)));
                for (sums, a) in sums.iter_mut().zip(a) {
                    let factor = simd.mask_load_ptr_f32s(edge.mask, a.add(place));
                    for (sum, value) in sums.iter_mut().zip(values) {
                        *sum = simd.mul_add_e_f32s(factor, value, *sum);
                    }
                }
            }
            for (sums, row) in sums.into_iter().zip(row) {
                for (sum, column) in sums.into_iter().zip(column) {
                    *c.add(row * self.c_stride + column) = simd.reduce_sum_f32s(sum);
                }
            }
        }
    }
}

impl WithSimd for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        const HEIGHT: usize = 4;
        const WIDTH: usize = 3;
        let c = self.c.as_mut_ptr();
        // The operand with more rows is gone through once, the other one for each of its tiles, from a nearer cache.
        if self.m > self.n {
            for row in (0..self.m).step_by(HEIGHT) {
                for column in (0..self.n).step_by(WIDTH) {
                    self.tile::<S, HEIGHT, WIDTH>(simd, c, row, column);
                }
            }
        } else {
            for column in (0..self.n).step_by(WIDTH) {
                for row in (0..self.m).step_by(HEIGHT) {
                    self.tile::<S, HEIGHT, WIDTH>(simd, c, row, column);
                }
            }
        }
    }
}

/// A product that is computed in tiles of rows and vectors of columns.
trait Tiled {
    /// Rows and columns of C.
    fn size(&self) -> [usize; 2];

    /// Computes `MR` rows from `first_row` on and `NV` vectors of columns from `first` on; the last vector is `CUT` where C's
    /// rows end in it. Rows beyond the last one are that one again.
    fn tile<S: Simd, const MR: usize, const NV: usize, const CUT: bool>(
        &self,
        simd: S,
        edge: Edge<S>,
        c: *mut f32,
        first: usize,
        first_row: usize,
    );
}

/// Goes through all tiles: pairs of vectors, and the one that may be left.
#[inline(always)]
fn compute_tiles<S: Simd>(product: &impl Tiled, simd: S, c: *mut f32) {
    let [_, n_columns] = product.size();
    for first in (0..n_columns).step_by(2 * S::F32_LANES) {
        if n_columns - first > S::F32_LANES {
            compute_columns::<S, 2>(product, simd, c, first);
        } else {
            compute_columns::<S, 1>(product, simd, c, first);
        }
    }
}

/// Cuts rows into tiles, so that as few as can be hang over the end: of six and four rows, or of eight and four where there is
/// one vector, since eight sums at once keep both multipliers of a core busy.
#[inline(always)]
fn compute_columns<S: Simd, const NV: usize>(product: &impl Tiled, simd: S, c: *mut f32, first: usize) {
    let [n_rows, n_columns] = product.size();
    let edge = Edge::new(simd, n_columns - first, NV);
    let mut row = 0;
    while row < n_rows {
        let n_left = n_rows - row;
        let height = match NV {
            1 if n_left > 4 => 8,
            2 if !matches!(n_left, 1..=4 | 7 | 8) => 6, // 8: 4 + 4
            _ => 4,
        };
        match (height, edge.is_whole) {
            (8, true) => product.tile::<S, 8, NV, false>(simd, edge, c, first, row),
            (8, false) => product.tile::<S, 8, NV, true>(simd, edge, c, first, row),
            (6, true) => product.tile::<S, 6, NV, false>(simd, edge, c, first, row),
            (6, false) => product.tile::<S, 6, NV, true>(simd, edge, c, first, row),
            (_, true) => product.tile::<S, 4, NV, false>(simd, edge, c, first, row),
            (_, false) => product.tile::<S, 4, NV, true>(simd, edge, c, first, row),
        }
        row += height;
    }
}

/// The end of a row that is no whole number of vectors.
#[derive(Clone, Copy)]
struct Edge<S: Simd> {
    is_whole: bool,
    /// Which lanes of the last vector there are.
    mask: MemMask<S::m32s>,
}

impl<S: Simd> Edge<S> {
    /// For the last of `n_vectors` vectors, where `n_left` values are left.
    #[inline(always)]
    fn new(simd: S, n_left: usize, n_vectors: usize) -> Self {
        let n_last = n_left.min(n_vectors * S::F32_LANES) - (n_vectors - 1) * S::F32_LANES;
        let end = u32::try_from(n_last).expect("a vector has few lanes");
        Self { is_whole: n_last == S::F32_LANES, mask: simd.mask_between_m32s(0, end) }
    }
}

/// Reads `NV` vectors, of the last one the lanes that there are.
///
/// # Safety
/// Those places have to be readable.
#[inline(always)]
#[expect(unsafe_code, reason = "the caller has checked the bounds of all tiles")]
unsafe fn load<S: Simd, const NV: usize, const CUT: bool>(simd: S, edge: Edge<S>, at: *const f32) -> [S::f32s; NV] {
    let mut values = [simd.splat_f32s(0.0); NV];
    for (v, value) in values.iter_mut().enumerate() {
        // SAFETY: as the caller promises.
        *value = unsafe {
            let at = at.add(v * S::F32_LANES);
            if CUT && v + 1 == NV {
                simd.mask_load_ptr_f32s(edge.mask, at)
            } else {
                at.cast::<S::f32s>().read_unaligned()
            }
        };
    }
    values
}

/// The sums to begin with.
///
/// # Safety
/// The places of the tile have to be readable.
#[inline(always)]
#[expect(unsafe_code, reason = "the caller has checked the bounds of all tiles")]
unsafe fn begin<S: Simd, const MR: usize, const NV: usize, const CUT: bool>(
    simd: S,
    edge: Edge<S>,
    onto: Onto,
    c: [*mut f32; MR],
) -> [[S::f32s; NV]; MR] {
    let mut sums = [[simd.splat_f32s(0.0); NV]; MR];
    if onto == Onto::Values {
        for (sums, row) in sums.iter_mut().zip(c) {
            // SAFETY: as the caller promises.
            *sums = unsafe { load::<S, NV, CUT>(simd, edge, row) };
        }
    }
    sums
}

/// Writes the sums of a tile. All were read before, so that a row that is computed twice gets the same values twice.
///
/// # Safety
/// The places of the tile have to be writable.
#[inline(always)]
#[expect(unsafe_code, reason = "the caller has checked the bounds of all tiles")]
unsafe fn store<S: Simd, const MR: usize, const NV: usize, const CUT: bool>(
    simd: S,
    edge: Edge<S>,
    sums: [[S::f32s; NV]; MR],
    c: [*mut f32; MR],
) {
    for (sums, row) in sums.into_iter().zip(c) {
        for (v, sum) in sums.into_iter().enumerate() {
            // SAFETY: as the caller promises.
            unsafe {
                let at = row.add(v * S::F32_LANES);
                if CUT && v + 1 == NV {
                    simd.mask_store_ptr_f32s(edge.mask, at, sum);
                } else {
                    at.cast::<S::f32s>().write_unaligned(sum);
                }
            }
        }
    }
}
