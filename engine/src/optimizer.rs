//! How an averaged gradient changes the parameters: over flat slices, by the same host functions on the coordinator and on every
//! worker. Plain additions, multiplications, divisions and square roots, never contracted, so that all replicas stay equal bit
//! for bit.

mod adam;
mod clip;
mod learning_rate;
mod sgd;

use clap::ValueEnum;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

pub use adam::Adam;
pub use clip::clip_norm;
pub use learning_rate::{Decay, LearningRates, LrSchedule, LrScheduleError, Rate};
pub use sgd::Sgd;

/// An update of the parameters.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(into = "Named")]
pub struct Optimizer {
    /// Learning rate before any schedule, above 0.
    pub learning_rate: f32,
    /// Weight decay, from 0: of SGD and Adam a share of each parameter that is added to its gradient (L2 regularisation), of
    /// `AdamW` a share of the learning rate by which each parameter shrinks, whatever its gradient.
    pub weight_decay: f64,
    /// The rule.
    pub rule: Rule,
}

/// How a gradient becomes a change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Stochastic gradient descent.
    Sgd(Sgd),
    /// Adam (Kingma and Ba, 2015).
    Adam(Adam),
    /// Adam with decoupled weight decay (Loshchilov and Hutter, 2019).
    AdamW(Adam),
}

/// The name of a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub enum RuleName {
    /// Stochastic gradient descent, with or without momentum
    #[default]
    Sgd,
    /// Adam; `--weight-decay` is added to the gradient
    Adam,
    /// Adam with decoupled weight decay
    AdamW,
}

impl std::fmt::Display for RuleName {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Sgd => "sgd",
            Self::Adam => "adam",
            Self::AdamW => "adamw",
        })
    }
}

impl Optimizer {
    /// Stochastic gradient descent without weight decay.
    pub const fn sgd(learning_rate: f32, momentum: f32, nesterov: bool) -> Self {
        Self { learning_rate, weight_decay: 0.0, rule: Rule::Sgd(Sgd { momentum, nesterov }) }
    }

    /// The name of its rule.
    pub fn name(&self) -> RuleName {
        match self.rule {
            Rule::Sgd(_) => RuleName::Sgd,
            Rule::Adam(_) => RuleName::Adam,
            Rule::AdamW(_) => RuleName::AdamW,
        }
    }

    /// Names of the vectors that go on from update to update.
    pub fn slot_names(&self) -> &'static [&'static str] {
        match self.rule {
            Rule::Sgd(_) => &["velocity"],
            Rule::Adam(_) | Rule::AdamW(_) => &["first_moment", "second_moment"],
        }
    }

    /// These vectors to start with: zeros, each as long as the parameters, or of no length where it is not needed.
    pub fn slots(&self, n_params: usize) -> Vec<Vec<f32>> {
        let n_values = match self.rule {
            Rule::Sgd(Sgd { momentum: 0.0, .. }) => 0,
            Rule::Sgd(_) | Rule::Adam(_) | Rule::AdamW(_) => n_params,
        };
        vec![vec![0.0; n_values]; self.slot_names().len()]
    }

    /// One update of the parameters from `start` on, as many as there are values in `gradient`, which is the mean over the
    /// global batch. Whether what goes on from update to update is finite: a gradient whose square overflows would stop a parameter
    /// for good, without a number in it that is not finite.
    ///
    /// # Panics
    /// If there are fewer parameters, or slots of another length than [`slots`](Self::slots) gives.
    pub fn apply(
        &self,
        rate: Rate,
        params: &mut [f32],
        slots: &mut [Vec<f32>],
        start: usize,
        gradient: &[f32],
    ) -> bool {
        let n_params = params.len();
        let places = start..start + gradient.len();
        let params = &mut params[places.clone()];
        match (&self.rule, slots) {
            (Rule::Sgd(sgd), [velocity]) if sgd.momentum == 0.0 => {
                assert!(velocity.is_empty(), "there is no velocity without momentum");
                sgd.apply(rate, self.weight_decay, params, &mut [], gradient);
                true
            }
            (Rule::Sgd(sgd), [velocity]) => {
                assert_eq!(n_params, velocity.len(), "a velocity has as many values as the parameters");
                sgd.apply(rate, self.weight_decay, params, &mut velocity[places], gradient);
                true // where it is not, the parameters are not either
            }
            (Rule::Adam(adam) | Rule::AdamW(adam), [first, second]) => {
                assert_eq!([n_params; 2], [first.len(), second.len()], "a moment has as many values as the parameters");
                let moments = (&mut first[places.clone()], &mut second[places]);
                let is_decoupled = matches!(self.rule, Rule::AdamW(_));
                adam.apply(rate, self.weight_decay, is_decoupled, params, moments, gradient)
            }
            (_, slots) => panic!("expected the slots of {}, found {}", self.name(), slots.len()),
        }
    }
}

