//! A coordinator's life: begin or resume the run, listen, start workers, train, tell, end.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use model::backend::reference_device;
use model::data::{Dataset, Split, plain_cache_folder, store_plain};
use model::exit;
use model::files::WriteError;
use model::layers::Noise;
use model::params::{ParamLayout, params_blake3};
use model::recipe::Recipe;
use model::report::{LogFormat, RunFolder, Screen};
use model::training::TrainingError;
use model::weights::Weights;
use proto::v1::{self, Encoding};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span, warn};

use crate::accept::{Listener, accept};
use crate::buffers::Buffers;
use crate::checkpoint::Checkpoints;
use crate::config::{Config, ConfigError, ListenAddress, Output, Workers};
use crate::driver::{Driver, Ended, INPUTS_MAX, Input};
use crate::launch::{LaunchError, Launcher};
use crate::observe::{History, Observer, Told};
use crate::saver::{RunFacts, Saver};
use crate::server::{Facts, Service};
use crate::start::{ResumeError, Start};
use crate::training::{AfterStop, Event, Outcome, Rules, Training};

/// How long sessions may take to end when the run is over.
const GRACE: Duration = Duration::from_secs(2);
/// Connections that wait to be served.
const CONNECTIONS_WAITING_MAX: usize = 64;

/// Why a run ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The address cannot be listened at.
    #[error("cannot listen at {address}: {source}; name another address with --listen")]
    Listen {
        /// The address.
        address: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// Nobody came.
    #[error(
        "expected a worker within {} seconds, none came; start one with `worker --coordinator {address}`, or wait longer \
         with --join-timeout", waited.as_secs_f64()
    )]
    NobodyCame {
        /// Where one was waited for.
        address: String,
        /// How long.
        waited: Duration,
    },
}

/// The exit code of an error, by the first of its causes that is known.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let code = error.chain().find_map(|cause| {
        if cause.is::<ConfigError>() {
            return Some(exit::CONFIGURATION);
        }
        if let Some(error) = cause.downcast_ref::<ResumeError>() {
            return Some(match error {
                ResumeError::NoCheckpoint(_) | ResumeError::OtherData { .. } => exit::DATA,
                ResumeError::NoRun | ResumeError::Recipe(_) | ResumeError::OtherWire { .. } => exit::CONFIGURATION,
            });
        }
        (cause.is::<ClusterError>() || cause.is::<LaunchError>()).then_some(exit::UNAVAILABLE)
    });
    code.unwrap_or_else(|| exit::code(error))
}

