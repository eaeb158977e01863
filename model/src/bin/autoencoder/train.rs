//! `train`: follows the recipe, keeps the run folder, shows how it goes.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};

use model::backend::compute_class;
use model::data::{Dataset, Split};
use model::evaluation::Evaluator;
use model::params::{ParamLayout, initial_params, params_blake3};
use model::recipe::Recipe;
use model::report::{EpochRecord, RunFolder, StepRecord};
use model::training::{Event, Next, TrainingError, train};
use model::weights::Weights;

use crate::args::{OpenBackend, TrainArgs};
use crate::output::say;
use crate::trained::picture;

pub fn run(args: TrainArgs) -> anyhow::Result<()> {
    let recipe = Recipe::new(args.recipe, args.shards)?;
    let backend = args.backend.open()?;
    let initial = initial_weights(&recipe)?;
    let data = args.data.open()?;
    let mut description = describe(&recipe, &backend, &data);
    let mut folder = RunFolder::create(args.run_dir.as_deref(), recipe.architecture.name())?;
    folder.write_description(&description)?;

    let stop = stop_on_signal()?;
    let mut screen = Screen::new(&recipe, &data, args.json);
    screen.begin(&recipe, &data, folder.path());
    let mut last_epoch = None;
    let mut n_steps = 0;
    let trained = train(&recipe, &data, &backend.device, initial, &mut |event| {
        match event {
            Event::Step { mut record, params } => {
                if args.hash_steps {
                    record.params_blake3 = Some(params_blake3(params));
                }
                folder.add_step(&record)?;
                screen.step(&record);
                n_steps = record.step;
            }
            Event::Epoch { record, weights } => {
                let evaluator = Evaluator::new(weights, &backend.device);
                let png = picture(&evaluator, &data, Split::Valid, 5, recipe.noise, recipe.seed);
                folder.add_epoch(&record, weights, &png)?;
                screen.epoch(&record);
                last_epoch = Some(record);
            }
        }
        Ok::<_, TrainingError>(if stop.load(Ordering::Relaxed) { Next::Stop } else { Next::GoOn })
    });
    let trained = trained.inspect_err(|error| {
        description["result"] = json!({ "step": n_steps, "error": error.to_string() });
        // What ended the run is what the user has to hear of, not that it could not be noted down.
        let _ = folder.write_description(&description);
    })?;

    let hash = params_blake3(&trained.params);
    let is_interrupted = n_steps < recipe.n_steps(data.n_images(Split::Train) as u64);
    description["result"] = json!({
        "step": n_steps, "interrupted": is_interrupted, "last_epoch": last_epoch, "params_blake3": hash,
    });
    folder.write_description(&description)?;
    screen.end(&folder, n_steps, is_interrupted, &hash);
    Ok(())
}

fn initial_weights(recipe: &Recipe) -> anyhow::Result<Weights> {
    let architecture = recipe.architecture;
    match &recipe.init_from {
        Some(path) => Ok(Weights::read_of(architecture, path)?),
        None => Ok(Weights { architecture, params: initial_params(architecture, recipe.seed) }),
    }
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
        "compute_class": compute_class(backend.backend, backend.device_choice, backend.n_threads),
        "data": { "name": data.name(), "fingerprint": data.fingerprint() },
        "n_params": layout.n_params(),
        "layout_fingerprint": layout.fingerprint().to_string(),
    })
}

/// A flag that the first SIGINT or SIGTERM raises. A second one ends the program at once.
fn stop_on_signal() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag down and raises it, the second finds it up.
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// How the run is shown: a bar on a terminal, a plain line now and then elsewhere, JSON lines if asked for.
struct Screen {
    bar: Option<ProgressBar>,
    json: bool,
    n_epochs: u32,
    last_line: Instant,
    n_images: u64,
    begun: Instant,
}

/// How often a plain line is printed.
const LINE_INTERVAL: Duration = Duration::from_secs(15);

impl Screen {
    fn new(recipe: &Recipe, data: &Dataset, json: bool) -> Self {
        let n_steps = recipe.n_steps(data.n_images(Split::Train) as u64);
        let style = "{prefix} {wide_bar} step {pos}/{len}, {msg}, {eta} left";
        let bar = (!json && std::io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template(style).expect("a valid template");
            ProgressBar::new(n_steps).with_style(style)
        });
        let now = Instant::now();
        Self { bar, json, n_epochs: recipe.epochs.get(), last_line: now, n_images: 0, begun: now }
    }

    fn begin(&self, recipe: &Recipe, data: &Dataset, folder: &Path) {
        if self.json {
            return;
        }
        say!(
            "{}: {} images of {}, global batch {} = {}, learning rate {}, noise {}, seed {}",
            recipe.architecture,
            data.n_images(Split::Train),
            data.name(),
            recipe.batch_size,
            recipe.cut(),
            recipe.sgd.learning_rate,
            recipe.noise,
            recipe.seed,
        );
        say!("run folder: {}", folder.display());
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of images are far below 2^53")]
    fn step(&mut self, record: &StepRecord) {
        self.n_images += record.n_samples;
        let images_per_second = self.n_images as f64 / self.begun.elapsed().as_secs_f64();
        if let Some(bar) = &self.bar {
            bar.set_prefix(format!("epoch {}/{}", record.epoch, self.n_epochs));
            bar.set_message(format!("loss {:.4}, {images_per_second:.0} images/s", record.loss));
            bar.set_position(record.step);
        } else if !self.json && self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            say!(
                "epoch {}/{}: step {}, loss {:.4}, {images_per_second:.0} images/s",
                record.epoch,
                self.n_epochs,
                record.step,
                record.loss,
            );
        }
    }

    fn epoch(&mut self, record: &EpochRecord) {
        let line = if self.json {
            json!({ "event": "epoch", "record": record }).to_string()
        } else {
            format!(
                "epoch {}/{}: {:.1} s, loss {:.4}, rounded accuracy {:.4}, val loss {:.4}, val rounded accuracy {:.4}, {:.0} images/s",
                record.epoch,
                self.n_epochs,
                record.seconds,
                record.loss,
                record.rounded_accuracy,
                record.val_loss,
                record.val_rounded_accuracy,
                record.images_per_second,
            )
        };
        self.print(&line);
        (self.n_images, self.begun) = (0, Instant::now());
    }

    fn end(&self, folder: &RunFolder, n_steps: u64, is_interrupted: bool, hash: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let weights = folder.weights_path();
        if self.json {
            let line = json!({
                "event": "end", "step": n_steps, "interrupted": is_interrupted, "weights": weights.display().to_string(), "params_blake3": hash,
            });
            say!("{line}");
            return;
        }
        if is_interrupted {
            say!("stopped by a signal after step {n_steps}; what was trained until then is kept");
        }
        say!("weights: {}", weights.display());
        say!("parameters blake3: {hash}");
    }

    fn print(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say!("{line}")),
            None => say!("{line}"),
        }
    }
}
