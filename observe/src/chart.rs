//! Charts of curves as SVG, drawn by kuva: for the page, where the style sheet gives the colours, and for a file of its own.

mod figures;

use kuva::plot::{LinePlot, MarkerShape, ScatterPlot};
use kuva::render::layout::{Layout, TickFormat};
use kuva::render::plots::Plot;
use kuva::render::theme::Theme;
use kuva::render_to_svg;

pub use figures::curves_svg;
pub(crate) use figures::{figure_charts, figure_curves};

use crate::series::Point;
use crate::text::{escape, figure, float_len, grouped, rounded};

/// Distinct colours of curves, after which they repeat with dashes.
pub(crate) const COLOURS: usize = 7;
/// Points of a curve that are drawn: a chart is some 400 pixels wide.
const POINTS_MAX: usize = 240;
/// Values of a curve at most that have a dot each.
const DOTS_MAX: usize = 60;
const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 230.0;
/// What kuva leaves free below the label of the axis.
const MARGIN_BELOW: f64 = 9.0;

/// Curves over the same axis.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chart {
    /// Unique in the page.
    pub id: String,
    /// What the curves show, such as `loss`.
    pub title: String,
    /// What they are drawn over, such as `step`.
    pub x_label: &'static str,
    /// The curves, the first of them below the others.
    pub curves: Vec<Curve>,
    /// Which values have to be in the picture.
    pub extent: Extent,
}

/// A curve.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Curve {
    /// What sets it apart from the others, such as `validation`.
    pub label: String,
    /// Its values, in order.
    pub points: Vec<Point>,
    /// Its place among the colours.
    pub colour: usize,
    /// How it is drawn.
    pub style: CurveStyle,
}

/// How a curve is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CurveStyle {
    /// A line, in a band from the lowest to the highest where a point stands for several values.
    Line,
    /// A line with a dot at each value: there are few.
    Dots,
}

/// Which values have to be in the picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All.
    #[default]
    All,
    /// From 0, and without the few that are far above the others, as a first step is that takes a hundred times as long.
    Typical,
}

/// Where the colours come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colours {
    /// Variables of the page's style sheet, so that they follow dark and light.
    Page,
    /// Fixed ones, for paper and files. The palette of Okabe and Ito, which people with any kind of colour vision can tell apart.
    File,
}

impl Colours {
    /// The colour of a curve.
    pub(crate) fn curve(self, place: usize) -> String {
        const FIXED: [&str; COLOURS] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#555555"];
        let place = place % COLOURS;
        match self {
            Self::Page => format!("var(--curve-{})", place + 1),
            Self::File => FIXED[place].to_owned(),
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Page => "var(--text-soft)",
            Self::File => "#333333",
        }
    }

    fn grid(self) -> &'static str {
        match self {
            Self::Page => "var(--grid)",
            Self::File => "#dddddd",
        }
    }

    fn theme(self) -> Theme {
        Theme {
            background: "none".to_owned(),
            axis_color: self.text().to_owned(),
            grid_color: self.grid().to_owned(),
            tick_color: self.text().to_owned(),
            text_color: self.text().to_owned(),
            font_family: Some("system-ui, sans-serif".to_owned()),
            ..Theme::light()
        }
    }
}

impl Curve {
    /// A curve of values that follow one another closely, such as those of steps.
    pub(crate) fn line(label: impl Into<String>, points: &[Point], colour: usize) -> Self {
        let points = points.iter().copied().filter(|point| point.mean.is_finite()).collect();
        Self { label: label.into(), points, colour, style: CurveStyle::Line }
    }

    /// A curve of few values, such as those of epochs. Those that are not finite are left out.
    pub(crate) fn dots(label: impl Into<String>, values: impl Iterator<Item = (f64, f64)>, colour: usize) -> Self {
        let points = values
            .filter(|(_, value)| value.is_finite())
            .map(|(x, value)| Point { x, mean: value, min: value, max: value })
            .collect();
        Self { label: label.into(), points, colour, style: CurveStyle::Dots }
    }

