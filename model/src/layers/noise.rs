//! Noise on a network's input, in training only: drawn on the host, so that every backend gets the same bits.

use std::fmt;
use std::str::FromStr;

use pulp::{Arch, Simd};
use pulp_macro::with_simd;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::arithmetic::{ln, sin_cos_of_turns};
use engine::random::{Stream, generator, unit_f32};

/// What is done to the input in training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Noise {
    /// The input as it is.
    None,
    /// Adds numbers from a normal distribution with mean 0 (Keras' `GaussianNoise`); nothing is clipped.
    Gaussian {
        /// Standard deviation, in units of the input (pixels from 0 to 1); finite, above 0.
        deviation: f32,
    },
    /// Sets values to 0, and scales the others by 1 / (1 − rate) (Keras' `Dropout`).
    Dropout {
        /// The share of values set to 0, above 0 and below 1.
        rate: f32,
    },
}

impl Noise {
    /// Applies the noise to values of any shape, drawing from the stream named.
    pub fn apply(self, values: &mut [f32], seed: u64, stream: Stream) {
        if self == Self::None {
            return;
        }
        // Each chunk's numbers lie at a known place of the stream, so that any thread can draw them.
        let beginning = generator(seed, stream);
        let work = |(chunk, values): (usize, &mut [f32])| {
            let mut generator = beginning.clone();
            generator.set_word_pos((chunk * CHUNK) as u128);
            self.apply_drawn(values, &mut generator);
        };
        if rayon::current_num_threads() == 1 {
            values.chunks_mut(CHUNK).enumerate().for_each(work);
        } else {
            values.par_chunks_mut(CHUNK).enumerate().for_each(work);
        }
    }

    /// Draws one number for each value.
    fn apply_drawn(self, values: &mut [f32], generator: &mut ChaCha8Rng) {
        match self {
            Self::None => {}
            Self::Gaussian { deviation } => {
                let (mut bytes, mut normals) = ([0; 4 * BLOCK], [0.0; BLOCK]);
                for values in values.chunks_mut(BLOCK) {
                    generator.fill_bytes(&mut bytes);
                    draw_normals(&bytes, &mut normals);
                    for (value, normal) in values.iter_mut().zip(normals) {
                        *value += deviation * normal;
                    }
                }
            }
            Self::Dropout { rate } => {
                let scale = 1.0 / (1.0 - rate);
                for value in values {
                    let is_kept = unit_f32(generator) >= rate;
                    *value = if is_kept { *value * scale } else { 0.0 };
                }
            }
        }
    }
}

/// Values that a thread takes at once.
const CHUNK: usize = 64 * BLOCK;

/// Numbers that are drawn at once.
const BLOCK: usize = 256;

/// Turns random words into numbers from a normal distribution with mean 0 and deviation 1, two from two words (Box and
/// Muller, "A Note on the Generation of Random Normal Deviates", 1958). Of each word 24 bits count, so that no number is
/// larger than √(2 · 24 · ln 2) = 5.77. The functions are ours, so that every machine draws the same bits.
#[with_simd(draw_normals = Arch::new())]
#[inline(always)]
fn draw_normals_with_simd<'a, S: Simd>(_simd: S, bytes: &'a [u8; 4 * BLOCK], normals: &'a mut [f32; BLOCK]) {
    const STEP: f32 = 1.0 / 16_777_216.0; // 2^-24
    let (radii, turns) = bytes.as_chunks::<4>().0.split_at(BLOCK / 2);
    let (first, second) = normals.split_at_mut(BLOCK / 2);
    let words = radii.iter().zip(turns);
    for ((first, second), (radius, turns)) in first.iter_mut().zip(second).zip(words) {
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_wrap, reason = "24 bits fit f32 and i32 exactly")]
        let [radius, turns] = [radius, turns].map(|word| (u32::from_le_bytes(*word) >> 8) as i32 as f32);
        let radius = -2.0 * ln((radius + 1.0) * STEP); // of a number above 0, up to 1
        let radius = (if radius < 0.0 { 0.0 } else { radius }).sqrt();
        let (sin, cos) = sin_cos_of_turns(turns * STEP);
        (*first, *second) = (radius * cos, radius * sin);
    }
}

