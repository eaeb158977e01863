//! Binary cross-entropy, its gradient and rounded accuracy from the logits, in one pass.

use pulp::{Arch, Simd};
use pulp_macro::with_simd;

use super::buffers::Buffer;
use crate::arithmetic::{exp, ln_1p_of_unit};
use engine::sums::{Sums, counts};

/// Compares logits with targets from 0 to 1, samples of `n_pixels` each; gives the sums, and the gradient of the sum over
/// samples of the mean over pixels with respect to the logits, (σ(z) − x) / pixels.
///
/// The loss of a pixel with logit z and target x is max(z, 0) − z x + ln(1 + e^−|z|): finite for any finite z. The gradient
/// and the loss share e^−|z|.
pub fn binary_cross_entropy(logits: &[f32], targets: &[f32], n_pixels: usize) -> (Sums, Buffer) {
    assert_eq!(logits.len(), targets.len(), "every logit has its target");
    let mut gradient = Buffer::new(logits.len());
    #[expect(clippy::cast_precision_loss, reason = "pixels of an image are far below 2^24")]
    let share = 1.0 / n_pixels as f32;
    let mut sums = Sums { n_samples: (logits.len() / n_pixels) as u64, ..Sums::default() };
    let mut correct_sum = 0;
    let samples = logits.chunks_exact(n_pixels).zip(targets.chunks_exact(n_pixels));
    for ((logits, targets), gradient) in samples.zip(gradient.chunks_exact_mut(n_pixels)) {
        let (loss, n_correct) = sample(logits, targets, gradient, share);
        sums.loss_sum += f64::from(loss * share);
        correct_sum += u64::from(n_correct);
    }
    sums.counts = counts(&[correct_sum]);
    (sums, gradient)
}

/// One sample: the sum of its losses, and its correct pixels. In as many sums side by side as the widest vectors have lanes.
#[with_simd(sample = Arch::new())]
#[inline(always)]
fn sample_with_simd<'a, S: Simd>(
    _simd: S,
    logits: &'a [f32],
    targets: &'a [f32],
    gradient: &'a mut [f32],
    share: f32,
) -> (f32, u32) {
    const LANES: usize = 16;
    let (mut losses, mut n_correct) = ([0.0_f32; LANES], [0_u32; LANES]);
    let chunks = logits.as_chunks::<LANES>().0.iter().zip(targets.as_chunks::<LANES>().0);
    for ((logits, targets), gradient) in chunks.zip(gradient.as_chunks_mut::<LANES>().0) {
        for lane in 0..LANES {
            let pixel = pixel(logits[lane], targets[lane]);
            losses[lane] += pixel.loss;
            n_correct[lane] += u32::from(pixel.is_correct);
            gradient[lane] = pixel.pull * share;
        }
    }
    let n_done = logits.len() - logits.len() % LANES;
    let rest = logits[n_done..].iter().zip(&targets[n_done..]);
    for ((logit, target), gradient) in rest.zip(&mut gradient[n_done..]) {
        let pixel = pixel(*logit, *target);
        losses[0] += pixel.loss;
        n_correct[0] += u32::from(pixel.is_correct);
        *gradient = pixel.pull * share;
    }
    (losses.iter().sum(), n_correct.iter().sum())
}

struct Pixel {
    loss: f32,
    /// σ(z) − x.
    pull: f32,
    is_correct: bool,
}

#[inline(always)]
fn pixel(logit: f32, target: f32) -> Pixel {
    let small = exp(-logit.abs()); // from 0 to 1
    let upper = 1.0 / (1.0 + small);
    let output = if logit >= 0.0 { upper } else { small * upper };
    let above = if logit < 0.0 { 0.0 } else { logit };
    Pixel {
        loss: above - logit * target + ln_1p_of_unit(small),
        pull: output - target,
        // An output of exactly 0.5 rounds to 0, as does a target.
        is_correct: (output > 0.5) == (target > 0.5),
    }
}