    /// The last value.
    pub(crate) fn last(&self) -> Option<f64> {
        self.points.last().map(|point| point.mean)
    }

    fn describe(&self) -> Option<String> {
        let (first, last) = (self.points.first()?, self.points.last()?);
        Some(format!("{} from {} to {}", self.label, figure(first.mean), figure(last.mean)))
    }
}

impl Chart {
    /// Whether there is nothing to draw.
    pub(crate) fn is_empty(&self) -> bool {
        self.curves.iter().all(|curve| curve.points.is_empty())
    }

    /// The chart for the page: it scales, has no legend, and no colour of its own.
    pub(crate) fn svg(&self) -> String {
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {WIDTH} {}" role="img" aria-label="{}">{}</svg>"#,
            HEIGHT - MARGIN_BELOW,
            escape(&self.describe()),
            self.drawing(Colours::Page)
        )
    }

    /// What is to be seen, in words.
    fn describe(&self) -> String {
        let curves: Vec<String> = self.curves.iter().filter_map(Curve::describe).collect();
        format!("{} over {}s: {}", self.title, self.x_label, curves.join("; "))
    }

    /// What is inside the `svg` element.
    fn drawing(&self, colours: Colours) -> String {
        let curves: Vec<Curve> =
            self.curves.iter().map(|curve| Curve { points: thinned(&curve.points), ..curve.clone() }).collect();
        let x_range = x_range(&curves);
        let (low, high) = y_range(&curves, self.extent);
        let plots: Vec<Plot> = curves
            .iter()
            .filter(|curve| !curve.points.is_empty())
            .flat_map(|curve| plots(curve, (low, high), colours))
            .collect();
        let layout = Layout::new(x_range, (low, high))
            .with_width(WIDTH)
            .with_height(HEIGHT)
            .with_theme(colours.theme())
            .with_tick_size(13)
            .with_label_size(13)
            .with_ticks(5)
            .with_x_label(self.x_label)
            .with_x_label_offset(0.0, -9.0)
            .with_x_axis_min(x_range.0)
            .with_x_axis_max(x_range.1)
            .with_x_tick_format(TickFormat::Custom(std::sync::Arc::new(tick)))
            .with_y_tick_format(TickFormat::Custom(std::sync::Arc::new(tick)));
        let layout = match self.extent {
            Extent::All => layout,
            Extent::Typical => layout.with_y_axis_min(0.0),
        };
        format!(
            r#"<g font-family="system-ui, sans-serif" fill="{}">{}</g>"#,
            colours.text(),
            inner(&render_to_svg(plots, layout), &self.id)
        )
    }
}

fn plots(curve: &Curve, (low, high): (f64, f64), colours: Colours) -> Vec<Plot> {
    let colour = colours.curve(curve.colour);
    let xy = || curve.points.iter().map(|point| (point.x, point.mean));
    let line = LinePlot::new().with_data(xy()).with_color(colour.as_str()).with_stroke_width(1.8);
    let line = if curve.colour >= COLOURS { line.with_dashed() } else { line };
    let has_band = curve.points.iter().any(|point| point.min < point.max);
    let line = if has_band && curve.style == CurveStyle::Line {
        let band = |value: f64| value.clamp(low, high);
        let lows: Vec<f64> = curve.points.iter().map(|point| band(point.min)).collect();
        let highs: Vec<f64> = curve.points.iter().map(|point| band(point.max)).collect();
        line.with_band(lows, highs)
    } else {
        line
    };
    let has_dots = curve.points.len() == 1 || curve.style == CurveStyle::Dots && curve.points.len() <= DOTS_MAX;
    let dots = has_dots.then(|| {
        let dots = ScatterPlot::new().with_data(xy()).with_color(colour.as_str());
        dots.with_size(3.5).with_marker(MarkerShape::Circle).into()
    });
    [line.into()].into_iter().chain(dots).collect()
}

