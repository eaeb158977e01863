//! Where a step's time goes: medians over the snapshots, since the first step after a validation or a stall always has one.

use std::time::Duration;

use events::{Snapshot, StepCosts};

use super::workers::is_single_process;
use super::{heading, nothing_yet};
use crate::summary::Summary;
use crate::text::milliseconds;

/// A part of a step's time.
struct Part {
    name: &'static str,
    class: &'static str,
    milliseconds: f64,
    what: &'static str,
}

pub(super) fn html(summary: &Summary) -> String {
    let comes_no_more = summary.outcome.is_some() && summary.snapshots.is_empty();
    if is_single_process(summary) || comes_no_more {
        return String::new();
    }
    if summary.snapshots.is_empty() {
        let text = "The parts of a step are shown here, once a second, from the first step on.";
        return heading("costs", "Where a step's time goes", "") + &nothing_yet(text);
    }
    let total = median(summary, |snapshot| snapshot.milliseconds);
    let parts = parts(summary, total);
    let whole = parts.iter().map(|part| part.milliseconds).sum::<f64>().max(1e-9);
    let note = format!("{} per step, the median of {} steps", milliseconds(total), summary.snapshots.len());
    let beside = format!(
        r#"<p class="soft">Beside the wait: decode {}, journal {}.</p>"#,
        milliseconds(median_cost(summary, |costs| costs.decode)),
        milliseconds(median_cost(summary, |costs| costs.journal))
    );
    heading("costs", "Where a step's time goes", &note) + &bar(&parts, whole) + &table(&parts, whole) + &beside
}

/// The median over the snapshots; 0 if there is none.
fn median(summary: &Summary, of: impl Fn(&Snapshot) -> f64) -> f64 {
    let mut values: Vec<f64> = summary.snapshots.iter().map(|(_, snapshot)| of(snapshot)).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// The median of a part, in milliseconds.
fn median_cost(summary: &Summary, part: impl Fn(&StepCosts) -> Duration) -> f64 {
    median(summary, |snapshot| 1e3 * part(&snapshot.costs).as_secs_f64())
}

/// The parts that follow one another. The wait for messages lasts as long as the slowest worker computes, and longer.
fn parts(summary: &Summary, total: f64) -> Vec<Part> {
    let compute = median_cost(summary, |costs| costs.compute);
    let wait = (median_cost(summary, |costs| costs.wait + costs.journal) - compute).max(0.0);
    let [reduce, update, encode, send] = [
        median_cost(summary, |costs| costs.reduce),
        median_cost(summary, |costs| costs.update),
        median_cost(summary, |costs| costs.encode),
        median_cost(summary, |costs| costs.send),
    ];
    let mut parts = vec![
        Part { name: "compute", class: "f-compute", milliseconds: compute, what: "the slowest worker computes" },
        Part { name: "wait", class: "f-wait", milliseconds: wait, what: "messages on their way, and queues" },
        Part { name: "reduce", class: "f-reduce", milliseconds: reduce, what: "adds the shards" },
        Part { name: "update", class: "f-update", milliseconds: update, what: "changes the parameters" },
        Part { name: "encode", class: "f-encode", milliseconds: encode, what: "gradient to bytes" },
        Part { name: "send", class: "f-send", milliseconds: send, what: "hands it to the sessions" },
    ];
    let rest = total - parts.iter().map(|part| part.milliseconds).sum::<f64>();
    parts.push(Part { name: "other", class: "f-other", milliseconds: rest.max(0.0), what: "everything else" });
    parts
}

fn bar(parts: &[Part], whole: f64) -> String {
    let mut end = 0.0;
    let rects: String = parts
        .iter()
        .map(|part| {
            let (x, width) = (end, 100.0 * part.milliseconds / whole);
            end += width;
            format!(
                r#"<rect class="{}" x="{x:.2}%" width="{width:.2}%" height="100%"><title>{}: {}</title></rect>"#,
                part.class,
                part.name,
                milliseconds(part.milliseconds)
            )
        })
        .collect();
    format!(r#"<svg class="stack" role="img" aria-label="the parts of a step, as in the table below">{rects}</svg>"#)
}

fn table(parts: &[Part], whole: f64) -> String {
    let rows: String = parts
        .iter()
        .map(|part| {
            format!(
                r#"<tr><th scope="row"><svg class="swatch" viewBox="0 0 18 10" aria-hidden="true"><rect class="{}" width="18" height="10" rx="2"/></svg>{}</th><td>{}</td><td>{:.1} %</td><td class="text soft">{}</td></tr>"#,
                part.class,
                part.name,
                milliseconds(part.milliseconds),
                100.0 * part.milliseconds / whole,
                part.what
            )
        })
        .collect();
    format!(
        r#"<div class="scroll" id="costs-scroll"><table class="costs"><thead class="hidden"><tr><th scope="col">part</th><th scope="col">time</th><th scope="col">share</th><th scope="col">what it is</th></tr></thead><tbody>{rows}</tbody></table></div>"#
    )
}
