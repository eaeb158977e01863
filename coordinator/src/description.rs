//! What `run.json` says of a run, and what the coordinator says last.

use engine::data::Split;
use engine::files::WriteError;
use engine::params::params_blake3;
use engine::report::{RunFolder, best_json};
use engine::task::OpenTask;
use engine::training::TrainingError;
use engine::weights::Weights;
use events::RunEvent;
use serde_json::{Value, json};

use crate::commands::resume_command;
use crate::config::{Config, JournalSteps, Reach, Workers};
use crate::driver::DriverPanicked;
use crate::ending::Ending;
use crate::endpoint::Endpoint;
use crate::mirror::{Mirror, MirrorReport, RunFile};
use crate::observe::{History, Recorder};
use crate::start::Start;
use crate::training::{Outcome, State, Training};

/// What `run.json` says, and the mirror, to which it goes as the last file of a run.
#[derive(Debug)]
pub struct Description {
    /// An object.
    pub json: Value,
    /// The mirror, once it is started.
    pub mirror: Option<Mirror>,
}

impl Description {
    /// What is known at the start.
    pub fn new(config: &Config, start: &Start, is_shared: bool, task: &dyn OpenTask) -> Self {
        let layout = &task.spec().layout;
        let (launch, threads, access) = match &config.workers {
            Workers::Local { backend, .. } => ("local", backend.threads, None),
            Workers::External { access, .. } => ("external", None, Some(access)),
        };
        let security = access.map(|access| {
            json!({
                "tls": access.tls.is_some(),
                "token": access.token_file.is_some(),
                "insecure": access.reach == Reach::OthersInsecurely,
                "reflection": access.reflection,
            })
        });
        let json = json!({
            "program": "coordinator",
            "version": env!("CARGO_PKG_VERSION"),
            "run_id": start.run_id,
            "incarnation": start.incarnation,
            "numerics": start.numerics,
            "resumed_from": start.resumed_from.as_ref().map(|path| path.display().to_string()),
            "recipe": start.recipe,
            "workers": config.n_workers,
            "launch": launch,
            "threads_per_worker": threads,
            "security": security,
            "wire": start.wire,
            "shared_memory": is_shared,
            "checkpoint_every": config.checkpoint_every.to_string(),
            "keep": config.n_checkpoints_kept,
            "join_timeout_seconds": config.join_timeout.as_secs_f64(),
            "heartbeat_timeout_seconds": config.heartbeat_timeout.as_secs_f64(),
            "audit": config.audit,
            "journal": config.journal == JournalSteps::Yes,
            "mirror": config.mirror.as_ref().map(|location| json!({ "url": location.to_string() })),
            "samples": task.spec().samples,
            "n_steps": start.recipe.n_steps(task.n_samples(Split::Train).into()),
            "data": { "name": task.data_name(), "fingerprint": task.fingerprint() },
            "n_params": layout.n_params(),
            "layout_fingerprint": layout.fingerprint().to_string(),
        });
        Self { json, mirror: None }
    }