/// At most [`POINTS_MAX`] points, each for several neighbours where there are more.
fn thinned(points: &[Point]) -> Vec<Point> {
    let n_per_point = points.len().div_ceil(POINTS_MAX).max(1);
    let merged = points.chunks(n_per_point).map(|chunk| Point {
        x: chunk.last().map_or(0.0, |point| point.x),
        mean: chunk.iter().map(|point| point.mean).sum::<f64>() / float_len(chunk.len()),
        min: chunk.iter().map(|point| point.min).fold(f64::INFINITY, f64::min),
        max: chunk.iter().map(|point| point.max).fold(f64::NEG_INFINITY, f64::max),
    });
    merged.collect()
}

fn x_range(curves: &[Curve]) -> (f64, f64) {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let first = points().map(|point| point.x).fold(f64::INFINITY, f64::min);
    let last = points().map(|point| point.x).fold(f64::NEG_INFINITY, f64::max);
    if first > last {
        return (0.0, 1.0);
    }
    // From 0, where the curves begin nearer to it than to their end, and a little more around dots.
    let margin = (last - first).max(last / 2.0) / 80.0;
    let begin = if first <= 0.6 * last || first >= last { 0.0 } else { first - margin };
    (begin, if last > begin { last + margin } else { begin + 1.0 })
}

fn y_range(curves: &[Curve], extent: Extent) -> (f64, f64) {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let mut means: Vec<f64> = points().map(|point| point.mean).collect();
    means.sort_by(f64::total_cmp);
    let (Some(&lowest), Some(&highest)) = (means.first(), means.last()) else { return (0.0, 1.0) };
    if extent == Extent::Typical {
        let typical = means[(means.len() - 1) * 97 / 100];
        let high = if highest > 3.0 * typical { typical * 1.3 } else { highest };
        return (0.0, if high > 0.0 { high } else { 1.0 });
    }
    let span = highest - lowest;
    if span <= 0.0 {
        let around = if lowest == 0.0 { 0.5 } else { lowest.abs() / 10.0 };
        return (lowest - around, lowest + around);
    }
    // The band may be much wider than the curve: that must not flatten it.
    let low = points().map(|point| point.min).fold(lowest, f64::min).max(lowest - span * 0.15);
    let high = points().map(|point| point.max).fold(highest, f64::max).min(highest + span * 0.15);
    (low, high)
}

/// A tick's label: `0.25`, `1500`, `20k`, `1.5M`.
fn tick(value: f64) -> String {
    let trimmed = |value: f64, n_decimals: usize| {
        let text = format!("{value:.n_decimals$}");
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
    };
    let size = value.abs();
    if size < 1e-12 {
        "0".to_owned()
    } else if size >= 1e9 {
        format!("{value:.1e}")
    } else if size >= 1e6 {
        format!("{}M", trimmed(value / 1e6, 2))
    } else if size >= 1e4 {
        format!("{}k", trimmed(value / 1e3, 2))
    } else if size >= 1.0 && value.fract() == 0.0 && value > 0.0 {
        grouped(rounded(value))
    } else if size >= 1e-3 {
        trimmed(value, 4)
    } else {
        format!("{value:.1e}")
    }
}

/// What kuva draws, without the outermost element, its comment and its background; with names that no other chart has, and
/// short numbers.
fn inner(svg: &str, id: &str) -> String {
    let body = svg.split_once('>').map_or("", |(_, body)| body);
    let body = body.rsplit_once("</svg>").map_or(body, |(body, _)| body);
    let body = match body.strip_prefix("<!--").and_then(|rest| rest.split_once("-->")) {
        Some((_, rest)) => rest,
        None => body,
    };
    let body = match body.strip_prefix(r#"<rect width="100%" height="100%""#).and_then(|rest| rest.split_once("/>")) {
        Some((_, rest)) => rest,
        None => body,
    };
    with_short_numbers(&with_own_ids(body, id))
}