/// Runs a coordinator to its end.
///
/// # Errors
/// If it cannot begin, or ends otherwise than completed or stopped.
pub async fn run(config: Config, log_format: LogFormat) -> anyhow::Result<()> {
    let data = Arc::new(config.data.open()?);
    let data_fingerprint = data.fingerprint();
    let start = Start::new(&config, &data_fingerprint)?;
    let place = Place::open(&config).await?;
    let described = Description::new(&config, &start, &data, &data_fingerprint);
    start.folder.write_description(&described.json)?;
    let screen = begin_screen(&config, &start, &data, &place);

    let Start { recipe, state, folder, run_id, incarnation, lock, .. } = start;
    let span = info_span!("run", id = run_id, incarnation);
    let (inputs, inbox) = mpsc::channel(INPUTS_MAX);
    let stop = {
        let inputs = inputs.clone();
        // A full channel is no reason to block; whoever fills it is told to stop by the next signal.
        move || drop(inputs.try_send(Input::Happened(Event::Stop)))
    };
    let shutdown = CancellationToken::new();
    let layout = ParamLayout::of(recipe.architecture);
    let facts = Arc::new(Facts {
        fence: v1::Fence { run_id: run_id.clone(), incarnation },
        recipe: recipe_message(&recipe),
        data_fingerprint: data_fingerprint.clone(),
        layout_fingerprint: layout.fingerprint().0,
        encoding: config.encoding,
        silence_max: config.silence_max,
    });
    // A vector for each shard's result, each one's message in decoding, and the averaged gradient.
    let buffers = Arc::new(Buffers::new(layout.n_params(), 2 * recipe.shards.get() as usize + 1));
    let service =
        Service::new(Arc::clone(&facts), Arc::clone(&data), Arc::clone(&buffers), inputs.clone(), shutdown.clone());
    let (accepted, connections) = mpsc::channel(CONNECTIONS_WAITING_MAX);
    let server = tokio::spawn(service.serve(connections).instrument(span.clone()));
    let acceptor = tokio::spawn(accept(place.listener, accepted, shutdown.clone()).instrument(span.clone()));
    let signals = tokio::spawn(minds_signals(inputs));

    let run_facts =
        RunFacts { run_id: run_id.clone(), recipe: recipe.clone(), data_fingerprint: data_fingerprint.clone() };
    let history = History { folder, data: Arc::clone(&data), device: reference_device(), recipe: recipe.clone() };
    let saver =
        Saver::start(Checkpoints::of(history.folder.path(), config.n_checkpoints_kept), run_facts, span.clone());
    let driver = Driver {
        training: Training::new(rules(&config, &recipe, &data), state, Duration::ZERO),
        recipe,
        inputs: inbox,
        facts,
        buffers,
        observer: Observer::start(history, saver, screen, config.n_workers.get(), span.clone(), stop.clone()),
        hash_steps: config.hash_steps,
    };
    let local = CancellationToken::new();
    let local_workers =
        place.address.clone().and_then(|address| launcher(&config, address, &place.private, log_format));
    let launched = local_workers.map(|launcher| {
        let (n_workers, local, data) = (config.n_workers.get(), local.clone(), Arc::clone(&data));
        let kept = async move {
            let kept = launch(launcher, &data, n_workers, local).await;
            if kept.is_err() {
                stop();
            }
            kept
        };
        tokio::spawn(kept.instrument(span.clone()))
    });
    let runtime = tokio::runtime::Handle::current();
    let driver = std::thread::Builder::new().name("driver".to_owned()).spawn(move || runtime.block_on(driver.run()))?;
    let Ended { outcome, training, observer } =
        tokio::task::spawn_blocking(move || driver.join().expect("the driver ends by an outcome")).await?;

    // The workers know by now. What they are sent is still on its way, and so is what is to be written.
    local.cancel();
    let told = tokio::task::spawn_blocking(move || observer.finish()).await?;
    let kept = match launched {
        Some(keeper) => keeper.await?,
        None => Ok(()),
    };
    shutdown.cancel();
    signals.abort();
    acceptor.await?;
    if timeout(GRACE, server).await.is_err() {
        warn!("some peers did not close their connections in time");
    }
    let ended = described.end(&config, &outcome, &training, told);
    drop(lock);
    kept?;
    match outcome {
        Outcome::NobodyCame => {
            Err(ClusterError::NobodyCame { address: place.words, waited: config.join_wait_max }.into())
        }
        _ => ended,
    }
}

/// Where workers find the coordinator.
struct Place {
    listener: Listener,
    /// As a worker's flag has it, for local workers.
    address: Option<String>,
    /// As people type it.
    words: String,
    /// The socket and whatever else is of this run only; goes with it.
    private: TempDir,
}

impl Place {
    async fn open(config: &Config) -> Result<Self, anyhow::Error> {
        let private = tempfile::Builder::new().prefix("telar-").tempdir();
        let private = private.map_err(WriteError::at(&std::env::temp_dir()))?;
        let (listen, is_local) = match &config.workers {
            Workers::Local { .. } => (ListenAddress::Unix(private.path().join("socket")), true),
            Workers::External { listen } => (listen.clone(), false),
        };
        let error = |source| ClusterError::Listen { address: listen.to_string(), source };
        let (listener, words) = match &listen {
            ListenAddress::Tcp(address) => {
                let listener = TcpListener::bind(address).await.map_err(error)?;
                let words = reachable(listener.local_addr().map_err(error)?);
                (Listener::Tcp(listener), words)
            }
            ListenAddress::Unix(path) => {
                remove_stale(path).await;
                (Listener::Unix(UnixListener::bind(path).map_err(error)?), listen.to_string())
            }
        };
        let address = is_local.then(|| words.clone());
        Ok(Self { listener, address, words, private })
    }
}

/// The address to type for one that is listened at; a machine that listens everywhere is named by its name.
fn reachable(address: SocketAddr) -> String {
    if !address.ip().is_unspecified() {
        return format!("http://{address}");
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "HOST" } else { host.trim() };
    format!("http://{host}:{}", address.port())
}

/// A socket that an earlier process left behind keeps nobody from listening.
async fn remove_stale(path: &Path) {
    let is_stale = match UnixStream::connect(path).await {
        Ok(_) => false,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
    };
    if is_stale && let Err(error) = std::fs::remove_file(path) {
        warn!(path = %path.display(), %error, "an old socket could not be removed");
    }
}

fn rules(config: &Config, recipe: &Recipe, data: &Dataset) -> Rules {
    let n_images = |split| u32::try_from(data.n_images(split)).expect("an IDX file counts images in u32");
    Rules {
        recipe: recipe.clone(),
        n_train: n_images(Split::Train),
        n_valid: n_images(Split::Valid),
        rounding: config.rounding(),
        checkpoint_every: config.checkpoint_every,
        silence_max: config.silence_max,
        join_wait_max: config.join_wait_max,
        after_stop: match config.workers {
            Workers::Local { .. } => AfterStop::End,
            Workers::External { .. } => AfterStop::ComeBack,
        },
    }
}

