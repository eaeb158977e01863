//! How a run is shown: a bar on a terminal, a plain line now and then elsewhere, JSON lines if asked for.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::bar;
use super::terminal::{can_draw, columns, drawing_size, wrapped};
use crate::say;
use events::{EpochRecord, StepRecord};

/// How often a plain line is printed.
const LINE_INTERVAL: Duration = Duration::from_secs(15);
/// Columns by which the second and later lines of a text are indented.
const INDENT: usize = 2;
/// Columns that the name of a row takes.
const NAME_COLUMNS: usize = 16;
/// On a terminal with fewer columns names take no more than they need, and the bar has no figures.
const WIDE_COLUMNS_MIN: usize = 60;
/// Columns that the bar takes at least beside its figures.
const BAR_COLUMNS_MIN: usize = 10;

/// What shows a run. With `json`, standard output holds nothing but JSON.
#[derive(Debug)]
pub struct Screen {
    bar: Option<ProgressBar>,
    /// Whether the bar is drawn for a narrow terminal, once it is drawn.
    is_narrow: Option<bool>,
    json: bool,
    n_epochs: u32,
    last_line: Instant,
    n_samples: u64,
    /// What samples are called.
    samples: &'static str,
    begun: Instant,
}

impl Screen {
    /// For a run of so many steps and epochs, counted from the run's very beginning. Shows nothing yet.
    pub fn new(samples: &'static str, n_steps: u64, n_epochs: u32, json: bool) -> Self {
        // Hidden until there is a step to show.
        let hidden = || ProgressBar::with_draw_target(Some(n_steps), ProgressDrawTarget::hidden());
        let bar = (!json && can_draw()).then(hidden);
        let now = Instant::now();
        Self { bar, is_narrow: None, json, n_epochs, last_line: now, n_samples: 0, samples, begun: now }
    }

    /// Says what the run is.
    pub fn begin(&self, lines: &[String]) {
        for line in lines {
            self.tell(line);
        }
    }