/// A noise that cannot be had.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "expected noise as `none`, `gaussian:DEVIATION` with a deviation above 0, or `dropout:RATE` with a rate above 0 \
     and below 1, found `{found}`; write for example `gaussian:0.2`"
)]
pub struct NoiseError {
    /// What was given.
    pub found: String,
}

impl FromStr for Noise {
    type Err = NoiseError;

    fn from_str(text: &str) -> Result<Self, NoiseError> {
        let error = || NoiseError { found: text.to_owned() };
        if text == "none" {
            return Ok(Self::None);
        }
        let (kind, number) = text.split_once(':').ok_or_else(error)?;
        let number: f32 = number.parse().map_err(|_| error())?;
        match kind {
            "gaussian" if number.is_finite() && number > 0.0 => Ok(Self::Gaussian { deviation: number }),
            "dropout" if number > 0.0 && number < 1.0 => Ok(Self::Dropout { rate: number }),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Noise {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => out.write_str("none"),
            Self::Gaussian { deviation } => write!(out, "gaussian:{deviation}"),
            Self::Dropout { rate } => write!(out, "dropout:{rate}"),
        }
    }
}

impl TryFrom<String> for Noise {
    type Error = NoiseError;

    fn try_from(text: String) -> Result<Self, NoiseError> {
        text.parse()
    }
}

impl From<Noise> for String {
    fn from(noise: Noise) -> Self {
        noise.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::random::ShardKey;

    fn noisy(noise: Noise, shard: u32) -> Vec<f32> {
        let mut values = vec![0.5; 40_000];
        noise.apply(&mut values, 1, Stream::Shard(ShardKey { epoch: 0, step: 0, shard }));
        values
    }

    /// The goal: which thread draws which chunk changes nothing, and no number is drawn twice.
    #[test]
    fn chunked_noise_equals_sequential_noise() {
        for noise in [Noise::Gaussian { deviation: 0.2 }, Noise::Dropout { rate: 0.25 }] {
            let mut expected = vec![0.5; 40_000];
            assert!(expected.len() > 2 * CHUNK, "there are three chunks");
            let stream = Stream::Shard(ShardKey { epoch: 0, step: 0, shard: 4 });
            noise.apply_drawn(&mut expected, &mut generator(1, stream));
            assert!(noisy(noise, 4) == expected, "{noise}");
        }
    }

    #[test]
    fn gaussian_noise_has_expected_mean_and_deviation() {
        let values = noisy(Noise::Gaussian { deviation: 0.2 }, 0);
        let mean = values.iter().sum::<f32>() / 40_000.0;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / 40_000.0;
        assert!((mean - 0.5).abs() < 0.005, "{mean}");
        assert!((variance.sqrt() - 0.2).abs() < 0.003, "{variance}");
    }

    #[test]
    fn dropout_keeps_expected_value() {
        let values = noisy(Noise::Dropout { rate: 0.25 }, 0);
        let n_dropped = values.iter().filter(|&&value| value == 0.0).count();
        assert!((9_700..10_300).contains(&n_dropped), "{n_dropped}");
        assert!(values.iter().all(|&value| value == 0.0 || (value - 0.5 / 0.75).abs() < 1e-6));
    }

    #[test]
    fn noise_is_deterministic_per_shard() {
        for noise in [Noise::Gaussian { deviation: 0.2 }, Noise::Dropout { rate: 0.5 }] {
            assert_eq!(noisy(noise, 3), noisy(noise, 3));
            assert_ne!(noisy(noise, 3), noisy(noise, 4));
        }
    }

    #[test]
    fn noise_text_round_trips() {
        for text in ["none", "gaussian:0.2", "dropout:0.5"] {
            assert_eq!(text.parse::<Noise>().expect(text).to_string(), text);
        }
        for text in ["", "gaussian", "gaussian:0", "gaussian:-1", "gaussian:NaN", "dropout:1", "salt:0.1", "dropout:"] {
            assert_eq!(text.parse::<Noise>(), Err(NoiseError { found: text.to_owned() }));
        }
    }
}
