//! Lanes over a common time: rows with a name and bars. Positions are percentages, so that lanes take any width while text
//! keeps its size.

use crate::text::{cut, escape, float_len};

/// A row.
#[derive(Clone, Debug, Default)]
pub(super) struct Lane {
    pub name: String,
    pub bars: Vec<Bar>,
    pub marks: Vec<Mark>,
}

/// A span of time in a lane.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    pub from: f64,
    pub to: f64,
    /// A class that gives the colour.
    pub class: &'static str,
    pub height: Height,
    /// Stands in the bar if it is wide enough.
    pub label: String,
    /// What a pointer is shown.
    pub title: String,
}

/// How high a bar is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Height {
    Full,
    /// In the middle.
    Thin,
    /// Below a full one.
    Under,
}

/// A moment in a lane.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    pub at: f64,
    pub class: &'static str,
    /// A path around (0, 0), some 8 wide.
    pub path: &'static str,
    pub title: String,
}

/// The time that all lanes have.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    pub from: f64,
    pub to: f64,
    pub ticks: Vec<(f64, String)>,
}

/// A cross, for what ended or failed.
pub(super) const CROSS: &str = "M-4 -4l8 8M4 -4l-8 8";
/// A tick, for what was recovered from.
pub(super) const TICK: &str = "M-4 0l3 4l5 -8";
/// Characters of a lane's name.
const NAME_CHARS_MAX: usize = 40;

impl Axis {
    /// Round ticks from 0 to `to`, labelled by `label`.
    pub(super) fn from_zero(to: f64, label: impl Fn(f64) -> String) -> Self {
        let raw = (to / 5.0).max(1e-9);
        let power = 10_f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|step| *step >= raw).unwrap_or(raw);
        let ticks =
            (0..=6_u32).map(|n| f64::from(n) * step).take_while(|at| *at <= to).map(|at| (at, label(at))).collect();
        Self { from: 0.0, to, ticks }
    }

    fn percent(&self, at: f64) -> f64 {
        let span = self.to - self.from;
        if span > 0.0 { (100.0 * (at - self.from) / span).clamp(0.0, 100.0) } else { 0.0 }
    }
}

/// The lanes, and below them the axis; `id` names what scrolls, `label` says what it is.
pub(super) fn html(lanes: &[Lane], axis: &Axis, id: &str, label: &str) -> String {
    let grid: String = axis
        .ticks
        .iter()
        .map(|(at, _)| format!(r#"<line class="grid" x1="{0:.2}%" x2="{0:.2}%" y1="0" y2="100%"/>"#, axis.percent(*at)))
        .collect();
    let rows: String = lanes.iter().map(|lane| row(lane, axis, &grid)).collect();
    let labels: String = axis
        .ticks
        .iter()
        .map(|(at, text)| {
            let percent = axis.percent(*at);
            let anchor = if percent < 4.0 {
                "start"
            } else if percent > 96.0 {
                "end"
            } else {
                "middle"
            };
            format!(r#"<text x="{percent:.2}%" y="13" text-anchor="{anchor}">{}</text>"#, escape(text))
        })
        .collect();
    format!(
        r#"<div class="lanes" id="{id}" tabindex="0" role="region" aria-label="{}"><ul>{rows}</ul><div class="lane axis" aria-hidden="true"><span></span><svg>{labels}</svg></div></div>"#,
        escape(label)
    )
}

fn row(lane: &Lane, axis: &Axis, grid: &str) -> String {
    let bars: String = lane.bars.iter().map(|bar| bar_svg(bar, axis)).collect();
    let marks: String = lane.marks.iter().map(|mark| mark_svg(mark, axis)).collect();
    format!(
        r#"<li class="lane"><span class="lane-name">{}</span><svg role="img" aria-label="{}">{grid}{bars}{marks}</svg></li>"#,
        escape(&cut(&lane.name, NAME_CHARS_MAX)),
        escape(&describe(lane)),
    )
}

/// A lane in words: the first of what is in it.
fn describe(lane: &Lane) -> String {
    let titles =
        lane.bars.iter().map(|bar| bar.title.as_str()).chain(lane.marks.iter().map(|mark| mark.title.as_str()));
    let titles: Vec<&str> = titles.filter(|title| !title.is_empty()).take(12).collect();
    if titles.is_empty() { "nothing".to_owned() } else { titles.join("; ") }
}

fn bar_svg(bar: &Bar, axis: &Axis) -> String {
    let (from, to) = (axis.percent(bar.from), axis.percent(bar.to));
    let width = (to - from).max(0.25);
    let (y, height) = match bar.height {
        Height::Full => (2, 14),
        Height::Thin => (8, 3),
        Height::Under => (17, 3),
    };
    let is_wide = width > 2.5 * float_len(bar.label.chars().count() + 1);
    let label = if is_wide && !bar.label.is_empty() {
        format!(
            r#"<text class="in-bar" x="{:.2}%" y="13" text-anchor="middle">{}</text>"#,
            from + width / 2.0,
            escape(&bar.label)
        )
    } else {
        String::new()
    };
    format!(
        r#"<g><title>{}</title><rect class="{}" x="{from:.2}%" y="{y}" width="{width:.2}%" height="{height}"/>{label}</g>"#,
        escape(&bar.title),
        bar.class,
    )
}

fn mark_svg(mark: &Mark, axis: &Axis) -> String {
    format!(
        r#"<svg class="mark {}" x="{:.2}%" y="9" overflow="visible"><title>{}</title><path d="{}"/></svg>"#,
        mark.class,
        axis.percent(mark.at),
        escape(&mark.title),
        mark.path
    )
}

/// A legend for bars: class and words.
pub(super) fn legend(entries: &[(&str, &str)]) -> String {
    let items: String = entries
        .iter()
        .map(|(class, text)| {
            format!(
                r#"<li><svg class="swatch" viewBox="0 0 18 10" aria-hidden="true"><rect class="{class}" width="18" height="10" rx="2"/></svg>{}</li>"#,
                escape(text)
            )
        })
        .collect();
    format!(r#"<ul class="legend">{items}</ul>"#)
}