    /// For a run that goes on after `step`, before its first own step: what came before counts neither as work done now
    /// nor for the time left.
    pub fn set_position(&mut self, step: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(step);
            bar.reset_eta();
        }
        (self.n_samples, self.begun) = (0, Instant::now());
    }

    /// Shows a step. The note, such as `4/4 workers`, stands at the end; it may be empty.
    #[expect(clippy::cast_precision_loss, reason = "counts of samples are far below 2^53")]
    pub fn step(&mut self, record: &StepRecord, note: &str) {
        self.n_samples += record.n_samples;
        let samples_per_second = self.n_samples as f64 / self.begun.elapsed().as_secs_f64();
        let is_line_due = self.last_line.elapsed() >= LINE_INTERVAL;
        if self.json || (self.bar.is_none() && !is_line_due) {
            return;
        }
        // Each with what stands before it; on a bar that has not enough room, the least important are left out.
        let note = if note.is_empty() { String::new() } else { format!(", {note}") };
        let figures = [
            format!(", loss {:.4}", record.loss),
            record.metrics.describe(),
            format!(", {samples_per_second:.0} {}/s", self.samples),
            note,
        ];
        let epoch = format!("epoch {}/{}", record.epoch, self.n_epochs);
        if let Some(bar) = &self.bar {
            let n_columns = drawing_size().map_or(80, |(columns, _)| columns.into());
            if bar.is_hidden() {
                bar.set_draw_target(bar::draw_target());
                bar::show(bar.clone());
            }
            let is_narrow = n_columns < WIDE_COLUMNS_MIN;
            if self.is_narrow.replace(is_narrow) != Some(is_narrow) {
                bar.set_style(style(is_narrow));
            }
            let n_steps = bar.length().unwrap_or(record.step);
            let fixed = format!("{epoch}  step {n_steps}/{n_steps}, 10m left").len() + BAR_COLUMNS_MIN;
            bar.set_prefix(epoch);
            bar.set_message(what_fits(figures, [0, 2, 3, 1], n_columns.saturating_sub(fixed)));
            bar.set_position(record.step);
        } else {
            self.last_line = Instant::now();
            say!("{epoch}: step {}{}", record.step, figures.concat());
        }
    }

    /// Shows an epoch.
    pub fn epoch(&mut self, record: &EpochRecord) {
        self.json_line(&json!({ "event": "epoch", "record": record }));
        self.tell(&format!(
            "epoch {}/{}: {:.1} s, loss {:.4}{}, val loss {:.4}{}, {:.0} {}/s",
            record.epoch,
            self.n_epochs,
            record.seconds,
            record.loss,
            record.metrics.describe(),
            record.val_loss,
            record.val_metrics.describe(),
            record.samples_per_second,
            self.samples,
        ));
        (self.n_samples, self.begun) = (0, Instant::now());
    }

    /// Prints a line for people, beside the bar; several where the terminal is narrow.
    pub fn tell(&self, line: &str) {
        self.print(line, columns(), INDENT);
    }

    /// Prints a row of a table: its name, and what there is to say. A row without a name belongs to the one before.
    pub fn row(&self, name: &str, text: &str) {
        let columns = columns();
        let (row, indent) = row(name, text, columns);
        self.print(&row, columns, indent);
    }

    /// Prints a row with a command, in one piece, so that it can be copied.
    pub fn command_row(&self, name: &str, command: &str) {
        self.print(&row(name, command, columns()).0, None, 0);
    }

    fn print(&self, line: &str, columns: Option<usize>, indent: usize) {
        if self.json {
            return;
        }
        match columns {
            Some(columns) => say!("{}", wrapped(line, columns, indent)),
            None => say!("{line}"),
        }
    }

    /// Prints a line for programs, if that is what was asked for.
    pub fn json_line(&self, line: &Value) {
        if self.json {
            say!("{line}");
        }
    }

    /// Takes the bar off the screen. Lines may still follow.
    pub fn finish(&mut self) {
        bar::hide();
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Screen {
    /// A run that ends with an error leaves no bar behind that its message would be torn by.
    fn drop(&mut self) {
        self.finish();
    }
}

fn style(is_narrow: bool) -> ProgressStyle {
    let template = if is_narrow {
        "{prefix} {wide_bar} {pos}/{len}, {eta} left"
    } else {
        "{prefix} {wide_bar} step {pos}/{len}{msg}, {eta} left"
    };
    ProgressStyle::with_template(template).expect("a valid template")
}

/// A row of a table, and by how much its second and later lines are indented.
fn row(name: &str, text: &str, columns: Option<usize>) -> (String, usize) {
    let is_narrow = columns.is_some_and(|columns| columns < WIDE_COLUMNS_MIN);
    match name {
        "" if is_narrow => (format!("{:INDENT$}{text}", ""), INDENT),
        _ if is_narrow => (format!("{name}: {text}"), INDENT),
        _ => (format!("{name:NAME_COLUMNS$}{text}"), NAME_COLUMNS),
    }
}

/// The texts in their order, without those for which there is no room when the more important ones have theirs.
fn what_fits<const N: usize>(mut texts: [String; N], by_importance: [usize; N], mut n_columns: usize) -> String {
    for place in by_importance {
        match n_columns.checked_sub(texts[place].chars().count()) {
            Some(n_left) => n_columns = n_left,
            None => texts[place].clear(),
        }
    }
    texts.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar_leaves_out_least_important_figures() {
        let texts = || [", loss 0.3", ", accuracy 0.88", ", 5325 images/s", ", 2/2 workers"].map(str::to_owned);
        let check = |n_columns, expected: &str| assert_eq!(what_fits(texts(), [0, 2, 3, 1], n_columns), expected);
        check(80, ", loss 0.3, accuracy 0.88, 5325 images/s, 2/2 workers");
        check(52, ", loss 0.3, 5325 images/s, 2/2 workers");
        check(30, ", loss 0.3, 5325 images/s");
        check(12, ", loss 0.3");
        check(9, "");
    }

    #[test]
    fn row_has_column_of_names_where_there_is_room() {
        assert_eq!(row("loss", "0.25", None), ("loss            0.25".to_owned(), 16));
        assert_eq!(row("", "accuracy 0.5", Some(80)), ("                accuracy 0.5".to_owned(), 16));
        assert_eq!(row("loss", "0.25", Some(40)), ("loss: 0.25".to_owned(), 2));
        assert_eq!(row("", "accuracy 0.5", Some(40)), ("  accuracy 0.5".to_owned(), 2));
    }
}