fn recipe_message(recipe: &Recipe) -> v1::Recipe {
    let (noise, noise_strength) = match recipe.noise {
        Noise::None => ("none", 0.0),
        Noise::Gaussian { deviation } => ("gaussian", deviation),
        Noise::Dropout { rate } => ("dropout", rate),
    };
    v1::Recipe {
        architecture: recipe.architecture.name().to_owned(),
        batch_size: recipe.batch_size.get(),
        shards: recipe.shards.get(),
        learning_rate: recipe.sgd.learning_rate,
        momentum: recipe.sgd.momentum,
        nesterov: recipe.sgd.nesterov,
        noise: noise.to_owned(),
        noise_strength,
        shuffle: recipe.shuffle,
        seed: recipe.seed,
    }
}

/// The first SIGINT or SIGTERM ends the run with a checkpoint, the second one ends the process.
async fn minds_signals(inputs: mpsc::Sender<Input>) -> std::io::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut is_first = true;
    loop {
        let number = tokio::select! {
            _ = interrupt.recv() => SignalKind::interrupt().as_raw_value(),
            _ = terminate.recv() => SignalKind::terminate().as_raw_value(),
        };
        if !std::mem::take(&mut is_first) {
            // Local workers end with their standard input, which is a pipe to this process.
            std::process::exit(128 + number);
        }
        // A driver that is gone has ended the run already.
        let _ = inputs.send(Input::Happened(Event::Stop)).await;
    }
}

fn launcher(config: &Config, address: String, private: &TempDir, log_format: LogFormat) -> Option<Launcher> {
    let Workers::Local { program, backend } = &config.workers else { return None };
    let data = private.path().join("data");
    Some(Launcher { program: program.clone(), address, data, backend: backend.clone(), log_format })
}

/// Puts the data set where local workers can map it, and keeps them running.
async fn launch(
    launcher: Launcher,
    data: &Arc<Dataset>,
    n_workers: u32,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (data, private) = (Arc::clone(data), launcher.data.clone());
    let data = tokio::task::spawn_blocking(move || plain_folder(&data, private)).await??;
    Ok(Launcher { data, ..launcher }.run(n_workers, shutdown).await?)
}

/// A folder with the data set as plain files, which processes share by mapping them: the user's cache, or one of this run.
fn plain_folder(data: &Dataset, private: PathBuf) -> Result<PathBuf, WriteError> {
    let cache = plain_cache_folder(&data.fingerprint());
    let is_whole = |folder: &Path| {
        let files = data.plain_files();
        files.iter().all(|file| {
            let n_bytes = std::fs::metadata(folder.join(file.name)).map_or(0, |metadata| metadata.len());
            n_bytes == (file.header.len() + file.content.len()) as u64
        })
    };
    if let Some(folder) = cache
        && (is_whole(&folder) || store_plain(data, &folder).is_ok())
    {
        return Ok(folder);
    }
    store_plain(data, &private)?;
    Ok(private)
}

fn begin_screen(config: &Config, start: &Start, data: &Dataset, place: &Place) -> Screen {
    let recipe = &start.recipe;
    let n_steps = recipe.n_steps(data.n_images(Split::Train) as u64);
    let mut screen = Screen::new(n_steps, recipe.epochs.get(), config.output == Output::Json);
    let mut lines = vec![format!(
        "{}: {} images of {}, global batch {} = {}, learning rate {}, noise {}, seed {}",
        recipe.architecture,
        data.n_images(Split::Train),
        data.name(),
        recipe.batch_size,
        recipe.cut(),
        recipe.sgd.learning_rate,
        recipe.noise,
        recipe.seed,
    )];
    let wire = match config.encoding {
        Encoding::Bf16 => "gradients as bf16",
        Encoding::F32 | Encoding::Unspecified => "gradients as f32",
    };
    let n_workers = config.n_workers;
    lines.push(match &config.workers {
        Workers::Local { backend, .. } => {
            format!("{n_workers} local workers x {} threads, {wire}", backend.threads.unwrap_or(1))
        }
        Workers::External { .. } => {
            format!("{n_workers} workers expected, {wire}; start each with: worker --coordinator {}", place.words)
        }
    });
    lines.push(format!(
        "run folder: {}, a checkpoint each {}, {} kept",
        start.folder.path().display(),
        config.checkpoint_every,
        config.n_checkpoints_kept
    ));
    if let Some(from) = &start.resumed_from {
        lines.push(format!("resumed at step {} from {}", start.state.step, from.display()));
        screen.set_position(start.state.step);
    }
    screen.begin(&lines);
    screen.json_line(&json!({
        "event": "begin", "run_dir": start.folder.path().display().to_string(), "address": place.words,
        "step": start.state.step, "n_steps": n_steps,
    }));
    screen
}

