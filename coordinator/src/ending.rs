//! What the coordinator says to people at the end of a run: losses, speed, where a step's time went, what was recovered from,
//! and the files to look at.

use std::fmt::Write;
use std::path::Path;

use engine::early_stopping::BestEpoch;
use engine::report::{RunFolder, best_lines};
use events::{CostTotals, EpochRecord};
use observe::summary::Faults;

use crate::training::Tally;

/// What there is to say of a run that has ended as it should.
#[derive(Debug)]
pub struct Ending<'a> {
    /// Updates applied.
    pub step: u64,
    /// The epoch that was validated last.
    pub last_epoch: Option<&'a EpochRecord>,
    /// The best one.
    pub best: Option<BestEpoch>,
    /// Whether it ended since the validation loss did not become lower.
    pub has_stopped_early: bool,
    /// Where the time went.
    pub costs: &'a CostTotals,
    /// What samples are called.
    pub samples: &'a str,
    /// What was recovered from.
    pub faults: Faults,
    /// What the core counted.
    pub tally: &'a Tally,
    /// Compute classes that took part.
    pub n_classes: usize,
    /// The files.
    pub folder: &'a RunFolder,
    /// Name of the parameters.
    pub params_blake3: &'a str,
    /// What shows the run again, as it is typed.
    pub show_command: String,
}

/// Characters that a row's name takes.
const NAME_WIDTH: usize = 16;

impl Ending<'_> {
    /// The lines, a row each: its name, and what there is to say.
    pub fn lines(&self) -> Vec<String> {
        let mut rows: Vec<(&str, String)> = Vec::new();
        if let Some(record) = self.last_epoch {
            let EpochRecord { epoch, step, loss, metrics, val_loss, val_metrics, .. } = record;
            rows.push(("trained", format!("{epoch} epochs, {step} steps")));
            rows.push(("loss", format!("{loss:.4}, val loss {val_loss:.4}")));
            for ((name, value), (_, val_value)) in metrics.0.iter().zip(&val_metrics.0) {
                rows.push(("", format!("{} {value:.4}, in validation {val_value:.4}", name.replace('_', " "))));
            }
        }
        if let Some(pace) = self.costs.samples_per_second() {
            rows.push(("speed", format!("{pace:.0} {}/s", self.samples)));
        }
        rows.extend(self.costs.describe().map(|text| ("time", text)));
        rows.push(("recovered from", recovered(&self.faults)));
        rows.extend(self.tally.describe().into_iter().map(|text| ("", text)));
        if self.n_classes > 1 {
            let text = "workers of several compute classes took part: another run may differ in bits";
            rows.push(("", text.to_owned()));
        }
        let mut lines: Vec<String> = rows.into_iter().map(|(name, text)| row(name, &text)).collect();
        let last_epoch = self.last_epoch.map(|record| record.epoch);
        lines.extend(best_lines(self.best, last_epoch, self.has_stopped_early, self.folder));
        if self.step > 0 {
            lines.push(format!("weights: {}", self.folder.weights_path().display()));
            lines.push(format!("parameters blake3: {}", self.params_blake3));
        }
        lines.push(format!("files: {}", self.files().join(", ")));
        lines.push(format!("page: {}", self.show_command));
        lines
    }

    fn files(&self) -> Vec<String> {
        let path = |name: &str| self.folder.path().join(name);
        let is_there = |path: &Path| path.exists() && path.read_dir().is_ok_and(|mut files| files.next().is_some());
        let names = ["curves.svg", "run.log", "trace.json"].map(path).into_iter().filter(|path| path.is_file());
        let folders = ["reconstructions", "tensorboard"].map(path).into_iter().filter(|path| is_there(path));
        names.chain(folders).map(|path| path.display().to_string()).collect()
    }
}

fn row(name: &str, text: &str) -> String {
    let mut line = String::new();
    let _ = write!(line, "{name:NAME_WIDTH$}{text}");
    line
}

/// As people read it: `2 workers that left, 3 late tasks`.
fn recovered(faults: &Faults) -> String {
    let Faults { n_left, n_evicted, n_reassigned, n_late, n_resent, n_waits, n_restarts, n_refused: _ } = *faults;
    let counts = [
        (n_restarts, "end of the coordinator's process", "ends of the coordinator's process"),
        (n_left, "worker that left", "workers that left"),
        (n_evicted, "worker that was evicted", "workers that were evicted"),
        (n_reassigned, "task that another worker took over", "tasks that other workers took over"),
        (n_late, "late task", "late tasks"),
        (n_resent, "replica that was sent again", "replicas that were sent again"),
        (n_waits, "wait for a worker", "waits for workers"),
    ];
    let words = counts.into_iter().filter(|(n, ..)| *n > 0);
    let words: Vec<String> = words.map(|(n, one, many)| format!("{n} {}", if n == 1 { one } else { many })).collect();
    if words.is_empty() { "nothing".to_owned() } else { words.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_counted_in_words() {
        assert_eq!(recovered(&Faults::default()), "nothing");
        let faults = Faults { n_left: 1, n_reassigned: 2, n_restarts: 1, ..Faults::default() };
        assert_eq!(
            recovered(&faults),
            "1 end of the coordinator's process, 1 worker that left, 2 tasks that other workers took over"
        );
    }
}