/// A gradient with its share of weight decay. Without any, it keeps its bits.
#[inline(always)]
fn decayed(gradient: f32, param: f32, decay: f32) -> f32 {
    if decay == 0.0 { gradient } else { gradient + decay * param }
}

/// An optimizer as it is stored, by the name of its rule.
#[derive(Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase", deny_unknown_fields)]
enum Named {
    Sgd {
        #[serde(serialize_with = "as_f64")]
        learning_rate: f32,
        #[serde(with = "exact")]
        weight_decay: f64,
        #[serde(serialize_with = "as_f64")]
        momentum: f32,
        nesterov: bool,
    },
    Adam {
        #[serde(serialize_with = "as_f64")]
        learning_rate: f32,
        #[serde(with = "exact")]
        weight_decay: f64,
        #[serde(with = "exact")]
        beta1: f64,
        #[serde(with = "exact")]
        beta2: f64,
        #[serde(with = "exact")]
        epsilon: f64,
    },
    AdamW {
        #[serde(serialize_with = "as_f64")]
        learning_rate: f32,
        #[serde(with = "exact")]
        weight_decay: f64,
        #[serde(with = "exact")]
        beta1: f64,
        #[serde(with = "exact")]
        beta2: f64,
        #[serde(with = "exact")]
        epsilon: f64,
    },
}

/// As versions stored it that had nothing but SGD.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unnamed {
    learning_rate: f32,
    momentum: f32,
    nesterov: bool,
}

impl<'de> Deserialize<'de> for Optimizer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let is_named = value.get("name").is_some();
        let optimizer = if is_named {
            serde_json::from_value(value).map(|named: Named| named.into())
        } else {
            serde_json::from_value(value)
                .map(|Unnamed { learning_rate, momentum, nesterov }| Self::sgd(learning_rate, momentum, nesterov))
        };
        optimizer.map_err(D::Error::custom)
    }
}

impl From<Named> for Optimizer {
    fn from(named: Named) -> Self {
        match named {
            Named::Sgd { learning_rate, weight_decay, momentum, nesterov } => {
                Self { learning_rate, weight_decay, rule: Rule::Sgd(Sgd { momentum, nesterov }) }
            }
            Named::Adam { learning_rate, weight_decay, beta1, beta2, epsilon } => {
                Self { learning_rate, weight_decay, rule: Rule::Adam(Adam { beta1, beta2, epsilon }) }
            }
            Named::AdamW { learning_rate, weight_decay, beta1, beta2, epsilon } => {
                Self { learning_rate, weight_decay, rule: Rule::AdamW(Adam { beta1, beta2, epsilon }) }
            }
        }
    }
}

impl From<Optimizer> for Named {
    fn from(optimizer: Optimizer) -> Self {
        let Optimizer { learning_rate, weight_decay, rule } = optimizer;
        match rule {
            Rule::Sgd(Sgd { momentum, nesterov }) => Self::Sgd { learning_rate, weight_decay, momentum, nesterov },
            Rule::Adam(Adam { beta1, beta2, epsilon }) => {
                Self::Adam { learning_rate, weight_decay, beta1, beta2, epsilon }
            }
            Rule::AdamW(Adam { beta1, beta2, epsilon }) => {
                Self::AdamW { learning_rate, weight_decay, beta1, beta2, epsilon }
            }
        }
    }
}

/// Numbers as text: the shortest digits that name them, which readers of JSON numbers round to another one now and then.
pub(crate) mod exact {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Stored {
        Text(String),
        Number(f64),
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this form")]
    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&value.to_string())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        match Stored::deserialize(deserializer)? {
            Stored::Number(value) => Ok(value),
            Stored::Text(text) => {
                text.parse().map_err(|_| D::Error::custom(format!("expected a number, found `{text}`")))
            }
        }
    }

    /// The same of a number that may not be there.
    pub mod option {
        use super::{Deserialize, Deserializer, Serializer, Stored};

        #[expect(clippy::ref_option, reason = "serde asks for this form")]
        pub fn serialize<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
            match value {
                Some(value) => serializer.serialize_str(&value.to_string()),
                None => serializer.serialize_none(),
            }
        }

        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
            let number = |stored| match stored {
                Stored::Number(value) => Ok(value),
                Stored::Text(text) => {
                    text.parse().map_err(|_| serde::de::Error::custom(format!("expected a number, found `{text}`")))
                }
            };
            Option::<Stored>::deserialize(deserializer)?.map(number).transpose()
        }
    }
}

