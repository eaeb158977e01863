//! Stochastic gradient descent, as Keras' `SGD`; its weight decay is that of `torch.optim.SGD`.

use pulp::{Arch, Simd};
use pulp_macro::with_simd;

use super::{Rate, decayed};

/// What SGD keeps of earlier updates.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sgd {
    /// Share of the last change that goes on, from 0 (plain) to below 1.
    pub momentum: f32,
    /// Whether the change looks ahead along the momentum (Nesterov).
    pub nesterov: bool,
}

impl Sgd {
    /// One update. Plain: `w −= ηg`; momentum: `v = μv − ηg`, `w += v`; Nesterov: `v = μv − ηg`, `w += μv − ηg`. With weight
    /// decay λ, `g += λw` before.
    #[expect(clippy::cast_possible_truncation, reason = "parameters are f32")]
    pub(super) fn apply(
        self,
        rate: Rate,
        weight_decay: f64,
        params: &mut [f32],
        velocity: &mut [f32],
        gradient: &[f32],
    ) {
        let (learning_rate, decay) = (rate.learning_rate, weight_decay as f32);
        if self.momentum == 0.0 {
            plain(params, gradient, learning_rate, decay);
        } else if self.nesterov {
            nesterov(params, velocity, gradient, learning_rate, self.momentum, decay);
        } else {
            momentum(params, velocity, gradient, learning_rate, self.momentum, decay);
        }
    }
}

#[with_simd(plain = Arch::new())]
#[inline(always)]
fn plain_with_simd<'a, S: Simd>(_simd: S, params: &'a mut [f32], gradient: &'a [f32], learning_rate: f32, decay: f32) {
    for (w, g) in params.iter_mut().zip(gradient) {
        *w -= learning_rate * decayed(*g, *w, decay);
    }
}

#[with_simd(momentum = Arch::new())]
#[inline(always)]
fn momentum_with_simd<'a, S: Simd>(
    _simd: S,
    params: &'a mut [f32],
    velocity: &'a mut [f32],
    gradient: &'a [f32],
    learning_rate: f32,
    momentum: f32,
    decay: f32,
) {
    for ((w, v), g) in params.iter_mut().zip(velocity).zip(gradient) {
        *v = momentum * *v - learning_rate * decayed(*g, *w, decay);
        *w += *v;
    }
}

#[with_simd(nesterov = Arch::new())]
#[inline(always)]
fn nesterov_with_simd<'a, S: Simd>(
    _simd: S,
    params: &'a mut [f32],
    velocity: &'a mut [f32],
    gradient: &'a [f32],
    learning_rate: f32,
    momentum: f32,
    decay: f32,
) {
    for ((w, v), g) in params.iter_mut().zip(velocity).zip(gradient) {
        let pull = learning_rate * decayed(*g, *w, decay);
        *v = momentum * *v - pull;
        *w += momentum * *v - pull;
    }
}

#[cfg(test)]
mod tests {
    use crate::optimizer::{Optimizer, Rate};

    /// Two updates of w = 1 with the gradients 2 and 4, learning rate 0.5, worked out by hand from the formulas.
    fn check(momentum: f32, nesterov: bool, weight_decay: f64, expected: [f32; 2]) {
        let sgd = Optimizer { weight_decay, ..Optimizer::sgd(0.5, momentum, nesterov) };
        let (mut params, mut slots) = (vec![1.0], sgd.slots(1));
        let found = [(1, 2.0), (2, 4.0)].map(|(step, gradient)| {
            sgd.apply(Rate { learning_rate: 0.5, step }, &mut params, &mut slots, 0, &[gradient]);
            params[0]
        });
        assert_eq!(found.map(f32::to_bits), expected.map(f32::to_bits));
    }

    #[test]
    fn sgd_updates_match_formulas() {
        check(0.0, false, 0.0, [0.0, -2.0]);
        check(0.5, false, 0.0, [0.0, -2.5]); // v: -1, -2.5
        check(0.5, true, 0.0, [-0.5, -3.75]); // w: 1 - 0.5 - 1, then -0.5 - 1.25 - 2
        check(0.0, false, 2.0, [-1.0, -2.0]); // g: 2 + 2, then 4 - 2
    }
}
