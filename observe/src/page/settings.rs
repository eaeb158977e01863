//! What `run.json` says, whatever it is: the result, then the settings.

use serde_json::Value;

use super::{heading, nothing_yet};
use crate::settings::settings_of;
use crate::summary::Summary;
use crate::text::{cut, escape};

/// Characters of a value at most.
const VALUE_CHARS_MAX: usize = 400;

pub(super) fn html(summary: &Summary) -> String {
    let head = heading("settings", "Settings", "from run.json");
    let Some(description) = summary.description.as_object().filter(|fields| !fields.is_empty()) else {
        return head + &nothing_yet("The settings are shown here as soon as the run has written them.");
    };
    // The groups that people look for come first; the rest is in the file's order.
    let result = description.get("result").map(|result| group("result", "Result", result, Openness::Open));
    let recipe = description.get("recipe").map(|recipe| group("recipe", "Recipe", recipe, Openness::Closed));
    let rest: serde_json::Map<String, Value> = description
        .iter()
        .filter(|(key, _)| !matches!(key.as_str(), "result" | "recipe"))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let rest = group("run", "Run and data", &Value::Object(rest), Openness::Closed);
    head + &[result, recipe, Some(rest)].into_iter().flatten().collect::<String>()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Openness {
    Open,
    Closed,
}

fn group(id: &str, title: &str, value: &Value, openness: Openness) -> String {
    let items: String = settings_of(value)
        .iter()
        .map(|(name, value)| {
            format!("<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(&cut(value, VALUE_CHARS_MAX)))
        })
        .collect();
    let open = if openness == Openness::Open { r#" open="""# } else { "" };
    format!(
        r#"<details id="settings-{id}"{open}><summary>{title}</summary><dl class="settings">{items}</dl></details>"#
    )
}
