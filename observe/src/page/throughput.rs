//! Samples per second and milliseconds per step, over steps.

use super::curves::chart_figure;
use super::state::samples;
use super::{heading, nothing_yet};
use crate::chart::{Chart, Curve, Extent};
use crate::summary::Summary;

pub(super) fn html(summary: &Summary) -> String {
    let head = heading("throughput", "Throughput", "");
    let pace = format!("{} per second", samples(summary));
    let charts: String =
        [("pace", pace.as_str(), &summary.pace, 2), ("time", "ms per step", &summary.step_milliseconds, 3)]
            .into_iter()
            .filter(|(_, _, series, _)| !series.is_empty())
            .map(|(name, title, series, colour)| {
                chart_figure(&Chart {
                    id: format!("throughput-{name}"),
                    title: title.to_owned(),
                    x_label: "step",
                    curves: vec![Curve::line("last", series.points(), colour)],
                    extent: Extent::Typical,
                })
            })
            .collect();
    if charts.is_empty() {
        return head + &nothing_yet("How fast steps are taken is drawn here from the first step on.");
    }
    format!(r#"{head}<div class="charts">{charts}</div>"#)
}
