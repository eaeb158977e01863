//! How a run is shown: a bar on a terminal, a plain line now and then elsewhere, JSON lines if asked for.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::bar;
use crate::say;
use events::{EpochRecord, StepRecord};

/// How often a plain line is printed.
const LINE_INTERVAL: Duration = Duration::from_secs(15);

/// What shows a run. With `json`, standard output holds nothing but JSON.
#[derive(Debug)]
pub struct Screen {
    bar: Option<ProgressBar>,
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
        let style = "{prefix} {wide_bar} step {pos}/{len}, {msg}, {eta} left";
        let bar = (!json && std::io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template(style).expect("a valid template");
            // Hidden until there is a step to show.
            ProgressBar::with_draw_target(Some(n_steps), ProgressDrawTarget::hidden()).with_style(style)
        });
        let now = Instant::now();
        Self { bar, json, n_epochs, last_line: now, n_samples: 0, samples, begun: now }
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
        let separator = if note.is_empty() { "" } else { ", " };
        let figures = format!(
            "loss {:.4}{}, {samples_per_second:.0} {}/s{separator}{note}",
            record.loss,
            record.metrics.describe(),
            self.samples,
        );
        let epoch = format!("epoch {}/{}", record.epoch, self.n_epochs);
        if let Some(bar) = &self.bar {
            if bar.is_hidden() {
                bar.set_draw_target(ProgressDrawTarget::stderr());
                bar::show(bar.clone());
            }
            bar.set_prefix(epoch);
            bar.set_message(figures);
            bar.set_position(record.step);
        } else {
            self.last_line = Instant::now();
            say!("{epoch}: step {}, {figures}", record.step);
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

    /// Prints a line for people, beside the bar.
    pub fn tell(&self, line: &str) {
        if !self.json {
            say!("{line}");
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
