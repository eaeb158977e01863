//! Several runs side by side.

use std::collections::BTreeMap;

use super::curves::chart_figure;
use super::state::{State, recent, samples};
use super::{heading, nothing_yet, whole};
use crate::chart::{Chart, Curve, Extent, figure_curves};
use crate::settings::settings_of;
use crate::summary::Summary;
use crate::text::{cut, duration, escape, figure, grouped, milliseconds, url_segment};

/// Settings that differ and are listed at most.
const DIFFERENCES_MAX: usize = 40;
/// Characters of a setting at most.
const VALUE_CHARS_MAX: usize = 48;

/// What a run is, beside its settings: these differ always, and say nothing of how it trains.
const NOT_COMPARED: [&str; 4] = ["result", "run_id", "incarnation", "resumed_from"];

/// A page that shows several runs side by side: a table, and their curves over one another.
pub fn comparison(summaries: &[Summary]) -> String {
    let table = heading("table", "Comparison", &format!("{} runs", summaries.len()))
        .replace("<h2", "<h1")
        .replace("</h2", "</h1")
        + &if summaries.is_empty() {
            nothing_yet("None of the runs that were asked for is here.")
        } else {
            table(summaries)
        };
    let charts: String = charts(summaries).iter().map(chart_figure).collect();
    let curves = if charts.is_empty() {
        nothing_yet("None of these runs has taken a step.")
    } else {
        format!(r#"<div class="charts">{charts}</div>"#)
    };
    let main = format!(
        r#"<main id="main"><section id="table" class="card wide" aria-labelledby="table-heading">{table}</section><section id="curves" class="card wide" aria-labelledby="curves-heading">{}{curves}</section></main>"#,
        heading("curves", "Learning curves", "")
    );
    let names: Vec<String> = summaries.iter().map(|summary| cut(&summary.name, 30)).collect();
    whole(&format!("{} · telar", names.join(", ")), "", "", &main)
}

/// A row of the table: its title, and what each run has.
struct Row {
    title: String,
    cells: Vec<String>,
}

fn table(summaries: &[Summary]) -> String {
    let head: String = summaries
        .iter()
        .map(|summary| {
            format!(
                r#"<th scope="col"><a href="/runs/{}">{}</a></th>"#,
                url_segment(&summary.name),
                escape(&cut(&summary.name, 60))
            )
        })
        .collect();
    let rows: String = result_rows(summaries).into_iter().map(|row| row_html(&row)).collect();
    let differences: String = difference_rows(summaries).into_iter().map(|row| row_html(&row)).collect();
    let n_columns = summaries.len() + 1;
    let differences = if differences.is_empty() {
        differences
    } else {
        format!(
            r#"<tbody><tr><th class="part" colspan="{n_columns}" scope="colgroup">settings that differ</th></tr>{differences}</tbody>"#
        )
    };
    format!(
        r#"<div class="scroll" id="table-scroll" tabindex="0" role="region" aria-labelledby="table-heading"><table class="compared"><thead><tr><th scope="col">run</th>{head}</tr></thead><tbody>{rows}</tbody>{differences}</table></div>"#
    )
}

fn row_html(Row { title, cells }: &Row) -> String {
    let cells: String = cells.iter().map(|cell| format!("<td>{cell}</td>")).collect();
    format!(r#"<tr><th scope="row">{}</th>{cells}</tr>"#, escape(title))
}

/// How the runs went.
fn result_rows(summaries: &[Summary]) -> Vec<Row> {
    let row = |title: &str, cell: &dyn Fn(&Summary) -> String| Row {
        title: title.to_owned(),
        cells: summaries.iter().map(cell).collect(),
    };
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
    let task = |summary: &Summary| {
        let task = summary.description.pointer("/recipe/task").and_then(|task| task.as_str());
        escape(&cut(task.unwrap_or("–"), 60)).to_string()
    };
    let best = |summary: &Summary| {
        let best = summary.epochs.iter().filter(|epoch| epoch.val_loss.is_finite());
        let best = best.min_by(|a, b| a.val_loss.total_cmp(&b.val_loss));
        or_dash(best.map(|epoch| format!("{} in epoch {}", figure(epoch.val_loss), epoch.epoch)))
    };
    let last = |summary: &Summary| or_dash(summary.epochs.back().map(|epoch| figure(epoch.val_loss)));
    let steps = |summary: &Summary| {
        let step = summary.last_step.as_ref().map_or(0, |step| step.step);
        if summary.n_steps > 0 { format!("{} of {}", grouped(step), grouped(summary.n_steps)) } else { grouped(step) }
    };
    let pace = |summary: &Summary| {
        or_dash(recent(&summary.pace).map(|pace| format!("{} {}", figure(pace), escape(samples(summary)))))
    };
    let time = |summary: &Summary| or_dash(recent(&summary.step_milliseconds).map(milliseconds));
    let trained = |summary: &Summary| {
        let seconds: f64 = summary.epochs.iter().map(|epoch| epoch.seconds).filter(|seconds| seconds.is_finite()).sum();
        if summary.epochs.is_empty() { "–".to_owned() } else { duration(seconds) }
    };
    let mut rows = vec![
        row("outcome", &|summary| State::of(summary).badge()),
        row("task", &task),
        row("steps", &steps),
        row("best val loss", &best),
        row("last val loss", &last),
    ];
    for name in metric_names(summaries) {
        let value = |summary: &Summary| {
            let figures = summary.epochs.back().map(|epoch| &epoch.val_metrics.0);
            let value = figures.and_then(|figures| figures.iter().find(|(other, _)| *other == name));
            or_dash(value.map(|(_, value)| figure(*value)))
        };
        rows.push(row(&format!("last {}", name.replace('_', " ")), &value));
    }
    rows.extend([row("samples per second", &pace), row("time per step", &time), row("time of training", &trained)]);
    rows
}

/// Names of the validation's metrics, over all runs.
fn metric_names(summaries: &[Summary]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for epoch in summaries.iter().filter_map(|summary| summary.epochs.back()) {
        for (name, _) in &epoch.val_metrics.0 {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
    }
    names
}

/// Settings that are not the same in all runs.
fn difference_rows(summaries: &[Summary]) -> Vec<Row> {
    let settings: Vec<BTreeMap<String, String>> = summaries
        .iter()
        .map(|summary| {
            let mut description = summary.description.clone();
            if let Some(fields) = description.as_object_mut() {
                fields.retain(|key, _| !NOT_COMPARED.contains(&key.as_str()));
            }
            settings_of(&description).into_iter().collect()
        })
        .collect();
    let mut names: Vec<&String> = settings.iter().flat_map(BTreeMap::keys).collect();
    names.sort_unstable();
    names.dedup();
    let differs = |name: &&String| settings.iter().any(|others| others.get(*name) != settings[0].get(*name));
    let rows = names.into_iter().filter(differs).take(DIFFERENCES_MAX).map(|name| Row {
        title: name.clone(),
        cells: settings
            .iter()
            .map(|settings| {
                settings.get(name).map_or("–".to_owned(), |value| escape(&cut(value, VALUE_CHARS_MAX)).to_string())
            })
            .collect(),
    });
    rows.collect()
}

/// A chart for each figure, with a curve for each run that has it.
fn charts(summaries: &[Summary]) -> Vec<Chart> {
    let mut charts: Vec<Chart> = Vec::new();
    for (place, summary) in summaries.iter().enumerate() {
        for (title, curve) in figure_curves(summary) {
            let curve = Curve { label: cut(&summary.name, 40), colour: place, ..curve };
            match charts.iter_mut().find(|chart| chart.title == title) {
                Some(chart) => chart.curves.push(curve),
                None => charts.push(Chart {
                    id: format!("chart-{}", charts.len()),
                    title,
                    x_label: "step",
                    curves: vec![curve],
                    extent: Extent::All,
                }),
            }
        }
    }
    charts
}