/// Renames kuva's clip paths, which it numbers through the life of a process.
fn with_own_ids(body: &str, id: &str) -> String {
    const PREFIX: &str = "kuva-clip-";
    let mut pieces = body.split(PREFIX);
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let is_name = out.ends_with(r#"id=""#) || out.ends_with("url(#");
        out.push_str(if is_name { id } else { PREFIX });
        out.push_str(if is_name { piece.trim_start_matches(|digit: char| digit.is_ascii_digit()) } else { piece });
    }
    out
}

/// Cuts numbers within tags after the second decimal, which is finer than a pixel.
fn with_short_numbers(body: &str) -> String {
    let mut out = String::with_capacity(body.len());
    let (mut is_tag, mut n_decimals) = (false, None);
    for character in body.chars() {
        match character {
            '<' => is_tag = true,
            '>' => is_tag = false,
            _ => {}
        }
        n_decimals = match (character, n_decimals) {
            ('.', _) if is_tag => Some(0),
            ('0'..='9', Some(n)) => Some(n + 1),
            _ => None,
        };
        if n_decimals.is_none_or(|n| n <= 2) {
            out.push(character);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noisy(n_points: u32) -> Vec<Point> {
        let points = (1..=n_points).map(|i| {
            let mean = 1.0 / f64::from(i);
            Point { x: f64::from(i), mean, min: mean * 0.9, max: mean * 1.2 }
        });
        points.collect()
    }

    #[test]
    fn chart_has_own_names_and_nothing_that_a_strict_policy_refuses() {
        let curves = vec![
            Curve::line("loss", &noisy(1000), 0),
            Curve::dots("val loss", [(300.0, 0.2), (600.0, f64::NAN)].into_iter(), 1),
        ];
        let chart = |id: &str| Chart {
            id: id.to_owned(),
            title: "loss <&> \"x\"".to_owned(),
            x_label: "step",
            curves: curves.clone(),
            ..Chart::default()
        };
        let svg = chart("chart-1").svg();
        assert!(svg.contains(r#"id="chart-1""#) && svg.contains("url(#chart-1)") && !svg.contains("kuva"), "{svg}");
        assert!(!svg.contains("style") && !svg.contains("<script") && !svg.contains("<!--"), "{svg}");
        assert!(svg.contains("var(--curve-1)") && svg.contains("var(--curve-2)") && svg.contains(">400<"), "{svg}");
        assert!(svg.len() < 25_000, "{} bytes", svg.len());
        assert_eq!(svg, chart("chart-1").svg());
    }

    #[test]
    fn chart_without_extent_is_drawn() {
        for curves in [
            vec![],
            vec![Curve::line("one", &noisy(1), 0)],
            vec![Curve::dots("same", [(1.0, 0.0), (2.0, 0.0)].into_iter(), 0)],
            vec![Curve::dots("huge", [(1.0, 1e300), (2.0, -1e300)].into_iter(), 9)],
        ] {
            let svg = Chart { x_label: "step", curves, ..Chart::default() }.svg();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn first_slow_step_does_not_flatten_the_others() {
        let mut points = noisy(1);
        points[0] = Point { x: 1.0, mean: 800.0, min: 800.0, max: 800.0 };
        points.extend((2..100).map(|i| Point { x: f64::from(i), mean: 2.0, min: 1.0, max: 3.0 }));
        let range = y_range(&[Curve::line("milliseconds", &points, 0)], Extent::Typical);
        assert_eq!(range, (0.0, 2.6));
    }

    #[test]
    fn ticks_are_short() {
        let labels: Vec<String> = [0.0, 0.25, 1500.0, 20_000.0, 1_500_000.0].into_iter().map(tick).collect();
        assert_eq!(labels, ["0", "0.25", "1\u{202f}500", "20k", "1.5M"]);
    }
}