/// A value with all its digits, as the f64 that equals it. Its shortest digits as f32 are too few: read as f64, as a
/// reader of JSON does, a few of them round to the middle of two f32 and from there to the wrong one.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this form")]
fn as_f64<S: serde::Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((*value).into())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// What PyTorch's optimizers made of the same gradients: see `tests/golden/optimizers.py`.
    #[derive(Deserialize)]
    struct Golden {
        initial: Vec<f32>,
        gradients: Vec<Vec<f32>>,
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        optimizer: Optimizer,
        clip_norm: Option<f64>,
        schedule: LrSchedule,
        n_steps: u64,
        steps_per_epoch: u64,
        params: Vec<Vec<f64>>,
    }

    /// The goal: the optimizers are PyTorch's: over a hundred steps each parameter is within 1e-6 of PyTorch's in double
    /// precision, relative to the largest one.
    #[test]
    fn optimizer_steps_match_pytorch() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/optimizers.json");
        let golden = std::fs::read(path).expect("it comes with the project");
        let Golden { initial, gradients, cases } = serde_json::from_slice(&golden).expect("cases");
        assert!(cases.len() >= 10 && gradients.len() == 100);
        for Case { optimizer, clip_norm: norm_max, schedule, n_steps, steps_per_epoch, params: expected } in cases {
            let rates = LearningRates::new(optimizer.learning_rate, schedule, n_steps, steps_per_epoch);
            let (mut params, mut slots) = (initial.clone(), optimizer.slots(initial.len()));
            for ((step, gradient), expected) in (0..).zip(&gradients).zip(&expected) {
                let mut gradient = gradient.clone();
                if let Some(norm_max) = norm_max {
                    clip_norm(&mut gradient, norm_max);
                }
                // In two parts, as it comes to a worker.
                let (first, second) = gradient.split_at(5);
                optimizer.apply(rates.at(step), &mut params, &mut slots, 0, first);
                optimizer.apply(rates.at(step), &mut params, &mut slots, first.len(), second);
                let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
                for (found, expected) in params.iter().zip(expected) {
                    let distance = (f64::from(*found) - expected).abs();
                    assert!(
                        distance <= 1e-6 * largest,
                        "{optimizer:?}, {schedule}, clip norm {norm_max:?}, step {step}: expected {expected}, found {found}"
                    );
                }
            }
        }
    }

    #[test]
    fn overflow_of_second_moment_is_reported() {
        let adam = Optimizer { learning_rate: 0.1, weight_decay: 0.0, rule: Rule::Adam(Adam::default()) };
        let check = |gradient: f32, expected: bool| {
            let (mut params, mut slots) = (vec![1.0; 20], adam.slots(20));
            let gradient = [vec![0.5; 19], vec![gradient]].concat();
            let rate = Rate { learning_rate: 0.1, step: 1 };
            assert_eq!(adam.apply(rate, &mut params, &mut slots, 0, &gradient), expected, "{gradient:?}");
            assert!(params.iter().all(|value| value.is_finite()));
        };
        check(1e15, true);
        check(1e25, false);
    }

    #[test]
    fn legacy_optimizer_without_name_is_read_as_sgd() {
        let check = |text: &str, expected: Optimizer| {
            let found: Optimizer = serde_json::from_str(text).expect(text);
            assert_eq!(found, expected);
            let stored = serde_json::to_string(&found).expect("JSON");
            assert_eq!(serde_json::from_str::<Optimizer>(&stored).expect(&stored), found, "{stored}");
        };
        check(r#"{"learning_rate": 0.5, "momentum": 0.25, "nesterov": true}"#, Optimizer::sgd(0.5, 0.25, true));
        let adam = Adam { beta1: 0.5, beta2: 0.75, epsilon: 0.125 };
        check(
            r#"{"name": "adamw", "learning_rate": 0.5, "weight_decay": 0.25, "beta1": 0.5, "beta2": 0.75, "epsilon": 0.125}"#,
            Optimizer { learning_rate: 0.5, weight_decay: 0.25, rule: Rule::AdamW(adam) },
        );
    }

    #[test]
    fn missing_or_unknown_optimizer_fields_are_named() {
        let check = |text: &str, part: &str| {
            let error = serde_json::from_str::<Optimizer>(text).expect_err(text).to_string();
            assert!(error.contains(part), "{error}");
        };
        check(r#"{"learning_rate": 0.5, "momentum": 0.25}"#, "missing field `nesterov`");
        check(r#"{"name": "adamw", "learning_rate": 0.5, "weight_decay": 0, "beta1": 0.5}"#, "missing field `beta2`");
        check(
            r#"{"name": "sgd", "learning_rate": 0.5, "weight_decay": 0, "momentum": 0, "nesterov": false, "more": 1}"#,
            "`more`",
        );
        check(r#"{"name": "lion", "learning_rate": 0.5}"#, "unknown variant `lion`");
    }
}
