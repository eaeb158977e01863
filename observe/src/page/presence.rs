//! Who took part in the last two minutes, and what happened meanwhile.

use super::heading;
use super::lanes::{self, Axis, Bar, CROSS, Height, Lane, Mark, TICK};
use super::workers::is_single_process;
use crate::summary::{EventKind, Summary, Worker};
use crate::text::{cut, duration, time_of_day};

/// Seconds that are shown.
const SPAN: f64 = 120.0;
/// Seconds between ticks.
const TICK_SECONDS: f64 = 40.0;
/// While events are no older than this, time goes on with the clock.
const FRESH_SECONDS: f64 = 10.0;
/// Marks that are drawn at most: the newest.
const MARKS_MAX: usize = 100;
/// Characters at most of a mark's text.
const TITLE_CHARS_MAX: usize = 300;

pub(super) fn html(summary: &Summary, now: f64) -> String {
    if is_single_process(summary) || summary.workers.is_empty() {
        return String::new();
    }
    let is_live = summary.outcome.is_none() && now >= summary.time && now - summary.time < FRESH_SECONDS;
    let to = if is_live { now } else { summary.time };
    let from = to - SPAN;
    let lanes: Vec<Lane> = summary
        .workers
        .iter()
        .filter(|(_, worker)| worker.joined <= to && worker.left.as_ref().is_none_or(|(time, _)| *time >= from))
        .map(|(number, worker)| lane(*number, worker, from, to))
        .chain(events(summary, from, to))
        .collect();
    let end = if summary.outcome.is_some() {
        "end".to_owned()
    } else if is_live {
        "now".to_owned()
    } else {
        time_of_day(to)
    };
    let ticks = (0..=3_u32).map(|n| {
        let ago = SPAN - f64::from(n) * TICK_SECONDS;
        (to - ago, if ago > 0.0 { format!("−{ago:.0} s") } else { end.clone() })
    });
    let axis = Axis { from, to, ticks: ticks.collect() };
    let legend = lanes::legend(&[("f-here", "takes part"), ("f-gone", "has left")]);
    let note = format!("the last two minutes, to {}", time_of_day(to));
    heading("presence", "Workers over time", &note)
        + &legend
        + &lanes::html(&lanes, &axis, "presence-lanes", "workers over the last two minutes")
}

fn lane(number: u64, worker: &Worker, from: f64, to: f64) -> Lane {
    let begin = worker.joined.max(from);
    let joined = format!("joined {}", time_of_day(worker.joined));
    let bar = |from, to, class, height, title: String| Bar { from, to, class, height, label: String::new(), title };
    let (bars, marks) = match &worker.left {
        None => (vec![bar(begin, to, "f-here", Height::Full, joined)], Vec::new()),
        Some((time, reason)) => {
            let title = format!("left {}: {}", time_of_day(*time), cut(reason, TITLE_CHARS_MAX));
            let lasted = format!("{joined}, took part for {}", duration(time - worker.joined));
            let gone = bar(*time, to, "f-gone", Height::Thin, String::new());
            let mark = Mark { at: *time, class: "is-fault", path: CROSS, title };
            (vec![bar(begin, *time, "f-here", Height::Full, lasted), gone], vec![mark])
        }
    };
    Lane { name: format!("worker {number}"), bars, marks }
}

/// Faults and recoveries, in a lane each, where there are any.
fn events(summary: &Summary, from: f64, to: f64) -> impl Iterator<Item = Lane> + '_ {
    let kinds =
        [("faults", EventKind::Fault, "is-fault", CROSS), ("recoveries", EventKind::Recovery, "is-recovery", TICK)];
    kinds.into_iter().filter_map(move |(name, kind, class, path)| {
        let marks: Vec<Mark> = summary
            .event_lines
            .iter()
            .rev()
            .filter(|line| line.kind == kind && line.time >= from && line.time <= to)
            .take(MARKS_MAX)
            .map(|line| Mark {
                at: line.time,
                class,
                path,
                title: format!("{} {}", time_of_day(line.time), cut(&line.text, TITLE_CHARS_MAX)),
            })
            .collect();
        (!marks.is_empty()).then(|| Lane { name: name.to_owned(), bars: Vec::new(), marks })
    })
}
