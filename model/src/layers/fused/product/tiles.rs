//! Tiles of C, in registers: which there are, in which order, what is packed for them, and how they begin and end.

use pulp::{MemMask, Simd};

use super::Accumulate;
use crate::layers::fused::buffers::Buffer;

/// Registers from which on a tile can have 24 sums: AVX-512 and NEON have 32, AVX2 has 16.
pub(super) const N_REGISTERS_MANY: usize = 32;
/// Rows of the highest tile.
pub(super) const HEIGHT_MAX: usize = 8;
/// Places of the inner dimension up to which a tile is rather stored than computed: C is then gone through row by row.
const N_PLACES_FEW: usize = 16;

/// A product that is computed in tiles of rows and panels of columns.
pub(super) trait Tiled {
    /// Rows and columns of C, and the inner dimension.
    fn size(&self) -> [usize; 3];

    /// Whether packing takes less time than it saves, if there are several panels.
    fn is_worth_packing(&self) -> bool;

    /// A row of B.
    fn row_of_b(&self, place: usize) -> &[f32];

    /// The panel of so many columns that begins with `first`, if B was packed before.
    fn panel<S: Simd>(&self, _first: usize, _width: usize) -> Option<&[f32]> {
        None
    }

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
pub(super) struct Tile<'a, S: Simd> {
    pub(super) c: *mut f32,
    pub(super) row: usize,
    /// Its first column.
    pub(super) first: usize,
    pub(super) edge: Edge<S>,
    pub(super) packed: Option<Packed<'a>>,
}

/// Operands in the order in which they are read.
#[derive(Clone, Copy)]
pub(super) struct Packed<'a> {
    /// All of A, or nothing if A lies well.
    pub(super) a: &'a [f32],
    /// The panel's columns of B: [places, vectors · lanes].
    pub(super) b: &'a [f32],
}

/// Goes through all tiles, panel by panel, or row by row where C takes the longest.
#[inline(always)]
pub(super) fn compute_tiles<S: Simd>(product: &impl Tiled, simd: S, c: *mut f32) {
    let [n_rows, n_columns, depth] = product.size();
    let n_vectors = panels::<S>(n_columns).next().map_or(1, |(_, n_vectors)| n_vectors);
    let is_one_panel = n_columns <= n_vectors * S::F32_LANES;
    if !is_one_panel && depth <= N_PLACES_FEW {
        for (row, height) in tiles::<S>(n_rows, n_vectors) {
            for (first, n_vectors) in panels::<S>(n_columns) {
                let edge = Edge::new(simd, n_columns - first, n_vectors);
                let packed = product.panel::<S>(first, n_vectors * S::F32_LANES).map(|b| Packed { a: &[], b });
                compute_tile(product, simd, height, n_vectors, &Tile { c, row, first, edge, packed });
            }
        }
        return;
    }
    let is_packed = !is_one_panel && product.is_worth_packing();
    let a = if is_packed { product.packed_a::<S>(n_vectors) } else { None };
    let mut b = Buffer::new(if is_packed { depth * n_vectors * S::F32_LANES } else { 0 });
    for (first, n_vectors_here) in panels::<S>(n_columns) {
        let edge = Edge::new(simd, n_columns - first, n_vectors_here);
        let width = n_vectors_here * S::F32_LANES;
        let packed = if is_packed {
            let n_there = width.min(n_columns - first);
            let rows = (0..depth).map(|place| &product.row_of_b(place)[first..][..n_there]);
            pack::<S>(rows, n_vectors_here, &mut b[..depth * width]);
            Some(Packed { a: a.as_deref().unwrap_or(&[]), b: &b })
        } else {
            product.panel::<S>(first, width).map(|b| Packed { a: &[], b })
        };
        for (row, height) in tiles::<S>(n_rows, n_vectors) {
            compute_tile(product, simd, height, n_vectors_here, &Tile { c, row, first, edge, packed });
        }
    }
}

/// Where panels begin and how many vectors each has: as many as there are registers for, the widest first.
#[inline(always)]
pub(super) fn panels<S: Simd>(n_columns: usize) -> impl Iterator<Item = (usize, usize)> {
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
pub(super) fn tiles<S: Simd>(n_rows: usize, n_vectors: usize) -> impl Iterator<Item = (usize, usize)> {
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

/// Copies the rows of a panel, each to so many vectors: zeros beyond its end.
#[inline(always)]
pub(super) fn pack<'a, S: Simd>(rows: impl Iterator<Item = &'a [f32]>, n_vectors: usize, into: &mut [f32]) {
    match n_vectors {
        3 => pack_vectors::<S, 3>(rows, into),
        2 => pack_vectors::<S, 2>(rows, into),
        _ => pack_vectors::<S, 1>(rows, into),
    }
}

/// Whole rows as vectors: to copy a number of values that is not known when this is compiled takes a call.
#[inline(always)]
fn pack_vectors<'a, S: Simd, const NV: usize>(rows: impl Iterator<Item = &'a [f32]>, into: &mut [f32]) {
    for (row, into) in rows.zip(into.chunks_exact_mut(NV * S::F32_LANES)) {
        let from = S::as_simd_f32s(row).0.first_chunk::<NV>();
        if let (Some(from), Some(into)) = (from, S::as_mut_simd_f32s(into).0.first_chunk_mut()) {
            *into = *from;
        } else {
            let (there, beyond) = into.split_at_mut(row.len());
            there.copy_from_slice(row);
            beyond.fill(0.0);
        }
    }
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
pub(super) struct Edge<S: Simd> {
    is_whole: bool,
    /// Which lanes of the last vector there are.
    pub(super) mask: MemMask<S::m32s>,
}

impl<S: Simd> Edge<S> {
    /// For the last of `n_vectors` vectors, where `n_left` values are left.
    #[inline(always)]
    pub(super) fn new(simd: S, n_left: usize, n_vectors: usize) -> Self {
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
pub(super) unsafe fn load<S: Simd, const NV: usize, const CUT: bool>(
    simd: S,
    edge: Edge<S>,
    at: *const f32,
) -> [S::f32s; NV] {
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
pub(super) unsafe fn begin<S: Simd, const MR: usize, const NV: usize, const CUT: bool>(
    simd: S,
    edge: Edge<S>,
    accumulate: Accumulate,
    c: [*mut f32; MR],
) -> [[S::f32s; NV]; MR] {
    let mut sums = [[simd.splat_f32s(0.0); NV]; MR];
    if accumulate == Accumulate::Add {
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
pub(super) unsafe fn store<S: Simd, const MR: usize, const NV: usize, const CUT: bool>(
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
