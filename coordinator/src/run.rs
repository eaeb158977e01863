//! A coordinator's life: begin or resume the run, listen, start workers, train, tell, end.

mod conclusion;
mod local;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use engine::args::{BackendArgs, OpenBackend};
use engine::data::{DataSource, Split};
use engine::exit;
use engine::recipe::Recipe;
use engine::report::{LogFormat, open_run_log};
use engine::task::{OpenTask, TaskSpec};
use events::RunEvent;
use observe::server::Runs;
use proto::buffers::Buffers;
use proto::limits::PARAMS_MAX;
use proto::shared::Updates;
use proto::token::Token;
use proto::v1::{self, Encoding};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, info_span, warn};

use conclusion::{Background, conclude};
use local::{launch, launcher};

use crate::accept::accept;
use crate::admission::{Admission, Limits};
use crate::args::Wire;
use crate::clock::Clock;
use crate::config::{Config, JournalSteps, Reach, Workers};
use crate::description::Description;
use crate::driver::{Driver, Process, RunContext};
use crate::endpoint::Endpoint;
use crate::error::ClusterError;
use crate::facts::Facts;
use crate::health::HealthPort;
use crate::http::{HttpPort, HttpServer};
use crate::input::{INPUTS_MAX, Input};
use crate::journal::Journal;
use crate::mirror::{self, Mirror, MirrorError, MirrorPlan, MirroredRun};
use crate::observe::{CodeSpace, Entry, History, Observer, View, Watchers};
use crate::opening::begin_screen;
use crate::recompute::{Means, Recomputer};
use crate::saver::Saver;
use crate::server::Service;
use crate::shutdown::Signals;
use crate::start::{RunPlan, Start, checkpoints, rounding};
use crate::tls::Tls;
use crate::training::{AfterStop, AuditSecret, Outcome, Rules, State, Training};
use crate::trainjob::{Progress, TrainJob};

/// Connections that wait to be served.
const CONNECTIONS_WAITING_MAX: usize = 64;

