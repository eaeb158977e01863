//! Where the time of a step goes.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeStruct, Serializer};
use serde_json::Value;

use crate::step::StepRecord;

/// The parts of a step's time, as the coordinator sees them. Decoding goes on beside the driver, while it waits.
///
/// With `--journal`, `journal`, `encode` and `send` are those of the update before, which are at the beginning of the step's time:
/// an update is encoded and sent when it is in the journal, and it is written there after its step's line. Those of an epoch's last
/// update are in no step, as is what a validation costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepCosts {
    /// The longest that a worker computed.
    pub compute: Duration,
    /// The driver waited for messages.
    pub wait: Duration,
    /// Bytes of gradients to numbers, over all shards.
    pub decode: Duration,
    /// Adding the shards.
    pub reduce: Duration,
    /// Averaging, and changing the parameters.
    pub update: Duration,
    /// The averaged gradient to bytes.
    pub encode: Duration,
    /// Handing it to the sessions.
    pub send: Duration,
    /// Waiting for the journal, while the workers compute.
    pub journal: Duration,
}

impl StepCosts {
    /// How many parts there are.
    pub const N_PARTS: usize = 8;

    /// The parts with their names, in the order in which a step goes through them.
    pub fn parts(&self) -> [(&'static str, Duration); Self::N_PARTS] {
        [
            ("compute", self.compute),
            ("wait", self.wait),
            ("decode", self.decode),
            ("reduce", self.reduce),
            ("update", self.update),
            ("encode", self.encode),
            ("send", self.send),
            ("journal", self.journal),
        ]
    }
}

/// In milliseconds.
impl Serialize for StepCosts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut costs = serializer.serialize_struct("StepCosts", Self::N_PARTS)?;
        for (name, part) in self.parts() {
            // In whole microseconds: what is below is noise, and fills the file with digits.
            costs.serialize_field(name, &((1e6 * part.as_secs_f64()).round() / 1e3))?;
        }
        costs.end()
    }
}

/// From milliseconds; a part of another version is left out.
impl<'de> Deserialize<'de> for StepCosts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CostsVisitor;
        impl<'de> Visitor<'de> for CostsVisitor {
            type Value = StepCosts;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("milliseconds by part")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<StepCosts, A::Error> {
                let mut costs = StepCosts::default();
                while let Some((name, milliseconds)) = map.next_entry::<String, f64>()? {
                    let part = match name.as_str() {
                        "compute" => &mut costs.compute,
                        "wait" => &mut costs.wait,
                        "decode" => &mut costs.decode,
                        "reduce" => &mut costs.reduce,
                        "update" => &mut costs.update,
                        "encode" => &mut costs.encode,
                        "send" => &mut costs.send,
                        "journal" => &mut costs.journal,
                        _ => continue,
                    };
                    *part = Duration::try_from_secs_f64((1e3 * milliseconds).round() / 1e6).unwrap_or_default();
                }
                Ok(costs)
            }
        }
        deserializer.deserialize_map(CostsVisitor)
    }
}

/// Sums over steps.
#[derive(Clone, Copy, Debug, Default)]
pub struct CostTotals {
    n_steps: u32,
    n_samples: u64,
    milliseconds: f64,
    parts: [f64; StepCosts::N_PARTS],
}

impl CostTotals {
    /// Adds a step.
    pub fn add(&mut self, record: &StepRecord, costs: &StepCosts) {
        self.n_steps += 1;
        self.n_samples += record.n_samples;
        self.milliseconds += record.milliseconds;
        for (total, (_, part)) in self.parts.iter_mut().zip(costs.parts()) {
            *total += 1e3 * part.as_secs_f64();
        }
    }

    /// Samples per second of all steps' time; nothing if there was no step.
    #[expect(clippy::cast_precision_loss, reason = "a run has far fewer than 2^53 samples")]
    pub fn samples_per_second(&self) -> Option<f64> {
        (self.milliseconds > 0.0).then(|| 1e3 * self.n_samples as f64 / self.milliseconds)
    }

    /// Means in milliseconds, in words; nothing if there was no step.
    pub fn describe(&self) -> Option<String> {
        if self.n_steps == 0 {
            return None;
        }
        let n_steps = f64::from(self.n_steps);
        let part = |place: usize| self.parts[place] / n_steps;
        let own: Vec<(&str, f64)> = StepCosts::default()
            .parts()
            .iter()
            .enumerate()
            .skip(2) // compute and wait are not its own
            .map(|(place, (name, _))| (*name, part(place)))
            .collect();
        let parts: Vec<String> = own.iter().map(|(name, part)| format!("{name} {part:.2}")).collect();
        Some(format!(
            "{:.2} ms per step: {:.2} compute, {:.2} wait, {:.2} coordinator ({})",
            self.milliseconds / n_steps,
            part(0),
            part(1),
            own.iter().map(|(_, part)| part).sum::<f64>(),
            parts.join(", "),
        ))
    }

    /// Means in milliseconds by name.
    pub fn means(&self) -> Value {
        let n_steps = f64::from(self.n_steps.max(1));
        let parts = StepCosts::default().parts();
        let names = parts.iter().map(|(name, _)| *name).chain(["total"]);
        let totals = self.parts.into_iter().chain([self.milliseconds]);
        names.zip(totals).map(|(name, total)| (name.to_owned(), Value::from(total / n_steps))).collect()
    }
}
