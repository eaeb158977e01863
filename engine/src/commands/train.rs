//! `train`: follows the recipe in this process alone, keeps the run folder, shows how it goes.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use events::EpochRecord;
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::args::{BackendArgs, DataArgs, OpenBackend};
use crate::data::Split;
use crate::exit;
use crate::params::params_blake3;
use crate::recipe::{Recipe, RecipeArgs};
use crate::report::{RunFolder, Screen, best_json, best_rows};
use crate::task::{OpenTask, TaskChoice};
use crate::training::{self, Continuation, ProgressEvent, Trained, TrainingError, initial_weights};

/// The flags of `train`, but for the task's own.
#[derive(Args, Debug)]
#[command(
    after_help = "The first Ctrl-C ends the run after its step and keeps what is trained; a second one ends it at once. \
    SIGTERM does so too, and the exit code is then 143."
)]
pub struct TrainArgs {
    /// How the task is trained.
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Parts into which each step is cut, computed one by one and added in order
    #[arg(long, env = "TELAR_SHARDS", value_name = "N", default_value_t = 1, help_heading = "What is trained")]
    pub shards: u32,
    /// Which data set.
    #[command(flatten)]
    pub data: DataArgs,
    /// What computes.
    #[command(flatten)]
    pub backend: BackendArgs,
    /// Folder for what comes out [default: the next free runs/TASK-NNN]
    #[arg(long, env = "TELAR_RUN_DIR", value_name = "DIR", help_heading = "What comes out")]
    pub run_dir: Option<PathBuf>,
    /// Name the parameters after every step in steps.jsonl
    #[arg(long, env = "TELAR_HASH_STEPS", help_heading = "What comes out")]
    pub hash_steps: bool,
    /// Print JSON, a line for each epoch and one at the end
    #[arg(long, help_heading = "What comes out")]
    pub json: bool,
}

/// Trains a task in this process, which is the reference for any number of workers.
///
/// # Errors
/// If the flags cannot be followed, the data set or the weights cannot be read, the run diverges, or a file cannot be written.
pub fn train(args: TrainArgs, program: &str, choice: &TaskChoice) -> anyhow::Result<ExitCode> {
    // Before the first tensor, which a task's network may be made of.
    let backend = args.backend.open()?;
    let known = choice.build()?;
    let recipe = Recipe::new(args.recipe, known.spec(), args.shards)?;
    let (initial, initial_text) = initial_weights(&recipe, &*known)?;
    let task = known.open(&args.data.data)?;
    recipe.check_validation(task.n_samples(Split::Valid))?;
    let mut description = describe(program, &recipe, &backend, &*task);
    let mut folder = RunFolder::create(args.run_dir.as_deref(), &recipe.task)?;
    folder.write_description(&description)?;

    let signals = Signals::register()?;
    let (n_samples, samples) = (task.n_samples(Split::Train), task.spec().samples);
    let n_steps_max = recipe.n_steps(n_samples.into());
    let mut screen = Screen::new(samples, n_steps_max, recipe.epochs.get(), args.json);
    let mut lines = vec![recipe.describe(n_samples, samples, task.data_name())];
    lines.extend(initial_text);
    lines.push(format!("run folder: {}", folder.path().display()));
    screen.begin(&lines);
    let mut last_epoch = None;
    let mut n_steps = 0;
    let trained = training::train(&recipe, &task, &backend.device, initial, &mut |event| {
        match event {
            ProgressEvent::Step { mut record, params } => {
                if args.hash_steps {
                    record.params_blake3 = Some(params_blake3(params));
                }
                folder.add_step(&record)?;
                screen.step(&record, "");
                n_steps = record.step;
            }
            ProgressEvent::Epoch { record, weights, evaluator } => {
                let pictures = evaluator.pictures(recipe.seed);
                folder.add_pictures(record.epoch, pictures.iter().map(|picture| (picture.name, &*picture.png)));
                folder.add_epoch(&record, weights)?;
                screen.epoch(&record);
                last_epoch = Some(record);
            }
        }
        Ok::<_, TrainingError>(if signals.stop.load(Ordering::Relaxed) {
            Continuation::Stop
        } else {
            Continuation::Continue
        })
    });
    let trained = trained.inspect_err(|error| {
        description["result"] = json!({ "step": n_steps, "error": error.to_string() });
        // What ended the run is what the user has to hear of, not that it could not be noted down.
        let _ = folder.write_description(&description);
    })?;

    let hash = params_blake3(&trained.weights.params);
    let is_interrupted = n_steps < n_steps_max && !trained.has_stopped_early;
    description["result"] = json!({
        "step": n_steps, "interrupted": is_interrupted, "stopped_early": trained.has_stopped_early, "last_epoch": last_epoch,
        "best_epoch": best_json(trained.best), "params_blake3": hash,
    });
    folder.write_description(&description)?;
    screen.finish();
    tell_end(&screen, &folder, &trained, n_steps, is_interrupted, last_epoch.as_ref());
    let is_terminated = is_interrupted && signals.is_terminated.load(Ordering::Relaxed);
    Ok(if is_terminated { ExitCode::from(exit::TERMINATED) } else { ExitCode::SUCCESS })
}

fn tell_end(
    screen: &Screen,
    folder: &RunFolder,
    trained: &Trained,
    n_steps: u64,
    is_interrupted: bool,
    last_epoch: Option<&EpochRecord>,
) {
    let (weights, hash) = (folder.weights_path(), params_blake3(&trained.weights.params));
    let Trained { best, has_stopped_early, .. } = trained;
    screen.json_line(&json!({
        "event": "end", "step": n_steps, "interrupted": is_interrupted, "stopped_early": has_stopped_early,
        "last_epoch": last_epoch, "best_epoch": best_json(*best), "weights": weights.display().to_string(), "params_blake3": hash,
    }));
    if is_interrupted {
        screen.tell(&format!("stopped by a signal after step {n_steps}; what was trained until then is kept"));
    }
    for (name, text) in best_rows(*best, last_epoch.map(|record| record.epoch), *has_stopped_early, folder) {
        screen.row(name, &text);
    }
    screen.row("weights", &weights.display().to_string());
    screen.row("params blake3", &hash);
}

fn describe(program: &str, recipe: &Recipe, backend: &OpenBackend, task: &dyn OpenTask) -> Value {
    let layout = &task.spec().layout;
    json!({
        "program": program,
        "version": env!("CARGO_PKG_VERSION"),
        "recipe": recipe,
        "backend": backend.backend,
        "device": backend.device_choice,
        "threads": backend.n_threads,
        "compute_class": backend.compute_class(),
        "data": { "name": task.data_name(), "fingerprint": task.fingerprint() },
        "n_params": layout.n_params(),
        "layout_fingerprint": layout.fingerprint().to_string(),
    })
}

/// Flags that signals raise.
struct Signals {
    /// Raised by the first SIGINT or SIGTERM. A second one ends the program at once.
    stop: Arc<AtomicBool>,
    /// Raised by SIGTERM.
    is_terminated: Arc<AtomicBool>,
}

impl Signals {
    fn register() -> anyhow::Result<Self> {
        let signals = Self { stop: Arc::default(), is_terminated: Arc::default() };
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first signal finds the flag down and raises it, the second finds it up.
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&signals.stop))?;
            signal_hook::flag::register(signal, Arc::clone(&signals.stop))?;
        }
        signal_hook::flag::register(SIGTERM, Arc::clone(&signals.is_terminated))?;
        Ok(signals)
    }
}
