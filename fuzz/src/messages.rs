//! What peers say to one another, message by message: the first byte says who speaks.

use std::sync::Arc;
use std::time::Duration;

use coordinator::facts::Facts;
use coordinator::inbox::{self, Inbox};
use coordinator::training::{
    Action, AfterStop, AuditSecret, CheckpointEvery, Event, Identity, OwnTaskDone, Rounding, Rules, State, TaskKind,
    Training, Work, WorkerId,
};
use engine::recipe::{Recipe, RecipeArgs};
use engine::shard::ShardResult;
use engine::sums::{Metric, Sums};
use model::arch::Architecture;
use model::data::PLAIN_NAMES;
use model::task::{book_task, tasks};
use prost::Message;
use prost::bytes::Bytes;
use proto::buffers::Buffers;
use proto::framing::Assembler;
use proto::v1::coordinator_message::Kind as ToWorker;
use proto::v1::worker_message::Kind;
use proto::v1::{CoordinatorMessage, DatasetPiece, Encoding, Fence, WorkerMessage};
use proto::values;
use worker::dataset::Incoming;
use worker::plan::Terms;

use super::files;

/// Values of the parameters: the core takes any number.
pub const N_PARAMS: usize = 4;
/// blake3 of the data set.
pub const DATA_FINGERPRINT: &str = "319dd7f74074e4b97c7a5f0093ca1678ee5378f839ac640d036896edfa00f870";
/// Layout of the parameters.
pub const LAYOUT_FINGERPRINT: u64 = 7;

const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// How long after one message the next one comes.
const STEP: Duration = Duration::from_millis(20);
/// Things that the core may wish for after an event, far more than it does.
const ACTIONS_MAX: usize = 1_000;

/// The run and the process that messages belong to.
pub fn fence() -> Fence {
    Fence { run_id: "0123456789abcdef".to_owned(), coordinator_id: 1 }
}

/// The first byte of what workers say to a coordinator.
pub const WORKERS: u8 = 0;
/// The first byte of what a coordinator says to a worker.
pub const COORDINATOR: u8 = 1;
/// The first byte of a data set that a coordinator sends.
pub const DATA_SET: u8 = 2;

/// Whether a stream comes to anything: a step that is trained, a welcome that can be followed, files that are whole.
///
/// # Panics
/// If parameters that are not finite come of it, or the core wishes for things without end.
pub fn take(input: &[u8]) -> bool {
    match input.split_first() {
        Some((&WORKERS, stream)) => Run::new().receive(stream),
        Some((&COORDINATOR, stream)) => follow(stream),
        Some((&DATA_SET, stream)) => fetch(stream),
        _ => false,
    }
}

/// Two epochs of two steps of two shards of four images.
fn recipe() -> Recipe {
    let args = RecipeArgs {
        epochs: Some(2),
        batch_size: Some(8),
        learning_rate: Some(0.5),
        momentum: Some(0.9),
        seed: Some(7),
        ..RecipeArgs::default()
    };
    Recipe::new(args, book_task(Architecture::Denoising).spec(), 2).expect("a recipe")
}

fn messages<M: Message + Default>(stream: &[u8]) -> impl Iterator<Item = M> {
    let mut assembler = Assembler::new(MESSAGE_BYTES_MAX);
    assembler.add(Bytes::copy_from_slice(stream));
    std::iter::from_fn(move || assembler.take().ok().flatten())
}

/// A coordinator's core, with the messages of workers.
struct Run {
    training: Training,
    facts: Arc<Facts>,
    buffers: Arc<Buffers>,
    now: Duration,
}

impl Run {
    fn new() -> Self {
        let recipe = recipe();
        let rules = Rules {
            n_train: 16,
            n_valid: 4,
            evaluation_batch: 500,
            metrics: const { &[Metric::share_of_parts("rounded_accuracy", 784)] },
            rounding: Rounding::None,
            checkpoint_every: CheckpointEvery::Steps(1),
            heartbeat_timeout: Duration::from_secs(2),
            join_timeout: Duration::from_secs(5),
            audit: 0.5,
            audit_secret: AuditSecret::new([1; 32]),
            own_class: "own".to_owned(),
            after_stop: AfterStop::End,
            recipe: recipe.clone(),
        };
        let state = State::new(&recipe, Rounding::None, vec![0.0; N_PARAMS]);
        let facts = Facts {
            fence: fence(),
            recipe: recipe.to_json().into(),
            data_fingerprint: DATA_FINGERPRINT.to_owned(),
            layout_fingerprint: LAYOUT_FINGERPRINT,
            encoding: Encoding::F32,
            updates: None,
            heartbeat_timeout: rules.heartbeat_timeout,
            token: None,
            reflection: false,
        };
        Self {
            training: Training::new(rules, state, Duration::ZERO),
            facts: Arc::new(facts),
            buffers: Arc::new(Buffers::new(N_PARAMS, 8)),
            now: Duration::ZERO,
        }
    }

