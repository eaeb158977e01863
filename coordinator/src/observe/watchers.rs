//! What is made of a run's events besides its lines: the page, metrics, TensorBoard's files, a trace and the picture of its
//! curves. What fails once the run has begun is a warning, and does not end it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::files::write_whole;
use engine::task::NamedPicture;
use events::{EpochRecord, PictureFile, RecordedEvent, RunEvent, seconds_since_1970};
use observe::chart::curves_svg;
use observe::folder::FolderReader;
use observe::metrics::{Metrics, RunInfo};
use observe::otlp::Otlp;
use observe::server::{RunHandle, Runs};
use observe::settings::settings_of;
use observe::summary::Summary;
use observe::tensorboard::{TensorBoard, TensorBoardError};
use observe::trace::Trace;
use serde_json::Value;
use tokio::task::block_in_place;
use tracing::warn;

use super::{EpochPictures, code_space};
use crate::config::Config;
use crate::endpoint::host_name;
use crate::start::Start;
use crate::trainjob::Latest;

/// How often the picture of the curves is written, besides at the end.
const CURVES_INTERVAL: Duration = Duration::from_secs(10);

/// Who watches a run.
pub struct Watchers {
    /// The run as it is by now, for the page.
    pub run: RunHandle,
    /// Its metrics, for a scraper.
    pub metrics: Arc<Metrics>,
    /// TensorBoard's files, if they were asked for, until one cannot be written.
    pub tensorboard: Option<TensorBoard>,
    /// The trace of some steps, if one was asked for.
    pub trace: Option<Trace>,
    /// The export of all steps as traces, if the environment names a collector.
    pub otlp: Option<Otlp>,
    /// What is posted to Kubeflow Trainer, if anything is.
    pub latest: Option<Arc<Latest>>,
    /// Where the picture of the curves goes.
    pub curves: PathBuf,
    curves_written: Option<Instant>,
}

impl fmt::Debug for Watchers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Watchers").field("run", &self.run.name()).finish_non_exhaustive()
    }
}

impl Watchers {
    /// Those that the configuration asks for, of a run that is about to begin or go on; it is added to `runs`.
    ///
    /// # Errors
    /// If a file that was asked for cannot be made.
    pub fn start(runs: &mut Runs, config: &Config, start: &Start, description: Value) -> anyhow::Result<Self> {
        let folder = start.folder.path();
        let mut reader = FolderReader::open(folder)?;
        let run = runs.add(reader.name(), Some(folder));
        // What the processes before have left.
        let mut known = Summary::default();
        reader.poll(&mut known);
        run.replace(known);
        run.describe(description.clone());
        let now = seconds_since_1970();
        let info = RunInfo {
            task: start.recipe.task.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            run_id: start.run_id.clone(),
            n_workers_expected: config.n_workers.get() as usize,
            process_started: now,
        };
        let otlp = Otlp::from_env(&info);
        let metrics = Arc::new(Metrics::new(info));
        let host = host_name().unwrap_or_else(|| "localhost".to_owned());
        let mut tensorboard = None;
        if config.tensorboard {
            let mut files = TensorBoard::create(&folder.join("tensorboard"), &host, now)?;
            files.add_settings(&settings_of(&description))?;
            tensorboard = Some(files);
        }
        let trace = config.trace.clone().map(|steps| Trace::create(steps, &folder.join("trace.json"), &start.run_id));
        let trace = trace.transpose()?;
        Ok(Self {
            run,
            metrics,
            tensorboard,
            trace,
            otlp,
            latest: None,
            curves: folder.join("curves.svg"),
            curves_written: None,
        })
    }

    /// Something happened.
    pub fn apply(&mut self, recorded: &RecordedEvent) {
        self.run.apply(recorded);
        self.metrics.apply(recorded);
        if let Some(latest) = &self.latest {
            match &recorded.event {
                RunEvent::Step(step) => latest.add_step(&step.record),
                RunEvent::Epoch(record) => latest.add_epoch(record),
                _ => {}
            }
        }
        self.add_to_tensorboard(|files| files.apply(recorded));
        if let Some(trace) = &mut self.trace
            && let Err(error) = trace.apply(recorded)
        {
            warn!(%error, "no trace; the run goes on");
            self.trace = None;
        }
        if let Some(otlp) = &mut self.otlp {
            otlp.apply(recorded);
        }
        let is_due = self.curves_written.is_none_or(|written| written.elapsed() >= CURVES_INTERVAL);
        match recorded.event {
            RunEvent::Epoch(_) if is_due => self.write_curves(),
            RunEvent::Ended { .. } => self.write_curves(),
            _ => {}
        }
    }

    /// The pictures of an epoch are there, and perhaps codes.
    pub fn add_pictures(&mut self, record: &EpochRecord, made: &EpochPictures) {
        for NamedPicture { name, png } in &made.pictures {
            self.run.add_picture(PictureFile { name: *name, epoch: record.epoch });
            self.add_to_tensorboard(|files| files.add_picture(record.step, *name, png));
        }
        if let Some(codes) = &made.codes
            && let Ok(plain) = code_space::plain(codes)
        {
            let names: Vec<&str> = codes.label_names().iter().map(String::as_str).collect();
            self.add_to_tensorboard(|files| files.add_codes(plain, code_space::labels(codes, &names)));
        }
    }

    fn add_to_tensorboard(&mut self, add: impl FnOnce(&mut TensorBoard) -> Result<(), TensorBoardError>) {
        let Some(files) = &mut self.tensorboard else { return };
        match add(files) {
            Ok(()) => {}
            Err(error @ TensorBoardError::Picture(_)) => warn!(%error, "TensorBoard's files lack a picture"),
            Err(error) => {
                warn!(%error, "TensorBoard's files end here; the run goes on");
                self.tensorboard = None;
            }
        }
    }

    /// What `run.json` says by now.
    pub fn describe(&self, description: Value) {
        self.run.describe(description);
    }

    /// Writes what waits to be written.
    pub fn finish(&mut self) {
        if let Some(trace) = &mut self.trace
            && let Err(error) = trace.finish()
        {
            warn!(%error, "no trace");
        }
        if let Some(tensorboard) = &mut self.tensorboard
            && let Err(error) = tensorboard.flush()
        {
            warn!(%error, "the end of TensorBoard's files is missing");
        }
        if let Some(otlp) = &mut self.otlp {
            block_in_place(|| otlp.finish());
        }
    }

    fn write_curves(&mut self) {
        self.curves_written = Some(Instant::now());
        let svg = curves_svg(&self.run.summary());
        if let Err(error) = write_whole(&self.curves, svg.as_bytes()) {
            warn!(%error, "no picture of the curves; the run goes on");
        }
    }
}
