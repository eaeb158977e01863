//! What the coordinator says to people at the end of a run: losses, speed, where a step's time went, what was recovered from,
//! and the files to look at.

use engine::early_stopping::BestEpoch;
use engine::report::{RunFolder, best_rows};
use events::{CostTotals, EpochRecord, PictureName};
use observe::summary::Faults;

use crate::training::Tally;

/// What there is to say of a run that has ended as it should.
#[derive(Debug)]
pub struct Ending<'a> {
    /// Updates applied.
    pub step: u64,
    /// Whether it was stopped before its last step.
    pub is_stopped: bool,
    /// The epoch that was validated last, in this process.
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
}

impl Ending<'_> {
    /// The rows of a table, each with its name, or without one where it belongs to the row before.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let mut rows = Vec::new();
        if self.is_stopped {
            rows.push(("stopped", format!("after step {}", self.step)));
        } else if let Some(EpochRecord { epoch, step, .. }) = self.last_epoch {
            let epochs = if *epoch == 1 { "epoch" } else { "epochs" };
            rows.push(("trained", format!("{epoch} {epochs}, {step} steps")));
        }
        if let Some(EpochRecord { loss, metrics, val_loss, val_metrics, .. }) = self.last_epoch {
            rows.push(("loss", format!("{loss:.4}, val loss {val_loss:.4}")));
            for ((name, value), (_, val_value)) in metrics.0.iter().zip(&val_metrics.0) {
                let name = name.replace('_', " ");
                rows.push(("", format!("{name} {value:.4}, val {name} {val_value:.4}")));
            }
        }
        if let Some(pace) = self.costs.samples_per_second() {
            rows.push(("speed", format!("{pace:.0} {}/s", self.samples)));
        }
        rows.extend(self.costs.describe().map(|text| ("time", text)));
        let faults: Vec<String> = self.faults.counted().iter().map(|(count, noun)| format!("{count} {noun}")).collect();
        rows.push(("recovered from", if faults.is_empty() { "nothing".to_owned() } else { faults.join(", ") }));
        rows.extend(self.tally.describe().into_iter().map(|text| ("", text)));
        if self.n_classes > 1 {
            let text = "workers of several compute classes took part: another run may differ in bits";
            rows.push(("", text.to_owned()));
        }
        let last_epoch = self.last_epoch.map(|record| record.epoch);
        rows.extend(best_rows(self.best, last_epoch, self.has_stopped_early, self.folder));
        if self.step > 0 {
            rows.push(("weights", self.folder.weights_path().display().to_string()));
            rows.push(("params blake3", self.params_blake3.to_owned()));
        }
        rows.push(("run folder", self.folder.path().display().to_string()));
        rows.push(("files there", self.files().join(", ")));
        rows
    }

    /// What is worth a look in the run folder.
    fn files(&self) -> Vec<String> {
        let path = |name: &str| self.folder.path().join(name);
        let is_there = |name: &String| match name.strip_suffix('/') {
            Some(folder) => path(folder).read_dir().is_ok_and(|mut files| files.next().is_some()),
            None => path(name).is_file(),
        };
        let pictures = PictureName::all_in(self.folder.path()).unwrap_or_default();
        let folders = pictures.iter().map(PictureName::as_str).chain(["tensorboard"]).map(|name| format!("{name}/"));
        let files = ["curves.svg", "run.log", "trace.json"].map(str::to_owned);
        files.into_iter().chain(folders).filter(is_there).collect()
    }
}
