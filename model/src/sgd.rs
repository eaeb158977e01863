//! Stochastic gradient descent over flat slices, the same host function on the coordinator and on every worker: plain
//! multiplications and additions, never contracted, so that all replicas stay equal bit for bit.

use pulp::{Arch, Simd};
use pulp_macro::with_simd;
use serde::{Deserialize, Serialize};

/// How an averaged gradient changes the parameters, as Keras' `SGD`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sgd {
    /// Learning rate, above 0.
    #[serde(serialize_with = "as_f64")]
    pub learning_rate: f32,
    /// Share of the last change that goes on, from 0 (plain) to below 1.
    #[serde(serialize_with = "as_f64")]
    pub momentum: f32,
    /// Whether the change looks ahead along the momentum (Nesterov).
    pub nesterov: bool,
}

/// A value with all its digits, as the f64 that equals it. Its shortest digits as f32 are too few: read as f64, as a
/// reader of JSON does, a few of them round to the middle of two f32 and from there to the wrong one.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this form")]
fn as_f64<S: serde::Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((*value).into())
}

impl Sgd {
    /// The velocity to start with: zeros, or nothing at all if there is no momentum.
    pub fn velocity(&self, n_params: usize) -> Vec<f32> {
        vec![0.0; if self.momentum == 0.0 { 0 } else { n_params }]
    }

    /// One update with the gradient's mean over the global batch. Plain: `w −= ηg`; momentum: `v = μv − ηg`, `w += v`;
    /// Nesterov: `v = μv − ηg`, `w += μv − ηg`.
    ///
    /// # Panics
    /// If the slices' lengths differ.
    pub fn apply(&self, params: &mut [f32], velocity: &mut [f32], gradient: &[f32]) {
        assert_eq!(params.len(), gradient.len(), "a gradient has as many values as the parameters");
        if self.momentum == 0.0 {
            return plain(params, gradient, self.learning_rate);
        }
        assert_eq!(params.len(), velocity.len(), "a velocity has as many values as the parameters");
        if self.nesterov {
            nesterov(params, velocity, gradient, self.learning_rate, self.momentum);
        } else {
            momentum(params, velocity, gradient, self.learning_rate, self.momentum);
        }
    }
}

#[with_simd(plain = Arch::new())]
#[inline(always)]
fn plain_with_simd<'a, S: Simd>(_simd: S, params: &'a mut [f32], gradient: &'a [f32], learning_rate: f32) {
    for (w, g) in params.iter_mut().zip(gradient) {
        *w -= learning_rate * g;
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
) {
    for ((w, v), g) in params.iter_mut().zip(velocity).zip(gradient) {
        *v = momentum * *v - learning_rate * g;
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
) {
    for ((w, v), g) in params.iter_mut().zip(velocity).zip(gradient) {
        let pull = learning_rate * g;
        *v = momentum * *v - pull;
        *w += momentum * *v - pull;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two updates of w = 1 with the gradients 2 and 4, learning rate 0.5, worked out by hand from the formulas.
    fn check(momentum: f32, nesterov: bool, expected: [f32; 2]) {
        let sgd = Sgd { learning_rate: 0.5, momentum, nesterov };
        let (mut params, mut velocity) = (vec![1.0], sgd.velocity(1));
        let found = [2.0, 4.0].map(|gradient| {
            sgd.apply(&mut params, &mut velocity, &[gradient]);
            params[0]
        });
        assert_eq!(found.map(f32::to_bits), expected.map(f32::to_bits));
    }

    #[test]
    fn updates_follow_their_formulas() {
        check(0.0, false, [0.0, -2.0]);
        check(0.5, false, [0.0, -2.5]); // v: -1, -2.5
        check(0.5, true, [-0.5, -3.75]); // w: 1 - 0.5 - 1, then -0.5 - 1.25 - 2
    }
}
