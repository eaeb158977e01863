//! Learning rates that change along a run: pure functions of the step.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The learning rate of an update, and which one it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Learning rate.
    pub learning_rate: f32,
    /// The update, counted from 1.
    pub step: u64,
}

/// How the learning rate changes: it rises for some steps, and then falls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LrSchedule {
    /// How it falls.
    pub decay: Decay,
    /// Steps over which it rises from 0, in equal parts.
    pub warmup_steps: u64,
}

/// How the learning rate falls once it has risen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Decay {
    /// Not at all.
    #[default]
    Constant,
    /// In a straight line to 0 at the run's end.
    Linear,
    /// Along half a turn of the cosine to 0 at the run's end (Loshchilov and Hutter, 2017).
    Cosine,
    /// By a factor after every so many epochs.
    Step {
        /// The factor, above 0 and below 1.
        factor: f64,
        /// The epochs, from 1.
        epochs: u32,
    },
}

/// A text that names no schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected constant, linear, cosine or step:FACTOR:EPOCHS with a factor above 0 and below 1, found `{found}`; write for \
     example `--lr-schedule cosine` or `--lr-schedule step:0.1:10`"
)]
pub struct LrScheduleError {
    /// The text found.
    pub found: String,
}

impl FromStr for Decay {
    type Err = LrScheduleError;

    fn from_str(text: &str) -> Result<Self, LrScheduleError> {
        let step = || {
            let (factor, epochs) = text.strip_prefix("step:")?.split_once(':')?;
            let (factor, epochs) = (factor.parse::<f64>().ok()?, epochs.parse().ok()?);
            (factor > 0.0 && factor < 1.0 && epochs > 0).then_some(Self::Step { factor, epochs })
        };
        match text {
            "constant" => Ok(Self::Constant),
            "linear" => Ok(Self::Linear),
            "cosine" => Ok(Self::Cosine),
            _ => step().ok_or_else(|| LrScheduleError { found: text.to_owned() }),
        }
    }
}

impl TryFrom<String> for Decay {
    type Error = LrScheduleError;

    fn try_from(text: String) -> Result<Self, LrScheduleError> {
        text.parse()
    }
}

impl From<Decay> for String {
    fn from(decay: Decay) -> Self {
        decay.to_string()
    }
}

impl fmt::Display for Decay {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant => out.write_str("constant"),
            Self::Linear => out.write_str("linear"),
            Self::Cosine => out.write_str("cosine"),
            Self::Step { factor, epochs } => write!(out, "step:{factor}:{epochs}"),
        }
    }
}

impl fmt::Display for LrSchedule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { decay, warmup_steps } = self;
        decay.fmt(out)?;
        if *warmup_steps > 0 { write!(out, " after {warmup_steps} steps of warm-up") } else { Ok(()) }
    }
}

impl Decay {
    /// Whether the rates depend on how long the run is.
    pub fn follows_length(self) -> bool {
        matches!(self, Self::Linear | Self::Cosine)
    }
}

/// The learning rate of each step of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRates {
    learning_rate: f32,
    schedule: LrSchedule,
    n_steps: u64,
    steps_per_epoch: u64,
}

impl LearningRates {
    /// Those of a run of so many steps.
    pub fn new(learning_rate: f32, schedule: LrSchedule, n_steps: u64, steps_per_epoch: u64) -> Self {
        Self { learning_rate, schedule, n_steps, steps_per_epoch }
    }

    /// That of the update after so many.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "counts of steps are far below 2^53, and rates are used in f32"
    )]
    pub fn at(&self, n_updates: u64) -> Rate {
        let Self { learning_rate, schedule: LrSchedule { decay, warmup_steps }, n_steps, steps_per_epoch } = *self;
        // A peer may say any number.
        let step = n_updates.saturating_add(1);
        let share = if n_updates < warmup_steps {
            step as f64 / warmup_steps as f64
        } else {
            let progress = (n_updates - warmup_steps) as f64 / n_steps.saturating_sub(warmup_steps).max(1) as f64;
            match decay {
                Decay::Constant => return Rate { learning_rate, step },
                Decay::Linear => (1.0 - progress).max(0.0),
                Decay::Cosine => 0.5 * (1.0 + cos_of_half_turns(progress.min(1.0))),
                Decay::Step { factor, epochs } => {
                    let n_falls = (n_updates - warmup_steps) / (steps_per_epoch * u64::from(epochs)).max(1);
                    // Beyond so many, it is nothing.
                    (0..n_falls.min(10_000)).fold(1.0, |share, _| share * factor)
                }
            }
        };
        Rate { learning_rate: (f64::from(learning_rate) * share) as f32, step }
    }
}