/// Runs a coordinator to its end, and gives the exit code that says whether the run is over.
///
/// # Errors
/// If it cannot begin, or ends otherwise than completed or stopped.
pub async fn run(mut config: Config, log_format: LogFormat) -> anyhow::Result<ExitCode> {
    let signals = Signals::register()?;
    let shutdown = CancellationToken::new();
    let health = open_health(&config, &shutdown).await?;
    let (tls, token) = open_access(&config, &shutdown)?;
    let mirror_plan = mirror::prepare(&mut config)?;
    let plan = RunPlan::new(&config)?;
    let known = Arc::clone(&plan.task);
    let (task, source) = open_task(&plan, &config)?;
    let data_fingerprint = task.fingerprint().to_owned();
    // Before the run's folder is made: an address that is in use is no reason for a run that never began.
    let mut endpoint = Endpoint::open(&config).await?;
    let http = HttpPort::open(&config.http)?;
    let mut start = plan.start(&config, &data_fingerprint)?;
    start.incarnation = start.incarnation.max(mirror_plan.as_ref().map_or(1, |plan| plan.incarnation_min));
    let spec = task.spec().clone();
    let n_params = spec.layout.n_params();
    let updates = shared_updates(start.wire, n_params);
    let mut described = Description::new(&config, &start, updates.is_some(), &*task);
    start.folder.write_description(&described.json)?;
    open_run_log(&start.folder.path().join("run.log"))?;
    let (mut watchers, http) = begin_watching(http, &config, &start, &described)?;
    let screen = begin_screen(&config, &start, updates.is_some(), &*task, &endpoint, http.as_ref());

    let first_step = start.state.step;
    let span = info_span!("run", id = start.run_id, incarnation = start.incarnation);
    let view = View::start(screen, config.n_workers.get(), span.clone());
    described.mirror = start_mirror(mirror_plan, &config, &start, &view, &span)?;
    let mirror = described.mirror.as_ref().map(Mirror::handle).unwrap_or_default();
    let facts = Arc::new(session_facts(&config, &start, &*task, updates.as_ref(), token));
    let run_facts = start.facts(&*task);
    let started = RunEvent::Started { incarnation: start.incarnation.into(), step: first_step };
    let Start { recipe, wire, state, folder, audit_secret, lock, .. } = start;
    let (inputs, inbox) = mpsc::channel(INPUTS_MAX);
    #[cfg(test)]
    tests::let_workers_join(&inputs);
    let backend = BackendArgs { backend: None, device: None, operations: None, threads: None }.open()?;
    let recomputer = recomputer(&recipe, &task, wire.encoding(), &backend, &inputs);
    let stopping = CancellationToken::new();
    let stop = {
        let stopping = stopping.clone();
        move || stopping.cancel()
    };
    let buffers = buffers(n_params, &recipe);
    let service = Service::new(Arc::clone(&facts), Arc::clone(&task), Arc::clone(&buffers), inputs, shutdown.clone());
    let admission = Admission::new(Limits::of_process());
    let (accepted, connections) = mpsc::channel(CONNECTIONS_WAITING_MAX);
    let server = spawn_or_stop(service.serve(connections), stop.clone(), &span);
    let listener = endpoint.listener.take().expect("it was opened and not taken yet");
    let acceptor = tokio::spawn(accept(listener, tls, admission, accepted, shutdown.clone()).instrument(span.clone()));
    let stopper = tokio::spawn(signals.stop_run(stopping.clone(), mirror.clone())?);
    set_ready(health.as_ref(), http.as_ref()).await;

    let history = History {
        folder,
        task: Arc::clone(&task),
        device: backend.device.clone(),
        recipe: recipe.clone(),
        mirror: mirror.clone(),
        code_space: CodeSpace::default(),
    };
    let checkpoints = checkpoints(&config, history.folder.path());
    let saver = Saver::start(checkpoints, run_facts.clone(), mirror, span.clone());
    let pending_checkpoints = saver.pending_checkpoints();
    let is_journaled = config.journal == JournalSteps::Yes;
    let journal = is_journaled.then(|| Journal::open(history.folder.path(), run_facts)).transpose()?;
    let trainjob = TrainJob::start(progress(&recipe, &*task, &state), &span);
    watchers.latest = trainjob.as_ref().map(TrainJob::latest);
    let training = Training::new(
        rules(&config, wire.encoding(), &recipe, &*task, audit_secret, backend.compute_class()),
        state,
        Duration::ZERO,
    );
    let observer = Observer::start(history, saver, view, watchers, span.clone(), stop.clone());
    // Whoever is to record more finds out that it is gone.
    let _ = observer.record(Entry::Event(started));
    let context = RunContext { spec, facts, buffers, updates, journal: config.journal, hash_steps: config.hash_steps };
    let process = Process {
        clock: Clock::start()?,
        observer,
        pending_checkpoints,
        journal,
        recomputer,
        inputs: inbox,
        // Where the runtime has more threads, each look would wake another one.
        busy_poll: matches!(config.workers, Workers::Local { busy_poll: true, .. })
            && Handle::current().metrics().num_workers() == 1,
        stop: stopping,
    };
    let driver = Driver::new(training, context, process);
    let local = CancellationToken::new();
    let local_workers =
        endpoint.address.clone().and_then(|address| launcher(&config, address, &endpoint.private, log_format));
    let launched = local_workers.map(|launcher| {
        let (n_workers, local, task) = (config.n_workers.get(), local.clone(), Arc::clone(&task));
        spawn_or_stop(launch(launcher, known, task, source, n_workers, local), stop, &span)
    });
    let ended = tokio::spawn(driver.run()).await?;
    let background = Background { acceptor, server, stopper, shutdown, launched, local, trainjob };
    let outcome = conclude(&config, &endpoint, described, ended, background, first_step, &span).await;
    tokio::task::spawn_blocking(|| http.map(HttpServer::finish)).await?;
    drop(lock);
    // A supervisor takes 0 for work that is done, and would not start the coordinator again.
    let is_unfinished = outcome? == Outcome::Stopped && signals.is_terminated();
    Ok(if is_unfinished { ExitCode::from(exit::TERMINATED) } else { ExitCode::SUCCESS })
}

/// Who watches, and the page, if it is served.
fn begin_watching(
    port: Option<HttpPort>,
    config: &Config,
    start: &Start,
    described: &Description,
) -> anyhow::Result<(Watchers, Option<HttpServer>)> {
    let mut runs = Runs::default();
    let watchers = Watchers::start(&mut runs, config, start, described.json.clone())?;
    let server = port.map(|port| port.start(runs, Some(Arc::clone(&watchers.metrics)))).transpose()?;
    Ok((watchers, server))
}

/// Has probes know that workers can join.
async fn set_ready(health: Option<&HealthPort>, http: Option<&HttpServer>) {
    if let Some(health) = health {
        health.set_ready().await;
    }
    if let Some(http) = http {
        http.is_ready.store(true, Ordering::Relaxed);
    }
}

