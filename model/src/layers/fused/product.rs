//! Products of small matrices, without copies of transposed operands: a tile of sums stays in registers over the whole inner
//! dimension, and each operand is read as it lies, or packed where its rows lie so far apart that caches and the page table
//! suffer. There are three forms, by which operand lies how: [`Rows`] (rows of A, rows of B), [`Outer`] (columns of A, rows of
//! B) and [`Dots`] (rows of A, columns of B).
//!
//! Each sum is taken in the order of the inner dimension, in [`Dots`] as many side by side as a vector has lanes, so that a
//! result depends on the operands and the CPU's vector width alone, and on no tile, order or packing.

use std::ops::Deref;

use pulp::{Arch, MemMask, Simd, WithSimd};

use super::buffers::Buffer;

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
    if (n_columns <= <pulp::x86::V3 as Simd>::F32_LANES || takes_half_vectors())
        && let Some(simd) = pulp::x86::V3::try_new()
    {
        Simd::vectorize(simd, product);
        return;
    }
    Arch::new().dispatch(product);
}

#[cfg(test)]
thread_local! {
    /// Whether products are computed as on a CPU that has only vectors half as wide.
    pub static HALF_VECTORS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

#[cfg(target_arch = "x86_64")]
fn takes_half_vectors() -> bool {
    #[cfg(test)]
    return HALF_VECTORS.get();
    #[cfg(not(test))]
    false
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
    fn size(&self) -> [usize; 3] {
        [self.a_rows.len(), self.n, self.run * self.a_runs.len()]
    }

    fn is_worth_packing(&self) -> bool {
        self.a_rows.len() >= N_ROWS_PACKED_MIN
    }

    fn row_of_b(&self, place: usize) -> &[f32] {
        &self.b[place * self.b_stride..][..self.n]
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
            let (mut b, b_stride) = match &tile.packed {
                Some(packed) => (packed.b.as_ptr(), NV * S::F32_LANES),
                None => (self.b.as_ptr().add(tile.first), self.b_stride),
            };
            let mut sums = begin::<S, MR, NV, CUT>(simd, edge, self.onto, c);
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
            let onto = if first == 0 { self.onto } else { Onto::Values };
            dispatch(n, OuterBlock { a, a_rows, m, b, b_rows, n, c: self.c, c_stride, onto });
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
    onto: Onto,
}

impl Tiled for OuterBlock<'_> {
    fn size(&self) -> [usize; 3] {
        [self.m, self.n, self.a_rows.len()]
    }

    fn is_worth_packing(&self) -> bool {
        self.m >= N_OUTER_ROWS_PACKED_MIN && self.a_rows.len() >= N_PLACES_PACKED_MIN
    }

    fn row_of_b(&self, place: usize) -> &[f32] {
        &self.b[self.b_rows[place]..][..self.n]
    }

    fn packed_a<S: Simd>(&self, n_vectors: usize) -> Option<Buffer> {
        let depth = self.a_rows.len();
        let mut packed = Buffer::new((self.m + HEIGHT_MAX) * depth);
        for (row, height) in tiles::<S>(self.m, n_vectors) {
            let into = &mut packed[row * depth..][..height * depth];
            if height == HEIGHT_MAX && row + height <= self.m {
                for (into, &start) in into.as_chunks_mut::<HEIGHT_MAX>().0.iter_mut().zip(self.a_rows.iter()) {
                    into.copy_from_slice(&self.a[start + row..][..HEIGHT_MAX]);
                }
                continue;
            }
            for (into, &start) in into.chunks_exact_mut(height).zip(self.a_rows.iter()) {
                for (i, into) in into.iter_mut().enumerate() {
                    *into = self.a[start + (row + i).min(self.m - 1)]; // a row beyond the last one is that one again
                }
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
            let mut sums = begin::<S, MR, NV, CUT>(simd, edge, self.onto, c);
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
        dispatch(usize::MAX, self); // its vectors lie along the inner dimension
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
        // With every vector of an operand read for one of its tiles alone, reading is what takes the time.
        if S::REGISTER_COUNT >= N_REGISTERS_MANY && self.m > 4 {
            self.compute_tiles::<S, 8, 3>(simd);
        } else {
            self.compute_tiles::<S, 4, 3>(simd);
        }
    }
}

impl Dots<'_> {
    #[inline(always)]
    fn compute_tiles<S: Simd, const HEIGHT: usize, const WIDTH: usize>(self, simd: S) {
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

/// Registers from which on a tile can have 24 sums: AVX-512 and NEON have 32, AVX2 has 16.
const N_REGISTERS_MANY: usize = 32;
/// Rows of the highest tile.
const HEIGHT_MAX: usize = 8;
/// Rows of C from which on [`Rows`] has B packed: each panel is then read by eight tiles or more.
const N_ROWS_PACKED_MIN: usize = 64;
/// Rows of C from which on [`Outer`] may have its operands packed.
const N_OUTER_ROWS_PACKED_MIN: usize = 24;
/// Places of the inner dimension from which on [`Outer`] may have its operands packed: with each in a page of its own, more than
/// a CPU knows the addresses of at once (64 on Intel's Skylake, for example).
const N_PLACES_PACKED_MIN: usize = 33;
/// Places of the inner dimension that [`Outer`] takes at once: what of both operands belongs to them stays in the second cache.
const N_PLACES_MAX: usize = 128;
/// Places of the inner dimension up to which a tile is rather stored than computed: C is then gone through row by row.
const N_PLACES_FEW: usize = 16;

/// A product that is computed in tiles of rows and panels of columns.
trait Tiled {
    /// Rows and columns of C, and the inner dimension.
    fn size(&self) -> [usize; 3];

    /// Whether packing takes less time than it saves, if there are several panels.
    fn is_worth_packing(&self) -> bool;

    /// A row of B.
    fn row_of_b(&self, place: usize) -> &[f32];

    /// A, tile by tile of C, if it does not lie well: [rows, places, rows of a tile], for panels of so many vectors at most.
    fn packed_a<S: Simd>(&self, _n_vectors: usize) -> Option<Buffer> {
        None
    }

    /// Computes `MR` rows and `NV` vectors of columns; the last vector is `CUT` where C's rows end in it. Rows beyond the last
    /// one are that one again.
    ///
    /// # Safety
    /// Rows and columns have to be the product's, C its place, and what is packed of the tile's height and width.
    #[expect(unsafe_code, reason = "bounds are checked once for all tiles, in `compute`")]
    unsafe fn tile<S: Simd, const MR: usize, const NV: usize, const CUT: bool>(&self, simd: S, tile: &Tile<S>);
}

/// Which part of C.
struct Tile<'a, S: Simd> {
    c: *mut f32,
    row: usize,
    /// Its first column.
    first: usize,
    edge: Edge<S>,
    packed: Option<Packed<'a>>,
}

/// Operands in the order in which they are read.
#[derive(Clone, Copy)]
struct Packed<'a> {
    /// All of A, or nothing if A lies well.
    a: &'a [f32],
    /// The panel's columns of B: [places, vectors · lanes].
    b: &'a [f32],
}

/// Goes through all tiles, panel by panel, or row by row where C takes the longest.
#[inline(always)]
fn compute_tiles<S: Simd>(product: &impl Tiled, simd: S, c: *mut f32) {
    let [n_rows, n_columns, depth] = product.size();
    let n_vectors = panels::<S>(n_columns).next().map_or(1, |(_, n_vectors)| n_vectors);
    let is_one_panel = n_columns <= n_vectors * S::F32_LANES;
    if !is_one_panel && depth <= N_PLACES_FEW {
        for (row, height) in tiles::<S>(n_rows, n_vectors) {
            for (first, n_vectors) in panels::<S>(n_columns) {
                let edge = Edge::new(simd, n_columns - first, n_vectors);
                compute_tile(product, simd, height, n_vectors, &Tile { c, row, first, edge, packed: None });
            }
        }
        return;
    }
    let is_packed = !is_one_panel && product.is_worth_packing();
    let a = if is_packed { product.packed_a::<S>(n_vectors) } else { None };
    let mut b = Buffer::new(if is_packed { depth * n_vectors * S::F32_LANES } else { 0 });
    for (first, n_vectors_here) in panels::<S>(n_columns) {
        let edge = Edge::new(simd, n_columns - first, n_vectors_here);
        let packed = is_packed.then(|| {
            let b = pack(product, first, n_columns, n_vectors_here * S::F32_LANES, &mut b);
            Packed { a: a.as_deref().unwrap_or(&[]), b }
        });
        for (row, height) in tiles::<S>(n_rows, n_vectors) {
            compute_tile(product, simd, height, n_vectors_here, &Tile { c, row, first, edge, packed });
        }
    }
}

/// Where panels begin and how many vectors each has: as many as there are registers for, the widest first.
#[inline(always)]
fn panels<S: Simd>(n_columns: usize) -> impl Iterator<Item = (usize, usize)> {
    let n_widest = if S::REGISTER_COUNT >= N_REGISTERS_MANY { 3 } else { 2 };
    let n_vectors = n_columns.div_ceil(S::F32_LANES);
    let n_panels = n_vectors.div_ceil(n_widest);
    let (n_each, n_wider) = (n_vectors / n_panels, n_vectors % n_panels);
    (0..n_panels).map(move |panel| {
        let first = panel * n_each + panel.min(n_wider);
        (first * S::F32_LANES, n_each + usize::from(panel < n_wider))
    })
}

/// Where tiles begin and how many rows each has, for panels of so many vectors at most, so that as few as can be hang over the
/// end: eight and four rows, which take 24 registers for sums where there are 32, and eight where there is one vector (fewer
/// do not keep both multipliers of a core busy); else six and four.
#[inline(always)]
fn tiles<S: Simd>(n_rows: usize, n_vectors: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut row = 0;
    std::iter::from_fn(move || {
        let n_left = n_rows - row;
        let height = match n_left {
            0 => return None,
            1..=4 => 4,
            _ if n_vectors == 1 || S::REGISTER_COUNT >= N_REGISTERS_MANY => HEIGHT_MAX,
            7 | 8 => 4, // 4 + 4
            _ => 6,
        };
        let first = row;
        row = n_rows.min(row + height);
        Some((first, height))
    })
}

/// Copies a panel of B: rows of so many values, zeros beyond B's end.
#[inline(always)]
fn pack<'a>(product: &impl Tiled, first: usize, n_columns: usize, width: usize, into: &'a mut [f32]) -> &'a [f32] {
    let [_, _, depth] = product.size();
    let n_there = width.min(n_columns - first);
    for (place, into) in into.chunks_exact_mut(width).take(depth).enumerate() {
        let (there, beyond) = into.split_at_mut(n_there);
        there.copy_from_slice(&product.row_of_b(place)[first..][..n_there]);
        beyond.fill(0.0);
    }
    into
}