/// cos(πx) for x from 0 to 1, within 2⁻⁵⁰: its Taylor series, whose terms after the twelfth are below 10⁻²¹ for half of that. Own
/// code, since the libraries of two machines may differ in the last bit.
fn cos_of_half_turns(x: f64) -> f64 {
    let (angle, sign) = if x <= 0.5 { (x, 1.0) } else { (1.0 - x, -1.0) };
    let square = (std::f64::consts::PI * angle) * (std::f64::consts::PI * angle);
    let series = (1..=12).rev().fold(1.0, |series, nth| 1.0 - square / f64::from(2 * nth * (2 * nth - 1)) * series);
    sign * series
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(schedule: &str, warmup_steps: u64, expected: [f32; 6]) {
        let schedule = LrSchedule { decay: schedule.parse().expect("a schedule"), warmup_steps };
        let rates = LearningRates::new(0.5, schedule, 6, 2);
        let found: [f32; 6] = std::array::from_fn(|step| rates.at(step as u64).learning_rate);
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-7, "{schedule}: {found:?}, expected {expected:?}");
        }
    }

    #[test]
    fn schedules_give_expected_rates() {
        check("constant", 0, [0.5; 6]);
        check("constant", 2, [0.25, 0.5, 0.5, 0.5, 0.5, 0.5]);
        check("linear", 0, [0.5, 0.5 * 5.0 / 6.0, 0.5 * 4.0 / 6.0, 0.25, 0.5 * 2.0 / 6.0, 0.5 / 6.0]);
        check("linear", 2, [0.25, 0.5, 0.5, 0.375, 0.25, 0.125]);
        check("cosine", 0, [0.5, 0.466_506_35, 0.375, 0.25, 0.125, 0.033_493_65]);
        check("step:0.5:1", 0, [0.5, 0.5, 0.25, 0.25, 0.125, 0.125]);
        check("step:0.5:2", 1, [0.5, 0.5, 0.5, 0.5, 0.5, 0.25]);
    }

    #[test]
    fn constant_rate_is_exactly_the_flag_value() {
        let rates = LearningRates::new(0.1, LrSchedule::default(), 3, 1);
        assert_eq!(rates.at(2), Rate { learning_rate: 0.1, step: 3 });
        assert_eq!(rates.at(u64::MAX), Rate { learning_rate: 0.1, step: u64::MAX });
    }

    #[test]
    fn decayed_rate_beyond_last_step_stays_zero() {
        for decay in [Decay::Linear, Decay::Cosine] {
            let rates = LearningRates::new(0.5, LrSchedule { decay, warmup_steps: 9 }, 3, 1);
            assert!(rates.at(20).learning_rate.abs() < 1e-15, "{decay}");
        }
    }

    #[test]
    fn cosine_matches_standard_library() {
        for nth in 0..=1_000 {
            let x = f64::from(nth) / 1_000.0;
            let (found, expected) = (cos_of_half_turns(x), (std::f64::consts::PI * x).cos());
            assert!((found - expected).abs() < 1e-15, "cos of {x} half turns: {found}, expected {expected}");
        }
    }

    #[test]
    fn invalid_schedule_text_is_refused() {
        for text in ["", "Cosine", "step", "step:0.1", "step:1:10", "step:0:10", "step:0.1:0", "step:nan:1"] {
            let error = text.parse::<Decay>().expect_err(text).to_string();
            assert!(error.contains(&format!("found `{text}`")), "{error}");
        }
        let text = "step:0.1:10";
        assert_eq!(text.parse::<Decay>().expect("a schedule").to_string(), text);
    }
}
