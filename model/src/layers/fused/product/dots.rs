//! Rows of A with columns of B.

use pulp::{Simd, WithSimd};

use super::tiles::{Edge, N_REGISTERS_MANY};
use super::{Dots, dispatch};

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
