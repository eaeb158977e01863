//! What a run is at: its state, how far it is, and its main figures.

use crate::series::Series;
use crate::summary::Summary;
use crate::text::{counted, cut, date_time, duration, escape, figure, float, grouped, milliseconds, time_element};

/// Seconds without any event after which a run that should go on is said to be silent.
const SILENT_SECONDS: f64 = 15.0;
/// Metrics that are shown large.
const METRICS_MAX: usize = 3;

/// The state of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// No step was taken yet.
    Starting,
    /// Steps are taken.
    Running,
    /// No worker is there.
    Waiting,
    /// All steps were taken, or it has stopped early.
    Completed,
    /// It was stopped, and can go on.
    Stopped,
    /// It ended otherwise, with this outcome.
    Failed(String),
}

impl State {
    pub(super) fn of(summary: &Summary) -> Self {
        match summary.outcome.as_deref() {
            Some("completed") => Self::Completed,
            Some("stopped") => Self::Stopped,
            Some(outcome) => Self::Failed(outcome.to_owned()),
            None if summary.is_waiting => Self::Waiting,
            None if summary.last_step.is_none() => Self::Starting,
            None => Self::Running,
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Completed => "completed",
            Self::Stopped => "stopped",
            Self::Failed(_) => "failed",
        }
    }

    /// A sign for it, beside the word.
    fn icon(&self) -> &'static str {
        match self {
            Self::Starting | Self::Waiting => r#"<path d="M4 2h8M4 14h8M5 2c0 5 6 7 6 12M11 2c0 5-6 7-6 12"/>"#,
            Self::Running => r#"<path class="solid" d="M4 2.5v11l9-5.5z"/>"#,
            Self::Completed => r#"<path d="M2.5 8.5l3.5 3.5 7.5-8"/>"#,
            Self::Stopped => r#"<path class="solid" d="M3.5 3.5h9v9h-9z"/>"#,
            Self::Failed(_) => r#"<path d="M3.5 3.5l9 9M12.5 3.5l-9 9"/>"#,
        }
    }

    /// The state as a badge: a sign and the word.
    pub(super) fn badge(&self) -> String {
        format!(
            r#"<span class="badge is-{0}"><svg class="icon" viewBox="0 0 16 16" aria-hidden="true">{1}</svg>{0}</span>"#,
            self.name(),
            self.icon()
        )
    }

    fn has_ended(&self) -> bool {
        matches!(self, Self::Completed | Self::Stopped | Self::Failed(_))
    }
}

/// The title of the window.
pub(super) fn title(summary: &Summary) -> String {
    let state = State::of(summary);
    let far = match (&state, share(summary)) {
        (State::Running, Some(share)) => format!("{:.0} %", (100.0 * share).floor()),
        _ => state.name().to_owned(),
    };
    format!("{far} · {} · telar", cut(&summary.name, 60))
}

