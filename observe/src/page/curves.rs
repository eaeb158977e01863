//! Loss and metrics over steps, and their figures by epoch.

use super::{heading, nothing_yet};
use crate::chart::{COLOURS, Chart, Curve, figure_charts};
use crate::summary::Summary;
use crate::text::{duration, escape, figure, grouped};

/// Epochs whose figures are listed; of more the newest.
const ROWS_MAX: usize = 100;

pub(super) fn html(summary: &Summary) -> String {
    let charts = figure_charts(summary);
    let note = if summary.epochs.is_empty() { "the first epoch is validated at its end" } else { "" };
    let head = heading("curves", "Learning curves", note);
    if charts.is_empty() {
        return head + &nothing_yet("Loss and metrics are drawn here from the first step on.");
    }
    let charts: String = charts.iter().map(chart_figure).collect();
    format!(r#"{head}<div class="charts">{charts}</div>{}"#, epochs(summary))
}

/// A chart with its title and legend.
pub(super) fn chart_figure(chart: &Chart) -> String {
    let items: String = chart.curves.iter().map(legend_item).collect();
    format!(
        r#"<figure><figcaption><h3>{}</h3><ul class="legend">{items}</ul></figcaption>{}</figure>"#,
        escape(&chart.title),
        chart.svg()
    )
}

fn legend_item(curve: &Curve) -> String {
    let value = curve.last().map(|last| format!(" <b>{}</b>", figure(last))).unwrap_or_default();
    let dashes = if curve.colour >= COLOURS { r#" stroke-dasharray="5 3""# } else { "" };
    format!(
        r#"<li><svg class="swatch" viewBox="0 0 18 8" aria-hidden="true"><line x1="1" x2="17" y1="4" y2="4" stroke="var(--curve-{})"{dashes}/></svg>{}{value}</li>"#,
        curve.colour % COLOURS + 1,
        escape(&curve.label)
    )
}

/// The figures of the epochs in a table, the newest first.
fn epochs(summary: &Summary) -> String {
    let Some(newest) = summary.epochs.back() else { return String::new() };
    let names =
        |figures: &events::Figures| figures.0.iter().map(|(name, _)| name.replace('_', " ")).collect::<Vec<_>>();
    let mut titles = vec!["epoch".to_owned(), "step".to_owned(), "loss".to_owned()];
    titles.extend(names(&newest.metrics));
    titles.push("val loss".to_owned());
    titles.extend(names(&newest.val_metrics));
    titles.extend(["time".to_owned(), format!("{} per second", newest.samples)]);
    let head: String = titles.iter().map(|title| format!(r#"<th scope="col">{}</th>"#, escape(title))).collect();
    let rows: String = summary.epochs.iter().rev().take(ROWS_MAX).map(|epoch| row(epoch)).collect();
    let more = match summary.epochs.len() {
        n if n > ROWS_MAX => format!(", the newest {ROWS_MAX} of {n}"),
        _ => String::new(),
    };
    format!(
        r#"<details id="epochs"><summary>Figures by epoch{more}</summary><div class="scroll" id="epochs-scroll" tabindex="0" role="region" aria-label="figures by epoch"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"#
    )
}

fn row(epoch: &events::EpochRecord) -> String {
    let cell = |text: &str| format!("<td>{}</td>", escape(text));
    let cells =
        |figures: &events::Figures| figures.0.iter().map(|(_, value)| cell(&figure(*value))).collect::<String>();
    let best = if epoch.is_best { r#" <span class="tag">best</span>"# } else { "" };
    [
        format!(r#"<tr><th scope="row">{}</th>"#, epoch.epoch),
        cell(&grouped(epoch.step)),
        cell(&figure(epoch.loss)),
        cells(&epoch.metrics),
        format!("<td>{}{best}</td>", figure(epoch.val_loss)),
        cells(&epoch.val_metrics),
        cell(&duration(epoch.seconds)),
        cell(&figure(epoch.samples_per_second)),
        "</tr>".to_owned(),
    ]
    .concat()
}