/// The task on its data set, and where that was found.
fn open_task(plan: &RunPlan, config: &Config) -> anyhow::Result<(Arc<dyn OpenTask>, DataSource)> {
    let (task, found) = (plan.task.spec().name, plan.task.spec().layout.n_params());
    if found > PARAMS_MAX {
        return Err(ClusterError::TooManyParams { task, found }.into());
    }
    let source = plan.data_source(config);
    let task = plan.task.open(&source)?;
    plan.recipe.check_validation(task.n_samples(Split::Valid))?;
    Ok((task, source))
}

/// The vectors of a run: one for each shard's result, each one's message in decoding, and the averaged gradient.
fn buffers(n_params: usize, recipe: &Recipe) -> Arc<Buffers> {
    Arc::new(Buffers::new(n_params, 2 * recipe.shards.get() as usize + 1))
}

/// What computes tasks here, where no worker can be believed.
fn recomputer(
    recipe: &Recipe,
    task: &Arc<dyn OpenTask>,
    encoding: Encoding,
    backend: &OpenBackend,
    inputs: &mpsc::Sender<Input>,
) -> Recomputer {
    Recomputer::new(Means {
        task: Arc::clone(task),
        recipe: recipe.clone(),
        rounding: rounding(encoding),
        device: backend.device.clone(),
        inputs: inputs.downgrade(),
    })
}

/// What workers have to prove: read now, so that a file that is not good ends the run before it begins.
fn open_access(config: &Config, shutdown: &CancellationToken) -> anyhow::Result<(Option<Arc<Tls>>, Option<Token>)> {
    let Workers::External { listen, access } = &config.workers else { return Ok((None, None)) };
    if access.reach == Reach::OthersInsecurely {
        warn!(%listen, "INSECURE: everyone in the network can read and change what goes between coordinator and workers");
    }
    let token = access.token_file.as_deref().map(Token::read).transpose()?;
    let Some(files) = access.tls.clone() else { return Ok((None, token)) };
    let tls = Arc::new(Tls::open(files)?);
    let reloading = Arc::clone(&tls).reload_on_hangup()?;
    let shutdown = shutdown.clone();
    tokio::spawn(async move { shutdown.run_until_cancelled(reloading).await });
    Ok((Some(tls), token))
}

/// The port for probes, if one is asked for.
async fn open_health(config: &Config, shutdown: &CancellationToken) -> Result<Option<HealthPort>, ClusterError> {
    let Some(address) = &config.health else { return Ok(None) };
    let opened = HealthPort::open(address, shutdown.clone()).await;
    let error = |source| ClusterError::Listen { flag: "--health", address: address.clone(), source };
    opened.map(Some).map_err(error)
}

/// How far a run is at its start, as it is posted to Kubeflow Trainer.
fn progress(recipe: &Recipe, task: &dyn OpenTask, state: &State) -> Progress {
    let n_steps = recipe.n_steps(task.n_samples(Split::Train).into());
    Progress::new(task.spec().samples, n_steps, recipe.epochs.get(), state.step)
}

/// What every session has to know of the run.
fn session_facts(
    config: &Config,
    start: &Start,
    task: &dyn OpenTask,
    updates: Option<&Updates>,
    token: Option<Token>,
) -> Facts {
    Facts {
        fence: v1::Fence { run_id: start.run_id.clone(), coordinator_id: start.coordinator_id },
        recipe: start.recipe.to_json().into(),
        data_fingerprint: task.fingerprint().to_owned(),
        layout_fingerprint: task.spec().layout.fingerprint().0,
        encoding: start.wire.encoding(),
        updates: updates.map(Updates::message),
        heartbeat_timeout: config.heartbeat_timeout,
        token,
        reflection: match &config.workers {
            Workers::Local { .. } => true,
            Workers::External { access, .. } => access.reflection,
        },
    }
}

/// The mirror, if there is to be one, with the files that are in the run folder by now.
fn start_mirror(
    plan: Option<MirrorPlan>,
    config: &Config,
    start: &Start,
    view: &View,
    span: &Span,
) -> Result<Option<Mirror>, MirrorError> {
    let Some(plan) = plan else { return Ok(None) };
    let run = MirroredRun {
        folder: start.folder.path().to_owned(),
        run_id: start.run_id.clone(),
        incarnation: start.incarnation,
        n_checkpoints_kept: config.n_checkpoints_kept,
        replaces: plan.replaces,
        unusable_steps: plan.unusable_steps,
    };
    let view_handle = view.handle();
    Mirror::start(plan.location, run, move |event| view_handle.mirror(event), span.clone()).map(Some)
}

