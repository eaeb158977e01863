//! What went wrong, what was recovered, and what else happened.

use super::workers::is_single_process;
use super::{heading, nothing_yet};
use crate::summary::{EventKind, EventLine, Summary};
use crate::text::{cut, date_time, escape, grouped, time_element, time_of_day};

/// Lines that are shown: the newest.
const LINES_MAX: usize = 200;
/// Characters of a line at most.
const TEXT_CHARS_MAX: usize = 500;

pub(super) fn html(summary: &Summary) -> String {
    let counts = summary.faults.counted();
    let is_well = counts.is_empty();
    if is_well && summary.event_lines.is_empty() && is_single_process(summary) {
        return String::new();
    }
    let note = match (is_well, summary.outcome.is_some()) {
        (false, _) => "",
        (true, false) => "nothing went wrong so far",
        (true, true) => "nothing went wrong",
    };
    let head = heading("faults", "Faults and recoveries", note);
    let counts: String =
        counts.into_iter().map(|(count, noun)| format!("<li><b>{}</b> {noun}</li>", grouped(count))).collect();
    let counts = if counts.is_empty() { counts } else { format!(r#"<ul class="counts">{counts}</ul>"#) };
    if summary.event_lines.is_empty() {
        return head
            + &counts
            + &nothing_yet("What happens is listed here: workers that join or leave, faults, recoveries.");
    }
    let lines: String = summary.event_lines.iter().rev().take(LINES_MAX).map(line).collect();
    format!(
        r#"{head}{counts}<ol class="events scroll tall" id="faults-scroll" tabindex="0" aria-label="what happened, the newest first">{lines}</ol>"#
    )
}

fn line(line: &EventLine) -> String {
    let (class, name, icon) = match line.kind {
        EventKind::Info => ("is-info", "info", r#"<circle class="solid" cx="8" cy="8" r="2.5"/>"#),
        EventKind::Fault => ("is-fault", "fault", r#"<path d="M4 4l8 8M12 4l-8 8"/>"#),
        EventKind::Recovery => ("is-recovery", "recovered", r#"<path d="M3 8.5l3.5 3.5 6.5-8"/>"#),
    };
    format!(
        r#"<li class="{class}">{}<span class="kind"><svg class="icon" viewBox="0 0 16 16" aria-hidden="true">{icon}</svg>{name}</span><span class="what">{}</span></li>"#,
        time_element(line.time, &time_of_day(line.time)).replacen(
            "<time",
            &format!(r#"<time title="{}""#, date_time(line.time)),
            1
        ),
        escape(&cut(&line.text, TEXT_CHARS_MAX))
    )
}