/// What `run.json` says.
struct Description {
    json: Value,
}

impl Description {
    fn new(config: &Config, start: &Start, data: &Dataset, data_fingerprint: &str) -> Self {
        let layout = ParamLayout::of(start.recipe.architecture);
        let (launch, threads) = match &config.workers {
            Workers::Local { backend, .. } => ("local", backend.threads),
            Workers::External { .. } => ("external", None),
        };
        let json = json!({
            "program": "coordinator",
            "version": env!("CARGO_PKG_VERSION"),
            "run_id": start.run_id,
            "incarnation": start.incarnation,
            "resumed_from": start.resumed_from.as_ref().map(|path| path.display().to_string()),
            "recipe": start.recipe,
            "workers": config.n_workers,
            "launch": launch,
            "threads_per_worker": threads,
            "wire": match config.encoding {
                Encoding::Bf16 => "grpc-bf16",
                Encoding::F32 | Encoding::Unspecified => "grpc",
            },
            "checkpoint_every": config.checkpoint_every.to_string(),
            "keep": config.n_checkpoints_kept,
            "join_timeout_seconds": config.join_wait_max.as_secs_f64(),
            "heartbeat_timeout_seconds": config.silence_max.as_secs_f64(),
            "data": { "name": data.name(), "fingerprint": data_fingerprint },
            "n_params": layout.n_params(),
            "layout_fingerprint": layout.fingerprint().to_string(),
        });
        Self { json }
    }

    /// Writes the last files and says the last words.
    fn end(mut self, config: &Config, outcome: &Outcome, training: &Training, told: Told) -> anyhow::Result<()> {
        let Told { history, saver, mut screen, costs, last_epoch, failure } = told;
        let saved = saver.finish();
        let state = training.state();
        let hash = params_blake3(&state.params);
        let folder: &RunFolder = &history.folder;
        let classes = training.compute_classes();
        let recipe = &history.recipe;
        let diverged = match outcome {
            Outcome::Diverged { step, epoch, what } => Some(TrainingError::Diverged {
                step: *step,
                epoch: epoch + 1,
                what: what.clone(),
                learning_rate: recipe.sgd.learning_rate,
            }),
            Outcome::Completed | Outcome::Stopped | Outcome::NobodyCame => None,
        };
        self.json["compute_classes"] = json!(classes);
        self.json["result"] = json!({
            "outcome": outcome.to_string(), "step": state.step, "last_epoch": last_epoch, "params_blake3": hash,
            "milliseconds_per_step": costs.means(), "error": diverged.as_ref().map(ToString::to_string),
        });
        folder.write_description(&self.json)?;
        if let Some(error) = diverged {
            return Err(error.into());
        }
        if let Some(error) = failure {
            return Err(error.into());
        }
        let is_trained = matches!(outcome, Outcome::Completed | Outcome::Stopped) && state.step > 0;
        let checkpoint = saved?;
        if is_trained {
            let weights = Weights { architecture: recipe.architecture, params: state.params.clone() };
            folder.write_weights(&weights)?;
        }

        screen.finish();
        let weights = folder.weights_path();
        screen.json_line(&json!({
            "event": "end", "outcome": outcome.to_string(), "step": state.step, "last_epoch": last_epoch,
            "weights": weights.display().to_string(), "params_blake3": hash,
            "checkpoint": checkpoint.as_ref().map(|path| path.display().to_string()),
            "milliseconds_per_step": costs.means(),
        }));
        if *outcome == Outcome::Stopped {
            screen.tell(&format!(
                "stopped after step {}; go on with: coordinator --workers {} --resume {}",
                state.step,
                config.n_workers,
                folder.path().display()
            ));
        }
        if let Some(words) = costs.words() {
            screen.tell(&words);
        }
        if classes.len() > 1 {
            screen.tell("workers of several compute classes took part: another run may differ in bits");
        }
        if let Some(record) = last_epoch.filter(|_| *outcome == Outcome::Completed) {
            screen.tell(&format!(
                "val loss {:.4}, val rounded accuracy {:.4} after {} epochs, {} steps",
                record.val_loss, record.val_rounded_accuracy, record.epoch, record.step
            ));
        }
        if is_trained {
            screen.tell(&format!("weights: {}", weights.display()));
            screen.tell(&format!("parameters blake3: {hash}"));
        }
        Ok(())
    }
}
