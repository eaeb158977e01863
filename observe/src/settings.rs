//! The settings in a run's `run.json` as a list.

use serde_json::Value;

use crate::text::cut;

/// Settings of a list at most.
const SETTINGS_MAX: usize = 400;
/// Characters of a name at most.
const NAME_CHARS_MAX: usize = 120;
/// Digits that a fraction may have before it is shortened, and how many it then has.
const DIGITS_MAX: usize = 8;
const DIGITS_SHORT: usize = 6;
/// Keys that are shown under another name.
const NAMES: [(&str, &str); 8] = [
    ("n_params", "parameters"),
    ("n_steps", "steps"),
    ("run_id", "run"),
    ("keep", "checkpoints kept"),
    ("lr_schedule", "learning rate schedule"),
    ("clip_norm", "largest gradient norm"),
    ("params_blake3", "parameters (blake3)"),
    ("init_from", "initial weights"),
];

/// Each value with its path, such as `optimizer › learning rate`; values that are null are left out, and those above 400.
pub fn settings_of(description: &Value) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    flatten("", description, &mut settings);
    settings
}

fn flatten(path: &str, value: &Value, settings: &mut Vec<(String, String)>) {
    if settings.len() >= SETTINGS_MAX {
        return;
    }
    match value {
        Value::Null => {}
        Value::Object(fields) => {
            for (key, value) in fields {
                let name = name(key);
                let path = if path.is_empty() { name } else { format!("{path} › {name}") };
                flatten(&path, value, settings);
            }
        }
        _ => settings.push((cut(path, NAME_CHARS_MAX), text(value))),
    }
}

/// A key as people read it: `validation loss` for `val_loss`.
fn name(key: &str) -> String {
    if let Some((_, name)) = NAMES.iter().find(|(known, _)| *known == key) {
        return (*name).to_owned();
    }
    let (key, unit) = match key.strip_suffix("_seconds") {
        Some(key) => (key, " (s)"),
        None => (key, ""),
    };
    let (prefix, key) = match (key.strip_prefix("n_"), key.strip_prefix("val_")) {
        (Some(key), _) => ("number of ", key),
        (None, Some(key)) => ("validation ", key),
        (None, None) => ("", key),
    };
    format!("{prefix}{}{unit}", key.replace('_', " "))
}

/// A value as people read it.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Number(number) if number.is_f64() => number.as_f64().map_or_else(|| number.to_string(), fraction),
        Value::Array(values) if values.is_empty() => "none".to_owned(),
        Value::Array(values) if values.iter().all(|value| !value.is_object() && !value.is_array()) => {
            values.iter().map(text).collect::<Vec<_>>().join(", ")
        }
        _ => value.to_string(),
    }
}

/// A number with a fraction. One of single precision, as most settings are, has the digits that name it among those: 0.1, and not
/// 0.10000000149011612. Others are shortened.
fn fraction(value: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "it is compared with what was cut off")]
    let single = value as f32;
    if f64::from(single).to_bits() == value.to_bits() {
        return if is_plain(value) { single.to_string() } else { format!("{single:e}") };
    }
    let digits = format!("{value:e}").bytes().take_while(|&byte| byte != b'e').filter(u8::is_ascii_digit).count();
    let value = if digits <= DIGITS_MAX {
        value
    } else {
        format!("{value:.*e}", DIGITS_SHORT - 1).parse().expect("a number that was written")
    };
    if is_plain(value) { value.to_string() } else { format!("{value:e}") }
}

/// Whether a number can be read without an exponent.
fn is_plain(value: f64) -> bool {
    value == 0.0 || (1e-4..1e15).contains(&value.abs())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nested_values_have_their_path_as_name() {
        let description = json!({
            "recipe": { "optimizer": { "learning_rate": 0.5 }, "shuffle": true, "schedule": null },
            "shape": [28, 28],
        });
        let expected =
            [("recipe › optimizer › learning rate", "0.5"), ("recipe › shuffle", "yes"), ("shape", "28, 28")];
        assert_eq!(settings_of(&description), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn keys_become_words() {
        for (key, expected) in [
            ("n_params", "parameters"),
            ("n_left", "number of left"),
            ("val_rounded_accuracy", "validation rounded accuracy"),
            ("heartbeat_timeout_seconds", "heartbeat timeout (s)"),
            ("seconds", "seconds"),
            ("shards", "shards"),
        ] {
            assert_eq!(name(key), expected);
        }
    }

    #[test]
    fn fractions_have_few_digits() {
        for (value, expected) in [
            (f64::from(0.1_f32), "0.1"),
            (f64::from(3e-4_f32), "0.0003"),
            (f64::from(1e-8_f32), "1e-8"),
            (0.999, "0.999"),
            (0.289_612_345_678_901, "0.289612"),
            (22_149.612_345_678, "22149.6"),
            (-1.0 / 3.0, "-0.333333"),
            (1.0 / 3e9, "3.33333e-10"),
            (2.0, "2"),
            (0.0, "0"),
        ] {
            assert_eq!(text(&json!(value)), expected);
        }
        assert_eq!(text(&json!(1_234_567_890_123_456_789_u64)), "1234567890123456789");
    }
}
