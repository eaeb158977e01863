//! `train`: follows the recipe, keeps the run folder, shows how it goes.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};

use model::args::OpenBackend;
use model::data::{Dataset, Split};
use model::evaluation::Evaluator;
use model::exit;
use model::params::{ParamLayout, params_blake3};
use model::recipe::Recipe;
use model::report::{RunFolder, Screen, split_picture};
use model::training::{Event, Next, TrainingError, initial_weights, train};

use crate::args::TrainArgs;

pub fn run(args: TrainArgs) -> anyhow::Result<ExitCode> {
    let recipe = Recipe::new(args.recipe, args.shards)?;
    let backend = args.backend.open()?;
    let initial = initial_weights(&recipe)?;
    let data = args.data.open()?;
    let mut description = describe(&recipe, &backend, &data);
    let mut folder = RunFolder::create(args.run_dir.as_deref(), recipe.architecture.name())?;
    folder.write_description(&description)?;

    let signals = Signals::register()?;
    let n_steps_max = recipe.n_steps(data.n_images(Split::Train) as u64);
    let mut screen = Screen::new(n_steps_max, recipe.epochs.get(), args.json);
    screen.begin(&[
        recipe.words(data.n_images(Split::Train), data.name()),
        format!("run folder: {}", folder.path().display()),
    ]);
    let mut last_epoch = None;
    let mut n_steps = 0;
    let trained = train(&recipe, &data, &backend.device, initial, &mut |event| {
        match event {
            Event::Step { mut record, params } => {
                if args.hash_steps {
                    record.params_blake3 = Some(params_blake3(params));
                }
                folder.add_step(&record)?;
                screen.step(&record, "");
                n_steps = record.step;
            }
            Event::Epoch { record, weights } => {
                let evaluator = Evaluator::new(weights, &backend.device);
                let png = split_picture(&evaluator, &data, Split::Valid, 5, recipe.noise, recipe.seed);
                folder.add_epoch(&record, weights, &png)?;
                screen.epoch(&record);
                last_epoch = Some(record);
            }
        }
        Ok::<_, TrainingError>(if signals.stop.load(Ordering::Relaxed) { Next::Stop } else { Next::GoOn })
    });
    let trained = trained.inspect_err(|error| {
        description["result"] = json!({ "step": n_steps, "error": error.to_string() });
        // What ended the run is what the user has to hear of, not that it could not be noted down.
        let _ = folder.write_description(&description);
    })?;

    let hash = params_blake3(&trained.params);
    let is_interrupted = n_steps < n_steps_max;
    description["result"] = json!({
        "step": n_steps, "interrupted": is_interrupted, "last_epoch": last_epoch, "params_blake3": hash,
    });
    folder.write_description(&description)?;
    screen.finish();
    tell_end(&screen, &folder, n_steps, is_interrupted, &hash);
    let is_terminated = is_interrupted && signals.is_terminated.load(Ordering::Relaxed);
    Ok(if is_terminated { ExitCode::from(exit::TERMINATED) } else { ExitCode::SUCCESS })
}

fn tell_end(screen: &Screen, folder: &RunFolder, n_steps: u64, is_interrupted: bool, hash: &str) {
    let weights = folder.weights_path();
    screen.json_line(&json!({
        "event": "end", "step": n_steps, "interrupted": is_interrupted, "weights": weights.display().to_string(), "params_blake3": hash,
    }));
    if is_interrupted {
        screen.tell(&format!("stopped by a signal after step {n_steps}; what was trained until then is kept"));
    }
    screen.tell(&format!("weights: {}", weights.display()));
    screen.tell(&format!("parameters blake3: {hash}"));
}

fn describe(recipe: &Recipe, backend: &OpenBackend, data: &Dataset) -> Value {
    let layout = ParamLayout::of(recipe.architecture);
    json!({
        "program": "autoencoder train",
        "version": env!("CARGO_PKG_VERSION"),
        "recipe": recipe,
        "backend": backend.backend,
        "device": backend.device_choice,
        "threads": backend.n_threads,
        "compute_class": backend.compute_class(),
        "data": { "name": data.name(), "fingerprint": data.fingerprint() },
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
