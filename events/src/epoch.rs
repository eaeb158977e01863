//! An epoch: a line of `history.jsonl`.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;

use crate::figures::Figures;

/// One epoch: the running means of its steps, as Keras shows them, and the validation after it.
#[derive(Clone, Debug, PartialEq)]
pub struct EpochRecord {
    /// Epoch, counted from 1.
    pub epoch: u32,
    /// Updates applied to the parameters.
    pub step: u64,
    /// Mean training loss over the epoch's samples, noise and all, each before its step's update.
    pub loss: f64,
    /// The task's metrics over the same.
    pub metrics: Figures,
    /// Mean loss over the validation samples, without noise.
    pub val_loss: f64,
    /// The task's metrics over the validation samples; each name begins with `val_`.
    pub val_metrics: Figures,
    /// How long the epoch's training took, without the validation.
    pub seconds: f64,
    /// Training samples per second.
    pub samples_per_second: f64,
    /// What samples are called.
    pub samples: Cow<'static, str>,
    /// Whether the validation loss is below those of all epochs before.
    pub is_best: bool,
}

/// What the name of the figure ends with that says how fast an epoch was.
const PACE: &str = "_per_second";
/// What figures of the validation begin with.
const VALIDATION: &str = "val_";

impl EpochRecord {
    /// The name of the figure that says how fast it was, such as `images_per_second`.
    pub fn pace_name(&self) -> String {
        format!("{}{PACE}", self.samples)
    }
}

impl Serialize for EpochRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("epoch", &self.epoch)?;
        map.serialize_entry("step", &self.step)?;
        map.serialize_entry("loss", &self.loss)?;
        for (name, value) in &self.metrics.0 {
            map.serialize_entry(name, value)?;
        }
        map.serialize_entry("val_loss", &self.val_loss)?;
        for (name, value) in &self.val_metrics.0 {
            map.serialize_entry(name, value)?;
        }
        map.serialize_entry("seconds", &self.seconds)?;
        map.serialize_entry(&self.pace_name(), &self.samples_per_second)?;
        map.serialize_entry("best", &self.is_best)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for EpochRecord {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EpochVisitor;
        impl<'de> Visitor<'de> for EpochVisitor {
            type Value = EpochRecord;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("the figures of an epoch")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<EpochRecord, A::Error> {
                let mut record = EpochRecord {
                    epoch: 0,
                    step: 0,
                    loss: f64::NAN,
                    metrics: Figures::default(),
                    val_loss: f64::NAN,
                    val_metrics: Figures::default(),
                    seconds: f64::NAN,
                    samples_per_second: f64::NAN,
                    samples: Cow::Borrowed("samples"),
                    is_best: false,
                };
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    let whole = || {
                        let found = value.as_u64();
                        found.ok_or_else(|| {
                            A::Error::custom(format!("expected a whole number for `{name}`, found {value}"))
                        })
                    };
                    let number = || value.as_f64().unwrap_or(f64::NAN);
                    match name.as_str() {
                        "epoch" => record.epoch = u32::try_from(whole()?).map_err(A::Error::custom)?,
                        "step" => record.step = whole()?,
                        "loss" => record.loss = number(),
                        "val_loss" => record.val_loss = number(),
                        "seconds" => record.seconds = number(),
                        "best" => record.is_best = value.as_bool().unwrap_or(false),
                        _ => match (name.strip_suffix(PACE), name.starts_with(VALIDATION)) {
                            (Some(samples), _) => {
                                (record.samples, record.samples_per_second) = (samples.to_owned().into(), number());
                            }
                            (None, true) => record.val_metrics.0.push((name.clone(), number())),
                            (None, false) => record.metrics.0.push((name.clone(), number())),
                        },
                    }
                }
                Ok(record)
            }
        }
        deserializer.deserialize_map(EpochVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epoch_line_is_read_as_it_was_written() {
        let record = EpochRecord {
            epoch: 3,
            step: 5157,
            loss: 0.31,
            metrics: Figures(vec![("rounded_accuracy".to_owned(), 0.91)]),
            val_loss: 0.29,
            val_metrics: Figures(vec![("val_rounded_accuracy".to_owned(), 0.93)]),
            seconds: 2.5,
            samples_per_second: 22000.0,
            samples: "images".into(),
            is_best: true,
        };
        let line = serde_json::to_string(&record).expect("JSON");
        assert_eq!(serde_json::from_str::<EpochRecord>(&line).expect("an epoch"), record);
        assert!(serde_json::from_str::<EpochRecord>(r#"{"epoch": "three"}"#).is_err());
    }
}
