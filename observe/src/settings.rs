//! The settings in a run's `run.json` as a list.

use serde_json::Value;

use crate::text::cut;

/// Settings of a list at most.
const SETTINGS_MAX: usize = 400;
/// Characters of a name at most.
const NAME_CHARS_MAX: usize = 120;

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
                let key = key.replace('_', " ");
                let path = if path.is_empty() { key } else { format!("{path} › {key}") };
                flatten(&path, value, settings);
            }
        }
        _ => settings.push((cut(path, NAME_CHARS_MAX), text(value))),
    }
}

/// A value as people read it.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Array(values) if values.is_empty() => "none".to_owned(),
        Value::Array(values) if values.iter().all(|value| !value.is_object() && !value.is_array()) => {
            values.iter().map(text).collect::<Vec<_>>().join(", ")
        }
        _ => value.to_string(),
    }
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
}
