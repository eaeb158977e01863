//! Products of small matrices, without copies of transposed operands: a tile of sums stays in registers over the whole inner
//! dimension, and each operand is read as it lies, or packed where its rows lie so far apart that caches and the page table
//! suffer. There are three forms, by which operand lies how: [`Rows`] (rows of A, rows of B), [`Outer`] (columns of A, rows of
//! B) and [`Dots`] (rows of A, columns of B).
//!
//! Each sum is taken in the order of the inner dimension, in [`Dots`] as many side by side as a vector has lanes, so that a
//! result depends on the operands and the CPU's vector width alone, and on no tile, order or packing.

mod dots;
mod outer;
mod panels;
mod rows;
mod tiles;

pub use panels::Panels;

use std::ops::Deref;

use pulp::{Arch, Simd, WithSimd};

/// Whether a product replaces the values of C or is added to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulate {
    /// It replaces them.
    Overwrite,
    /// It is added to them.
    Add,
}

/// `C[i, j] (+)= Σ over r, k of A[a_rows[i] + a_runs[r] + k] · B[r · run + k, j]`, C's row i beginning at `c_rows[i]`. The
/// inner dimension is cut into runs that are contiguous in A: one for a matrix, one for each row of the window for a
/// convolution.
#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "the rows of three matrices")]
pub struct Rows<'a> {
    /// Values of A.
    pub a: &'a [f32],
    /// Where each row of A begins.
    pub a_rows: &'a RowStarts,
    /// Where each run lies, from a row's beginning.
    pub a_runs: &'a [usize],
    /// Length of a run.
    pub run: usize,
    /// B, of runs · run rows.
    pub b: Right<'a>,
    /// Values of C.
    pub c: &'a mut [f32],
    /// Where each row of C begins.
    pub c_rows: &'a RowStarts,
    /// Whether it replaces what C holds.
    pub accumulate: Accumulate,
}

/// The right operand of [`Rows`].
#[derive(Clone, Copy, Debug)]
pub enum Right<'a> {
    /// Rows of so many columns, one after the other.
    Matrix(&'a [f32], usize),
    /// What was packed, for several products.
    Panels(&'a Panels),
}

impl Right<'_> {
    /// Columns of B and C.
    pub fn n_columns(self) -> usize {
        match self {
            Self::Matrix(_, n_columns) => n_columns,
            Self::Panels(panels) => panels.n_columns,
        }
    }
}

/// `C[i, j] (+)= Σ over p of A[a_rows[p] + i] · B[b_rows[p] + j]`.
#[derive(Debug)]
pub struct Outer<'a> {
    /// Values of A.
    pub a: &'a [f32],
    /// Where each place of the inner dimension begins in A.
    pub a_rows: &'a RowStarts,
    /// Rows of C.
    pub m: usize,
    /// Values of B.
    pub b: &'a [f32],
    /// Where each place of the inner dimension begins in B.
    pub b_rows: &'a RowStarts,
    /// Columns of C.
    pub n: usize,
    /// Values of C.
    pub c: &'a mut [f32],
    /// From one row of C to the next.
    pub c_stride: usize,
    /// Whether it replaces what C holds.
    pub accumulate: Accumulate,
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
pub struct RowStarts {
    starts: Vec<usize>,
    farthest: usize,
}

impl FromIterator<usize> for RowStarts {
    fn from_iter<I: IntoIterator<Item = usize>>(starts: I) -> Self {
        let starts: Vec<usize> = starts.into_iter().collect();
        let farthest = farthest(&starts);
        Self { starts, farthest }
    }
}

impl Deref for RowStarts {
    type Target = [usize];

    fn deref(&self) -> &[usize] {
        &self.starts
    }
}

/// Where the rows of a matrix begin that lies as it is.
pub fn rows(n_rows: usize, stride: usize) -> RowStarts {
    (0..n_rows).map(|row| row * stride).collect()
}

fn farthest(places: &[usize]) -> usize {
    places.iter().copied().max().unwrap_or(0)
}

/// Computes with vectors as wide as the CPU has, or half as wide where those hold all columns: a wide one that is cut has to
/// be masked with each value of the inner dimension. Sums are taken lane by lane, so that both give the same bits.
fn dispatch<P: WithSimd>(n_columns: usize, product: P) -> P::Output {
    #[cfg(target_arch = "x86_64")]
    if (n_columns <= <pulp::x86::V3 as Simd>::F32_LANES || takes_half_vectors())
        && let Some(simd) = pulp::x86::V3::try_new()
    {
        return Simd::vectorize(simd, product);
    }
    Arch::new().dispatch(product)
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
