//! The figures of a run, whichever its task has: which charts there are, and a file with all of them.

use events::EpochRecord;

use super::{Chart, Colours, Curve, Extent, HEIGHT, WIDTH};
use crate::summary::Summary;
use crate::text::{cut, escape, figure, float, float_len, grouped};

/// The label of a curve of the training's figures.
const TRAINING: &str = "training";
/// The label of a curve of the validation's figures.
const VALIDATION: &str = "validation";
/// Charts at most.
const CHARTS_MAX: usize = 16;

/// A chart for the loss and for each metric, over steps, with the validation's beside the training's.
pub(crate) fn figure_charts(summary: &Summary) -> Vec<Chart> {
    let charts = figure_names(summary).into_iter().enumerate().map(|(place, name)| {
        let words = name.replace('_', " ");
        let training = match summary.step_figures.iter().find(|(other, series)| *other == name && !series.is_empty()) {
            Some((_, series)) => Curve::line(TRAINING, series.points(), 0),
            None => Curve::dots(TRAINING, epoch_values(summary, &name), 0),
        };
        let validation = Curve::dots(VALIDATION, epoch_values(summary, &format!("val_{name}")), 1);
        let curves = [training, validation].into_iter().filter(|curve| !curve.points.is_empty()).collect();
        Chart { id: format!("chart-{place}"), title: words, x_label: "step", curves, extent: Extent::All }
    });
    charts.filter(|chart| !chart.is_empty()).take(CHARTS_MAX).collect()
}

/// The curves of all charts, each with the name of what it shows, such as `val loss`.
pub(crate) fn figure_curves(summary: &Summary) -> impl Iterator<Item = (String, Curve)> {
    figure_charts(summary).into_iter().flat_map(|Chart { title, curves, .. }| {
        let name = move |curve: &Curve| match curve.label.as_str() {
            VALIDATION => format!("val {title}"),
            _ => title.clone(),
        };
        curves.into_iter().map(move |curve| (name(&curve), curve))
    })
}

/// Names of figures without `val_`, in the task's order, `loss` first.
fn figure_names(summary: &Summary) -> Vec<String> {
    let mut names = vec!["loss".to_owned()];
    let mut add = |name: &str| {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    };
    for (name, _) in &summary.step_figures {
        add(name);
    }
    if let Some(epoch) = summary.epochs.back() {
        for (name, _) in epoch.metrics.0.iter().chain(&epoch.val_metrics.0) {
            add(name.strip_prefix("val_").unwrap_or(name));
        }
    }
    names
}

/// The values of a figure by name, over the steps at the epochs' ends.
fn epoch_values<'a>(summary: &'a Summary, name: &'a str) -> impl Iterator<Item = (f64, f64)> + 'a {
    summary.epochs.iter().filter_map(move |epoch| Some((float(epoch.step), epoch_figure(epoch, name)?)))
}

/// A figure of an epoch by name, such as `val_accuracy`.
pub(crate) fn epoch_figure(epoch: &EpochRecord, name: &str) -> Option<f64> {
    match name {
        "loss" => Some(epoch.loss),
        "val_loss" => Some(epoch.val_loss),
        _ => {
            let mut figures = epoch.metrics.0.iter().chain(&epoch.val_metrics.0);
            figures.find(|(other, _)| other == name).map(|(_, value)| *value)
        }
    }
}

/// One SVG file with loss and metrics over steps, on white: for the run's folder and for documents.
pub fn curves_svg(summary: &Summary) -> String {
    /// Above all charts, and above each.
    const TITLE: f64 = 40.0;
    const HEAD: f64 = 44.0;
    let charts = figure_charts(summary);
    let n_columns = charts.len().clamp(1, 2);
    let (width, row) = (WIDTH * float_len(n_columns), HEAD + HEIGHT + 8.0);
    let height = TITLE + row * float_len(charts.len().div_ceil(n_columns).max(1));
    let cells: String = charts
        .iter()
        .enumerate()
        .map(|(place, chart)| {
            let (x, y) = (float_len(place % n_columns) * WIDTH, TITLE + float_len(place / n_columns) * row);
            format!(
                r#"<g transform="translate({x},{y})">{}<svg y="{HEAD}" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">{}</svg></g>"#,
                head(chart),
                chart.drawing(Colours::File)
            )
        })
        .collect();
    let nothing = r##"<text x="20" y="70" font-size="13" fill="#555555">no step yet</text>"##;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif"><title>{0}</title><rect width="100%" height="100%" fill="#ffffff"/><text x="20" y="27" font-size="17" font-weight="600" fill="#111111">{0}</text>{1}</svg>
"##,
        escape(&title(summary)),
        if charts.is_empty() { nothing } else { &cells },
    )
}

fn title(summary: &Summary) -> String {
    let step = summary.last_step.as_ref().map_or(0, |step| step.step);
    format!("{}: {} steps", cut(&summary.name, 60), grouped(step))
}

/// A chart's title and legend.
fn head(chart: &Chart) -> String {
    let mut end = 20.0;
    let legend: String = chart
        .curves
        .iter()
        .map(|curve| {
            let x = end;
            let last = curve.last().map(|last| format!(" {}", figure(last))).unwrap_or_default();
            let label = format!("{}{last}", cut(&curve.label, 30));
            end += 44.0 + 7.0 * float_len(label.chars().count());
            format!(
                r##"<line x1="{x}" y1="31" x2="{}" y2="31" stroke="{}" stroke-width="3"/><text x="{}" y="35.5" font-size="13" fill="#333333">{}</text>"##,
                x + 18.0,
                Colours::File.curve(curve.colour),
                x + 24.0,
                escape(&label)
            )
        })
        .collect();
    format!(
        r##"<text x="20" y="16" font-size="14" font-weight="600" fill="#111111">{}</text>{legend}"##,
        escape(&cut(&chart.title, 50))
    )
}