#[inline(always)]
#[expect(unsafe_code, reason = "bounds are checked once for all tiles, in `compute`")]
fn compute_tile<S: Simd>(product: &impl Tiled, simd: S, height: usize, n_vectors: usize, tile: &Tile<S>) {
    let has_many = S::REGISTER_COUNT >= N_REGISTERS_MANY;
    // SAFETY: `tiles` and `panels` give rows and columns of the product, and what is packed is packed along them.
    unsafe {
        match (n_vectors, height, tile.edge.is_whole) {
            (3, 8, true) if has_many => product.tile::<S, 8, 3, false>(simd, tile),
            (3, 8, false) if has_many => product.tile::<S, 8, 3, true>(simd, tile),
            (3, 4, true) if has_many => product.tile::<S, 4, 3, false>(simd, tile),
            (3, 4, false) if has_many => product.tile::<S, 4, 3, true>(simd, tile),
            (2, 8, true) if has_many => product.tile::<S, 8, 2, false>(simd, tile),
            (2, 8, false) if has_many => product.tile::<S, 8, 2, true>(simd, tile),
            (2, 6, true) if !has_many => product.tile::<S, 6, 2, false>(simd, tile),
            (2, 6, false) if !has_many => product.tile::<S, 6, 2, true>(simd, tile),
            (2, 4, true) => product.tile::<S, 4, 2, false>(simd, tile),
            (2, 4, false) => product.tile::<S, 4, 2, true>(simd, tile),
            (1, 8, true) => product.tile::<S, 8, 1, false>(simd, tile),
            (1, 8, false) => product.tile::<S, 8, 1, true>(simd, tile),
            (1, 6, true) if !has_many => product.tile::<S, 6, 1, false>(simd, tile),
            (1, 6, false) if !has_many => product.tile::<S, 6, 1, true>(simd, tile),
            (1, 4, true) => product.tile::<S, 4, 1, false>(simd, tile),
            (1, 4, false) => product.tile::<S, 4, 1, true>(simd, tile),
            _ => unreachable!("there is no tile of {height} rows and {n_vectors} vectors"),
        }
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