    /// Hears workers that take turns: each join is that of another one, which speaks until the next join.
    fn receive(mut self, stream: &[u8]) -> bool {
        let mut n_workers = 0;
        let mut speaking: Option<(WorkerId, Inbox)> = None;
        for message in messages::<WorkerMessage>(stream) {
            let event = match (message.kind, &mut speaking) {
                (Some(Kind::Join(join)), _) => {
                    let identity = Identity::new(format!("{}", n_workers % 3));
                    let Ok(profile) = inbox::profile(identity, join) else { continue };
                    n_workers += 1;
                    let worker_id = WorkerId(n_workers);
                    let inbox = Inbox::new(Arc::clone(&self.facts), Arc::clone(&self.buffers), None);
                    speaking = Some((worker_id, inbox));
                    Event::Joined(worker_id, profile)
                }
                (None, _) | (_, None) => continue,
                (Some(kind), Some((worker_id, inbox))) => {
                    let worker_id = *worker_id;
                    let event = match kind {
                        Kind::Ready(ready) => inbox.ready(&ready).map(|_| Event::Ready(worker_id)),
                        Kind::ShardDone(done) => inbox.shard_done(done).map(|done| Event::ShardDone(worker_id, done)),
                        kind => inbox.event(worker_id, kind),
                    };
                    event.unwrap_or_else(|status| Event::Lost(worker_id, status.message().to_owned()))
                }
            };
            self.now += STEP;
            self.training.handle_event(self.now, event);
            self.act();
            if self.training.next_deadline().is_some_and(|deadline| deadline <= self.now) {
                self.training.handle_deadline(self.now);
                self.act();
            }
        }
        self.training.state().step > 0
    }

    /// Does what the core wishes for, and what it wants to know of its own process.
    fn act(&mut self) {
        for _ in 0..ACTIONS_MAX {
            let Some(action) = self.training.poll_action(self.now) else {
                let State { params, slots, .. } = self.training.state();
                assert!(
                    params.iter().chain(slots.iter().flatten()).all(|value| value.is_finite()),
                    "{:?}",
                    self.training.state()
                );
                self.buffers.give_back(self.training.take_spent());
                return;
            };
            if let Action::ComputeTask(work) = action {
                for done in self.compute(work) {
                    self.training.handle_event(self.now, Event::OwnTaskDone(done));
                }
            }
        }
        panic!("expected at most {ACTIONS_MAX} actions after an event, found more");
    }

    fn compute(&self, work: Work) -> Vec<OwnTaskDone> {
        let schedule = self.training.schedule();
        let done = |step, kind, task, n_samples, n_values| {
            let sums = Sums { loss_sum: 0.5, n_samples, ..Sums::default() };
            OwnTaskDone { step, kind, task, result: ShardResult { gradient_sum: vec![0.0; n_values], sums } }
        };
        match work {
            Work::Nothing => Vec::new(),
            Work::Shards { step, shards, .. } => shards
                .into_iter()
                .map(|shard| done(step, TaskKind::Shard, shard, schedule.shard_samples(step, shard), N_PARAMS))
                .collect(),
            Work::Batches { step, batches } => batches
                .into_iter()
                .map(|batch| done(step, TaskKind::Batch, batch, schedule.batch_samples(batch), 0))
                .collect(),
        }
    }
}

/// Hears what a worker hears.
fn follow(stream: &[u8]) -> bool {
    let mut can_follow = false;
    for message in messages::<CoordinatorMessage>(stream) {
        match message.kind {
            Some(ToWorker::Welcome(welcome)) => can_follow |= Terms::new(welcome, &tasks()).is_ok(),
            Some(ToWorker::Update(update)) => {
                for encoding in [Encoding::F32, Encoding::Bf16] {
                    let check = |_: usize, values: &[f32]| assert!(values.iter().all(|value| value.is_finite()));
                    let _ = values::decode_blocks(encoding, &update.gradient, N_PARAMS, check);
                }
            }
            Some(ToWorker::State(state)) => {
                let mut params = [0.0; N_PARAMS];
                if values::decode(Encoding::F32, &state.params, &mut params).is_ok() {
                    assert!(params.iter().all(|value| value.is_finite()));
                }
            }
            Some(ToWorker::Work(_) | ToWorker::Close(_) | ToWorker::Refusal(_)) | None => {}
        }
    }
    can_follow
}

/// Hears what a worker hears that fetches the data set, and writes it as that does. Nothing is written elsewhere.
fn fetch(stream: &[u8]) -> bool {
    let outer = files::folder().join("outer");
    let folder = outer.join("fetched");
    let _ = std::fs::remove_dir_all(&outer);
    std::fs::create_dir_all(&folder).expect("the folder can be written");
    let mut incoming = Incoming::new(&folder, &PLAIN_NAMES);
    let mut n_pieces = 0;
    for piece in messages::<DatasetPiece>(stream) {
        if incoming.add(&piece).is_err() {
            break;
        }
        n_pieces += 1;
    }
    let is_whole = incoming.finish().is_ok() && n_pieces > 0;
    let n_beside = std::fs::read_dir(&outer).expect("the folder is there").count();
    assert_eq!(n_beside, 1, "expected files in the folder only");
    is_whole
}
