//! The page of a run as HTML: a document that is complete without a script, made of fragments that a script replaces as the
//! run goes on. Under a strict Content-Security-Policy: no style or script within it, and nothing from elsewhere. What it
//! shows comes from a [`Summary`]; serving it is for others.

mod assets;
mod comparison;
mod costs;
mod curves;
mod faults;
mod lanes;
mod pictures;
mod presence;
mod settings;
mod state;
mod throughput;
mod timeline;
mod workers;

pub use assets::{Asset, asset};
pub use comparison::comparison;

use crate::summary::Summary;
use crate::text::{escape, url_segment};

/// A part of the page that is replaced as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The element of the document that holds it.
    pub id: &'static str,
    /// What is inside that element. Where it is empty, the part is not shown.
    pub html: String,
}

/// The part that has cards of its own: one for each of a task's pictures.
const PICTURES: &str = "pictures";
/// Other runs that the page links to at most.
const OTHERS_MAX: usize = 100;
/// Runs that the link to all of them compares.
const COMPARED_MAX: usize = 8;

/// The parts of a run's page, in the order in which it shows them; `now` in seconds since 1970.
pub fn fragments(summary: &Summary, now: f64) -> Vec<Fragment> {
    vec![
        Fragment { id: "state", html: state::html(summary, now) },
        Fragment { id: "curves", html: curves::html(summary) },
        Fragment { id: PICTURES, html: pictures::html(summary) },
        Fragment { id: "workers", html: workers::html(summary, now) },
        Fragment { id: "timeline", html: timeline::html(summary) },
        Fragment { id: "costs", html: costs::html(summary) },
        Fragment { id: "presence", html: presence::html(summary, now) },
        Fragment { id: "faults", html: faults::html(summary) },
        Fragment { id: "throughput", html: throughput::html(summary) },
        Fragment { id: "settings", html: settings::html(summary) },
    ]
}

/// The page of a run, complete: see [`fragments`]. `others` are the names of the other runs that are served, at `/runs/NAME`;
/// the script gets `fragment` events from `/runs/NAME/events`.
pub fn document(summary: &Summary, now: f64, others: &[String]) -> String {
    let sections: String = fragments(summary, now)
        .iter()
        .map(|Fragment { id, html }| match *id {
            PICTURES => format!(r#"<div id="{id}" class="cards">{html}</div>"#),
            _ => format!(r#"<section id="{id}" class="card" aria-labelledby="{id}-heading">{html}</section>"#),
        })
        .collect();
    let main = format!(r#"<main id="main">{sections}</main>"#);
    let events = format!("/runs/{}/events", url_segment(&summary.name));
    whole(&state::title(summary), &format!(r#" data-events="{events}""#), &links(summary, others), &main)
}

/// An HTML document.
fn whole(title: &str, attributes: &str, navigation: &str, main: &str) -> String {
    format!(
        r##"<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/><meta name="color-scheme" content="light dark"/><title>{}</title><link rel="icon" href="/assets/favicon.svg" type="image/svg+xml"/><link rel="stylesheet" href="/assets/page.css"/><script src="/assets/page.js" defer=""></script></head><body{attributes}><a class="skip" href="#main">Skip to the run</a><header class="bar"><p class="brand">telar</p><p id="connection" role="status"></p>{navigation}</header>{main}</body></html>
"##,
        escape(title)
    )
}

/// Links to other runs, and to comparisons with them.
fn links(summary: &Summary, others: &[String]) -> String {
    if others.is_empty() {
        return String::new();
    }
    let own = url_segment(&summary.name);
    let items: String = others
        .iter()
        .take(OTHERS_MAX)
        .map(|name| {
            let other = url_segment(name);
            let shown = escape(name);
            format!(
                r#"<li><a href="/runs/{other}">{shown}</a> <a class="minor" href="/compare?run={own}&amp;run={other}" aria-label="compare with {shown}">compare</a></li>"#
            )
        })
        .collect();
    let compared: String =
        others.iter().take(COMPARED_MAX - 1).map(|name| format!("&amp;run={}", url_segment(name))).collect();
    let rest = match others.len() {
        n if n > OTHERS_MAX => format!(r#"<li class="soft">and {} more</li>"#, n - OTHERS_MAX),
        _ => String::new(),
    };
    format!(
        r#"<nav class="runs" aria-label="Runs"><details id="runs"><summary>Other runs ({})</summary><div class="runs-list"><ul>{items}{rest}</ul><p><a href="/compare?run={own}{compared}">Compare this run with {}</a></p></div></details></nav>"#,
        others.len(),
        match others {
            [only] => escape(only).to_string(),
            _ => format!("the first {}", others.len().min(COMPARED_MAX - 1)),
        },
    )
}

/// A part's heading, and what is said beside it.
fn heading(id: &str, title: &str, note: &str) -> String {
    let note = if note.is_empty() { String::new() } else { format!(r#"<p class="soft">{}</p>"#, escape(note)) };
    format!(r#"<div class="heading"><h2 id="{id}-heading">{}</h2>{note}</div>"#, escape(title))
}

/// What is shown where there is nothing yet.
fn nothing_yet(text: &str) -> String {
    format!(r#"<p class="nothing">{}</p>"#, escape(text))
}
