//! Who takes part, and who has left.

use super::{heading, nothing_yet};
use crate::summary::{Summary, Worker};
use crate::text::{cut, duration, escape, grouped, time_element, time_of_day};

/// Seconds without a message after which a worker is said to be silent, where the run's limit is not known.
const SILENT_SECONDS: f64 = 5.0;
/// Characters at most of what a worker says of itself.
const TEXT_CHARS_MAX: usize = 200;

const TITLES: [&str; 11] =
    ["worker", "state", "host", "process", "backend", "threads", "joined", "shards", "shards/s", "late", "reassigned"];

/// Whether the run trains in one process, without workers.
pub(super) fn is_single_process(summary: &Summary) -> bool {
    let says = |key: &str| summary.description.get(key).is_some_and(|value| !value.is_null());
    summary.workers.is_empty() && says("backend") && !says("workers")
}

pub(super) fn html(summary: &Summary, now: f64) -> String {
    if is_single_process(summary) {
        return String::new();
    }
    let (left, active): (Vec<_>, Vec<_>) = summary.workers.iter().partition(|(_, worker)| worker.left.is_some());
    if active.is_empty() && left.is_empty() {
        let text = "Workers are listed here as they join.";
        return heading("workers", "Workers", "none is there") + &nothing_yet(text);
    }
    let take = if summary.outcome.is_some() { "took" } else { "take" };
    let note = match left.len() {
        0 => format!("{} {take} part", active.len()),
        n_left => format!("{} of {} {take} part", active.len(), active.len() + n_left),
    };
    let limit = summary.description.get("heartbeat_timeout_seconds").and_then(serde_json::Value::as_f64);
    let silent_seconds = limit.map_or(SILENT_SECONDS, |limit| (limit / 3.0).min(SILENT_SECONDS));
    let has_ended = summary.outcome.is_some();
    let state = |worker: &Worker| match (&worker.left, has_ended) {
        (Some((time, reason)), _) => state_of_left(*time, reason, (!has_ended).then_some(now)),
        (None, true) => state_cell("gone", DOT, "there to the end"),
        (None, false) => state_of_active(worker.silent_seconds, silent_seconds),
    };
    let head: String = TITLES.iter().map(|title| format!(r#"<th scope="col">{title}</th>"#)).collect();
    let left = left.into_iter().rev();
    let rows: String =
        active.into_iter().chain(left).map(|(number, worker)| row(*number, worker, &state(worker))).collect();
    format!(
        r#"{}<div class="scroll tall" id="workers-scroll" tabindex="0" role="region" aria-labelledby="workers-heading"><table class="roster"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"#,
        heading("workers", "Workers", &note)
    )
}

fn row(number: u64, worker: &Worker, state: &str) -> String {
    let text = |text: &str| format!(r#"<td class="text">{}</td>"#, escape(&cut(text, TEXT_CHARS_MAX)));
    let number_cell = |text: &str| format!("<td>{text}</td>");
    let count = |count: u64| match count {
        0 => r#"<td class="zero">0</td>"#.to_owned(),
        _ => format!("<td>{}</td>", grouped(count)),
    };
    let pace = match worker.left {
        Some(_) => r#"<td class="zero">–</td>"#.to_owned(),
        None => format!("<td>{:.1}</td>", worker.shards_per_second),
    };
    [
        format!(
            r#"<tr{}><th scope="row">{number}</th>"#,
            if worker.left.is_some() { r#" class="is-gone""# } else { "" }
        ),
        state.to_owned(),
        text(&worker.host),
        number_cell(&worker.process.to_string()),
        text(&worker.backend),
        number_cell(&worker.n_threads.to_string()),
        number_cell(&time_element(worker.joined, &time_of_day(worker.joined))),
        count(worker.n_shards),
        pace,
        count(worker.n_late),
        count(worker.n_reassigned),
        "</tr>".to_owned(),
    ]
    .concat()
}

const DOT: &str = r#"<circle class="solid" cx="8" cy="8" r="4"/>"#;
const CROSS: &str = r#"<path d="M4.5 4.5l7 7M11.5 4.5l-7 7"/>"#;
const EXCLAMATION: &str = r#"<path d="M8 3v6M8 11.5v1.5"/>"#;

/// A cell with a sign and a text, which is HTML.
fn state_cell(class: &str, icon: &str, html: &str) -> String {
    format!(
        r#"<td class="text"><span class="dot is-{class}"><svg class="icon" viewBox="0 0 16 16" aria-hidden="true">{icon}</svg><span>{html}</span></span></td>"#
    )
}

/// `now` is None where the run is over, and what is shown does not change any more.
fn state_of_left(time: f64, reason: &str, now: Option<f64>) -> String {
    let now = now.filter(|now| *now > time);
    let ago = now.map_or_else(|| time_of_day(time), |now| format!("{} ago", duration(now - time)));
    let html = format!(
        r#"left {}<span class="reason">{}</span>"#,
        time_element(time, &ago),
        escape(&cut(reason, TEXT_CHARS_MAX))
    );
    state_cell("gone", CROSS, &html)
}

fn state_of_active(silent_seconds: f64, silent_seconds_max: f64) -> String {
    let heard = duration(silent_seconds);
    if silent_seconds > silent_seconds_max {
        return state_cell("silent", EXCLAMATION, &format!("silent for {heard}"));
    }
    if silent_seconds < 1.0 {
        return state_cell("here", DOT, "here");
    }
    state_cell("here", DOT, &format!("here, heard {heard} ago"))
}