    /// Writes the last files, waits for the mirror, and says the last words, unless the run has failed.
    ///
    /// # Errors
    /// What the run has failed with, what could not be written, or what the mirror lacks.
    pub fn end(
        mut self,
        config: &Config,
        endpoint: &Endpoint,
        outcome: &Outcome,
        training: &Training,
        mut recorder: Recorder,
        failed: Option<anyhow::Error>,
    ) -> anyhow::Result<()> {
        let State { step, params, best, .. } = training.state();
        let has_stopped_early = training.has_stopped_early();
        let hash = params_blake3(params);
        // A driver that panicked may have left them in the middle of an update.
        let has_panicked = failed.as_ref().is_some_and(anyhow::Error::is::<DriverPanicked>);
        let known_hash = (!has_panicked).then_some(&hash);
        let classes = training.compute_classes();
        let diverged = match outcome {
            Outcome::Diverged { step, epoch, what } => {
                let learning_rate = recorder.history.recipe.optimizer.learning_rate;
                Some(
                    TrainingError::Diverged { step: *step, epoch: epoch + 1, what: what.clone(), learning_rate }.into(),
                )
            }
            Outcome::Completed | Outcome::Stopped | Outcome::NobodyCame => None,
        };
        let error = diverged.or(failed).or(recorder.failure.take().map(Into::into));
        let ending = error.as_ref().map_or_else(|| outcome.to_string(), |error| format!("failed: {error}"));
        let recorded = recorder.record_event(RunEvent::Ended { outcome: ending, step: *step });
        let Recorder { history, saver, costs, last_epoch, view, mut watchers, .. } = recorder;
        let saved = saver.finish();
        let History { folder, task, .. } = history;
        self.json["compute_classes"] = json!(classes);
        self.json["result"] = json!({
            "outcome": outcome.to_string(), "step": step, "stopped_early": has_stopped_early, "last_epoch": last_epoch,
            "best_epoch": best_json(*best), "params_blake3": known_hash,
            "faults": training.tally(), "milliseconds_per_step": costs.means(), "error": error.as_ref().map(ToString::to_string),
        });
        let has_weights = error.is_none() && *step > 0;
        let trained = has_weights.then(|| Weights::new(task.spec(), params.clone()));
        let has_written = trained.map_or(Ok(()), |trained| folder.write_weights(&trained));
        watchers.describe(self.json.clone());
        watchers.finish();
        let (described, mirrored) = self.write(&folder, has_weights);
        let screen = view.finish();
        if let Some(error) = error {
            return Err(error);
        }
        described?;
        let checkpoint = saved?;
        has_written.and(recorded)?;
        let incomplete = mirrored.as_ref().and_then(MirrorReport::error).map_or(Ok(()), |error| Err(error.into()));
        let Some(mut screen) = screen else { return incomplete };
        screen.finish();
        let weights = folder.weights_path();
        screen.json_line(&json!({
            "event": "end", "outcome": outcome.to_string(), "step": step, "stopped_early": has_stopped_early,
            "last_epoch": last_epoch, "best_epoch": best_json(*best), "weights": weights.display().to_string(), "params_blake3": hash,
            "checkpoint": checkpoint.as_ref().map(|path| path.display().to_string()), "faults": training.tally(),
            "milliseconds_per_step": costs.means(), "mirror": mirrored.as_ref().map(MirrorReport::json),
        }));
        let is_stopped = *outcome == Outcome::Stopped;
        let ending = Ending {
            step: *step,
            is_stopped,
            last_epoch: last_epoch.as_ref(),
            best: *best,
            has_stopped_early,
            costs: &costs,
            samples: task.spec().samples,
            faults: watchers.run.summary().faults,
            tally: training.tally(),
            n_classes: classes.len(),
            folder: &folder,
            params_blake3: &hash,
        };
        for (name, text) in ending.rows() {
            screen.row(name, &text);
        }
        if let Some(MirrorReport { url, step: Some(step), missing, .. }) = &mirrored
            && missing.is_empty()
        {
            screen.row("mirror", &format!("{url}, complete up to step {step}"));
        }
        if is_stopped {
            screen.command_row("go on with", &resume_command(config, &endpoint.display_address, folder.path()));
        }
        screen.command_row("page", &config.invocation.show_command(folder.path()));
        incomplete
    }

    /// Writes the description for the last time, with what the mirror has by then, and mirrors it as the last file.
    fn write(&mut self, folder: &RunFolder, has_weights: bool) -> (Result<(), WriteError>, Option<MirrorReport>) {
        let mirror = self.mirror.take();
        if let Some(mirror) = &mirror {
            if has_weights {
                mirror.handle().written(RunFile::Weights);
            }
            mirror.handle().written(RunFile::Events);
            self.json["mirror"] = mirror.drain().json();
        }
        let described = folder.write_description(&self.json);
        (described, mirror.map(Mirror::finish))
    }
}
