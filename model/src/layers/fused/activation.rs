//! SELU with the bias before it, and its slope from its output.

use pulp::{Arch, Simd};
use pulp_macro::with_simd;

use crate::arithmetic::expm1;
use crate::layers::selu::{ALPHA, SCALE};

#[expect(clippy::cast_possible_truncation, reason = "a constant, rounded once")]
const SLOPE_ABOVE: f32 = SCALE as f32;
#[expect(clippy::cast_possible_truncation, reason = "a constant, rounded once")]
const SCALE_BELOW: f32 = (SCALE * ALPHA) as f32;
/// eˣ rounds to 1 from here on: half a unit below it.
const BELOW: f32 = -2.980_232_2e-8; // -2^-25
/// Between the outputs just above and just below that input: λ · −2⁻²⁵ = −3.1e-8 and λα · −2⁻²⁵ = −5.2e-8.
const OUTPUT_BELOW: f32 = -4e-8;

/// What follows a layer's sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// [`selu`](crate::layers::selu()).
    Selu,
}

/// SELU as [`selu`](crate::layers::selu()): the same slope at each input.
#[inline(always)]
pub fn selu_of(x: f32) -> f32 {
    let below = SCALE_BELOW * expm1(if x > 0.0 { 0.0 } else { x });
    let above = SLOPE_ABOVE * x;
    // What is not a number is not above.
    if x >= BELOW { above } else { below }
}

/// SELU's slope where its output is `y`.
#[inline(always)]
pub fn slope_of(y: f32) -> f32 {
    if y >= OUTPUT_BELOW { SLOPE_ABOVE } else { y + SCALE_BELOW }
}

/// Adds the bias to each row of `values` [.., bias], and applies the activation.
pub fn activate(values: &mut [f32], bias: &[f32], activation: Activation) {
    match activation {
        Activation::None => add_bias(values, bias),
        Activation::Selu => selu_with_bias(values, bias),
    }
}

#[with_simd(add_bias = Arch::new())]
#[inline(always)]
fn add_bias_with_simd<'a, S: Simd>(_simd: S, values: &'a mut [f32], bias: &'a [f32]) {
    for row in values.chunks_exact_mut(bias.len()) {
        row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
    }
}

#[with_simd(selu_with_bias = Arch::new())]
#[inline(always)]
fn selu_with_bias_with_simd<'a, S: Simd>(_simd: S, values: &'a mut [f32], bias: &'a [f32]) {
    for row in values.chunks_exact_mut(bias.len()) {
        for (value, bias) in row.iter_mut().zip(bias) {
            *value = selu_of(*value + bias);
        }
    }
}

/// The gradient before the activation, from that after it and its output.
pub fn slope_times(y: &[f32], dy: &[f32], activation: Activation, dz: &mut [f32]) {
    match activation {
        Activation::None => dz.copy_from_slice(dy),
        Activation::Selu => selu_slope_times(y, dy, dz),
    }
}

#[with_simd(selu_slope_times = Arch::new())]
#[inline(always)]
fn selu_slope_times_with_simd<'a, S: Simd>(_simd: S, y: &'a [f32], dy: &'a [f32], dz: &'a mut [f32]) {
    for ((dz, &y), dy) in dz.iter_mut().zip(y).zip(dy) {
        *dz = dy * slope_of(y);
    }
}

/// Sums over the rows of `values` [.., sums].
#[with_simd(sum_rows = Arch::new())]
#[inline(always)]
pub fn sum_rows_with_simd<'a, S: Simd>(_simd: S, values: &'a [f32], sums: &'a mut [f32]) {
    sums.fill(0.0);
    for row in values.chunks_exact(sums.len()) {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
}
