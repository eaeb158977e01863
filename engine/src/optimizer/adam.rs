//! Adam, as `torch.optim.Adam` and `torch.optim.AdamW` compute it.

use pulp::{Arch, Simd};
use pulp_macro::with_simd;

use super::{Rate, decayed};

/// Adam's own numbers; the defaults are PyTorch's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    /// Share of the mean of gradients that goes on, from 0 to below 1.
    pub beta1: f64,
    /// Share of the mean of squared gradients that goes on, from 0 to below 1.
    pub beta2: f64,
    /// What is added to the divisor, above 0.
    pub epsilon: f64,
}

impl Default for Adam {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }
    }
}

/// An update's numbers, the same for all parameters.
#[derive(Clone, Copy)]
struct Factors {
    beta2: f32,
    /// 1 − β₁ and 1 − β₂.
    new: [f32; 2],
    /// η / (1 − β₁ᵗ).
    step_size: f32,
    /// √(1 − β₂ᵗ).
    correction: f32,
    epsilon: f32,
    /// What is added to the gradient of each parameter, as a share of it.
    decay: f32,
    /// What is left of each parameter.
    left: f32,
}

impl Adam {
    /// One update: `m += (1 − β₁)(g − m)`, `v = β₂v + (1 − β₂)g²`, `w −= η / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)`. Weight
    /// decay λ, decoupled: `w *= 1 − ηλ` before; else `g += λw` before. Whether v is finite in all places.
    #[expect(clippy::cast_possible_truncation, reason = "numbers are worked out in f64 and used in f32")]
    pub(super) fn apply(
        &self,
        rate: Rate,
        weight_decay: f64,
        is_decoupled: bool,
        params: &mut [f32],
        (first, second): (&mut [f32], &mut [f32]),
        gradient: &[f32],
    ) -> bool {
        let Rate { learning_rate, step } = rate;
        let Self { beta1, beta2, epsilon } = *self;
        let learning_rate = f64::from(learning_rate);
        let factors = Factors {
            beta2: beta2 as f32,
            new: [(1.0 - beta1) as f32, (1.0 - beta2) as f32],
            step_size: (learning_rate / (1.0 - power(beta1, step))) as f32,
            correction: (1.0 - power(beta2, step)).sqrt() as f32,
            epsilon: epsilon as f32,
            decay: if is_decoupled { 0.0 } else { weight_decay as f32 },
            left: if is_decoupled { (1.0 - learning_rate * weight_decay) as f32 } else { 1.0 },
        };
        update(params, first, second, gradient, factors)
    }
}

/// A base to a whole power, by squaring: the same bits everywhere.
fn power(base: f64, exponent: u64) -> f64 {
    let (mut result, mut square, mut exponent) = (1.0, base, exponent);
    while exponent > 0 {
        if exponent % 2 == 1 {
            result *= square;
        }
        square *= square;
        exponent /= 2;
    }
    result
}

#[with_simd(update = Arch::new())]
#[inline(always)]
fn update_with_simd<'a, S: Simd>(
    _simd: S,
    params: &'a mut [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
    gradient: &'a [f32],
    factors: Factors,
) -> bool {
    let Factors { beta2, new, step_size, correction, epsilon, decay, left } = factors;
    let mut is_finite = true;
    for (((w, m), v), g) in params.iter_mut().zip(first).zip(second).zip(gradient) {
        let g = decayed(*g, *w, decay);
        *m += (g - *m) * new[0];
        *v = beta2 * *v + new[1] * g * g;
        *w = left * *w - step_size * (*m / (v.sqrt() / correction + epsilon));
        is_finite &= v.is_finite();
    }
    is_finite
}