/// Where averaged gradients lie for workers of this machine, if that was chosen and can be had.
fn shared_updates(wire: Wire, n_params: usize) -> Option<Updates> {
    if wire != Wire::Auto {
        return None;
    }
    let created = Updates::create(n_params);
    created.inspect_err(|error| warn!(%error, "no shared memory here; gradients travel over gRPC")).ok()
}

/// A task without which the run cannot go on: if it fails, the run is stopped.
fn spawn_or_stop(
    task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    stop: impl FnOnce() + Send + 'static,
    span: &Span,
) -> JoinHandle<anyhow::Result<()>> {
    let task = async move { task.await.inspect_err(|_| stop()) };
    tokio::spawn(task.instrument(span.clone()))
}

fn rules(
    config: &Config,
    encoding: Encoding,
    recipe: &Recipe,
    task: &dyn OpenTask,
    audit_secret: AuditSecret,
    own_class: String,
) -> Rules {
    let TaskSpec { evaluation_batch, metrics, .. } = *task.spec();
    Rules {
        recipe: recipe.clone(),
        n_train: task.n_samples(Split::Train),
        n_valid: task.n_samples(Split::Valid),
        evaluation_batch,
        metrics,
        rounding: rounding(encoding),
        checkpoint_every: config.checkpoint_every,
        heartbeat_timeout: config.heartbeat_timeout,
        join_timeout: config.join_timeout,
        audit: config.audit,
        audit_secret,
        own_class,
        after_stop: match config.workers {
            Workers::Local { .. } => AfterStop::End,
            Workers::External { .. } => AfterStop::ComeBack,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::fs;

    use events::RecordedEvent;

    use super::*;
    use crate::config::tests::config_of;
    use crate::driver::DriverPanicked;
    use crate::exit_code::exit_code;
    use crate::outbox::OutboxStream;
    use crate::outbox::tests::open;
    use crate::training::{Profile, WorkerId};

    thread_local! {
        /// The open sessions of workers that join the runs which this thread begins, if any are to.
        static SESSIONS: RefCell<Option<Vec<OutboxStream>>> = const { RefCell::new(None) };
    }

    /// Has two workers join with one number, if any are to join: the core takes that for a fault of the program.
    pub(super) fn let_workers_join(inputs: &mpsc::Sender<Input>) {
        SESSIONS.with_borrow_mut(|sessions| {
            for _ in 0..sessions.as_ref().map_or(0, |_| 2) {
                let (outbox, stream) = open();
                inputs.try_send(Input::Joined(WorkerId(1), Profile::default(), outbox)).expect("the channel has room");
                sessions.get_or_insert_default().push(stream);
            }
        });
    }

    /// The goal: a fault of the program itself ends a run like any other failure.
    #[test]
    fn panic_of_driver_is_recorded_as_end_of_run() {
        SESSIONS.set(Some(Vec::new()));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let run_folder = folder.path().join("run");
        let run_dir = run_folder.display().to_string();
        let flags = ["--arch", "denoising", "--data", "synthetic", "--launch", "external", "--listen", "127.0.0.1:0"];
        let config = config_of(["coordinator", "--json", "--run-dir", &run_dir].into_iter().chain(flags));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let ended = runtime.block_on(run(config.expect("a configuration"), LogFormat::Text));
        let error = ended.expect_err("the driver panics");
        assert!(error.is::<DriverPanicked>() && exit_code(&error) == exit::INTERNAL, "{error}");
        let reason = "a worker's number is given once";
        assert!(error.to_string().contains(reason), "{error}");
        let events = fs::read_to_string(run_folder.join("events.jsonl")).expect("events");
        let last: RecordedEvent = serde_json::from_str(events.lines().last().expect("a line")).expect("an event");
        let RunEvent::Ended { outcome, step: 0 } = last.event else { panic!("{last:?}") };
        assert!(outcome.starts_with("failed: ") && outcome.contains(reason), "{outcome}");
        let description = fs::read(run_folder.join("run.json")).expect("run.json");
        let description: serde_json::Value = serde_json::from_slice(&description).expect("JSON");
        assert!(description["result"]["error"].as_str().expect("an error").contains(reason), "{description}");
        assert!(description["result"]["params_blake3"].is_null(), "{description}");
    }
}
