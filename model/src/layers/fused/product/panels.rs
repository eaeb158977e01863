//! A right operand in the order in which tiles read it.

use pulp::{Simd, WithSimd};

use super::dispatch;
use super::tiles::{pack, panels};
use crate::layers::fused::buffers::Buffer;

/// B of several products, packed once: panel after panel, each [places, vectors · lanes], zeros beyond B's last column.
#[derive(Debug)]
pub struct Panels {
    values: Buffer,
    /// Rows of B.
    pub(super) n_places: usize,
    pub(super) n_columns: usize,
    /// Lanes of the vectors that it was packed for.
    n_lanes: usize,
}

impl Panels {
    /// Packs a matrix of rows that lie one after the other.
    pub fn new(matrix: &[f32], n_columns: usize) -> Self {
        dispatch(n_columns, Packing { matrix, n_columns })
    }

    /// The panel that begins with a column, which has so many columns.
    ///
    /// # Panics
    /// If it was packed for other vectors.
    #[inline(always)]
    pub(super) fn panel<S: Simd>(&self, first: usize, width: usize) -> &[f32] {
        assert_eq!(self.n_lanes, S::F32_LANES, "what was packed has the vectors of the product");
        &self.values[first * self.n_places..][..width * self.n_places]
    }
}

struct Packing<'a> {
    matrix: &'a [f32],
    n_columns: usize,
}

impl WithSimd for Packing<'_> {
    type Output = Panels;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> Panels {
        let Self { matrix, n_columns } = self;
        let n_places = matrix.len() / n_columns;
        let mut values = Buffer::new(n_places * n_columns.next_multiple_of(S::F32_LANES));
        for (first, n_vectors) in panels::<S>(n_columns) {
            let width = n_vectors * S::F32_LANES;
            let n_there = width.min(n_columns - first);
            let rows = matrix.chunks_exact(n_columns).map(|row| &row[first..][..n_there]);
            pack::<S>(rows, n_vectors, &mut values[first * n_places..][..width * n_places]);
        }
        Panels { values, n_places, n_columns, n_lanes: S::F32_LANES }
    }
}