pub(super) fn html(summary: &Summary, now: f64) -> String {
    let state = State::of(summary);
    format!(
        r#"<div data-title="{}"{}><div class="state-head"><h1 id="state-heading">{}</h1><p>{}</p></div><p class="soft">{}</p>{}{}{}</div>"#,
        escape(&title(summary)),
        if state.has_ended() { r#" data-ended="""# } else { "" },
        escape(&cut(&summary.name, 100)),
        state.badge(),
        about(summary),
        message(summary, &state, now),
        progress(summary, &state),
        figures(summary),
    )
}

/// Task, data and when it began.
fn about(summary: &Summary) -> String {
    let text = |pointer: &str| summary.description.pointer(pointer).and_then(|value| value.as_str());
    let task = text("/recipe/task").map(|task| format!("task {}", escape(&cut(task, 60))));
    // Of a folder its name: the settings have the whole path.
    let name = |data: &str| data.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
    let data = text("/data/name").map(|data| format!("data {}", escape(&cut(&name(data), 60))));
    let began = summary.event_lines.front().map(|first| {
        let end = summary.time.max(first.time);
        format!("since {}, for {}", time_element(first.time, &date_time(first.time)), duration(end - first.time))
    });
    [task, data, began].into_iter().flatten().collect::<Vec<_>>().join(" · ")
}

/// What has to be known of the state, beyond its name.
fn message(summary: &Summary, state: &State, now: f64) -> String {
    let silent = now - summary.time;
    let text = match state {
        State::Failed(outcome) => match summary.description.pointer("/result/error").and_then(|error| error.as_str()) {
            Some(error) if error != outcome => format!("{outcome}: {error}"),
            _ => outcome.clone(),
        },
        State::Waiting => "No worker is there. The run goes on when one joins.".to_owned(),
        State::Running | State::Starting if summary.time > 0.0 && silent > SILENT_SECONDS => {
            format!("No news for {}: a long validation, or its program is gone.", duration(silent))
        }
        _ => return String::new(),
    };
    format!(r#"<p class="message is-{}">{}</p>"#, state.name(), escape(&cut(&text, 1000)))
}

/// Steps taken as a share of those of the run, if that is known.
fn share(summary: &Summary) -> Option<f64> {
    let step = summary.last_step.as_ref()?.step;
    (summary.n_steps > 0).then(|| (float(step) / float(summary.n_steps)).min(1.0))
}

fn progress(summary: &Summary, state: &State) -> String {
    let total = if summary.n_steps > 0 { format!(" of {}", grouped(summary.n_steps)) } else { String::new() };
    let Some(step) = &summary.last_step else {
        return format!(r#"<p class="progress-text">no step yet{total}</p>"#);
    };
    let mut parts = vec![format!("<b>step {}</b>{total}", grouped(step.step))];
    parts.push(match summary.n_epochs {
        0 => format!("epoch {}", step.epoch),
        n_epochs => format!("epoch {} of {n_epochs}", step.epoch),
    });
    if *state == State::Running
        && let Some(seconds) = seconds_left(summary)
    {
        parts.push(format!("about {} left", duration(seconds)));
    }
    let bar = match share(summary) {
        Some(share) => format!(
            r#"<progress max="{}" value="{}" aria-label="steps taken">{:.0} %</progress>"#,
            summary.n_steps,
            step.step.min(summary.n_steps),
            100.0 * share
        ),
        None => String::new(),
    };
    format!(r#"{bar}<p class="progress-text">{}</p>"#, parts.join(" · "))
}

/// By the pace of the last tenth of the points; validations come on top.
fn seconds_left(summary: &Summary) -> Option<f64> {
    let left = summary.n_steps.checked_sub(summary.last_step.as_ref()?.step)?;
    Some(float(left) * recent(&summary.step_milliseconds)? / 1e3)
}

/// The mean of the last tenth of a curve's points, or of the last eight.
pub(super) fn recent(series: &Series) -> Option<f64> {
    let points = series.points();
    let n = (points.len() / 10).max(8).min(points.len());
    let sum: f64 = points[points.len() - n..].iter().map(|point| point.mean).sum();
    (n > 0).then(|| sum / crate::text::float_len(n))
}

/// What samples are called.
pub(super) fn samples(summary: &Summary) -> &str {
    if summary.samples.is_empty() { "samples" } else { &summary.samples }
}

/// A figure to be read from far: its value, its name, and a note.
fn tile(name: &str, value: &str, note: &str) -> String {
    let note = if note.is_empty() { String::new() } else { format!(r#"<span class="note">{}</span>"#, escape(note)) };
    format!(r"<div><dt>{}</dt><dd>{}{note}</dd></div>", escape(name), escape(value))
}

fn figures(summary: &Summary) -> String {
    let mut tiles = String::new();
    if let Some(step) = &summary.last_step {
        tiles += &tile("loss", &figure(step.loss), "of the last step");
    }
    if let Some(epoch) = summary.epochs.back() {
        let best = summary.epochs.iter().rfind(|epoch| epoch.is_best);
        let best = match best {
            Some(best) if best.epoch == epoch.epoch => format!("epoch {}, the best", epoch.epoch),
            Some(best) => format!("best {} in epoch {}", figure(best.val_loss), best.epoch),
            None => format!("epoch {}", epoch.epoch),
        };
        tiles += &tile("val loss", &figure(epoch.val_loss), &best);
        for (name, value) in epoch.val_metrics.0.iter().take(METRICS_MAX) {
            tiles += &tile(&name.replace('_', " "), &figure(*value), &format!("epoch {}", epoch.epoch));
        }
    } else if let Some(step) = &summary.last_step {
        for (name, value) in step.metrics.0.iter().take(METRICS_MAX) {
            tiles += &tile(&name.replace('_', " "), &figure(*value), "of the last step");
        }
    }
    if let Some(pace) = recent(&summary.pace) {
        let note = recent(&summary.step_milliseconds).map(|time| format!("{} per step", milliseconds(time)));
        tiles += &tile(&format!("{} per second", samples(summary)), &figure(pace), &note.unwrap_or_default());
    }
    if !summary.workers.is_empty() && summary.outcome.is_none() {
        let n_active = summary.workers.values().filter(|worker| worker.left.is_none()).count();
        let threads: u64 = summary
            .workers
            .values()
            .filter(|worker| worker.left.is_none())
            .map(|worker| u64::from(worker.n_threads))
            .sum();
        tiles += &tile("workers", &n_active.to_string(), &counted(threads, "threads"));
    }
    if tiles.is_empty() {
        return String::new();
    }
    format!(r#"<dl class="figures">{tiles}</dl>"#)
}
