//! What follows orders: it owns the replica, and does one order after the other. Knows no connection; what it finds goes to
//! the session that gave the order, if that is still there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tracing::{debug, warn};

use engine::args::OpenBackend;
use engine::data::Split;
use engine::optimizer::LearningRates;
use engine::params::{Fingerprinter, params_fingerprint};
use engine::random::ShardKey;
use engine::sampler::Sampler;
use engine::sampler::n_batches;
use engine::task::{Evaluator, Replica};
use proto::limits;
use proto::v1::worker_message::Kind;
use proto::v1::{BatchDone, Encoding, Lagging, ShardDone, State, Update, Work, WorkerMessage};
use proto::values::{self, ValuesError};

use super::Order;
use crate::link::GradientError;
use crate::plan::Plan;

/// An order, of which run, and for whom.
#[derive(Debug)]
pub(super) struct Job {
    pub plan: Arc<Plan>,
    pub order: Order,
    /// The parameters it is for: [`Computer::newest`] when it was given.
    pub change: u64,
    /// When it was given.
    pub received: Instant,
    pub replies: mpsc::Sender<WorkerMessage>,
}

/// Why a replica is not what it should be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
enum LagError {
    #[error("{what}: {error}")]
    Values { what: &'static str, error: ValuesError },
    #[error("the gradient of an update: {0}")]
    Gradient(#[from] GradientError),
    #[error("expected the update to step {expected}, found that to step {found}")]
    Update { expected: u64, found: u64 },
    #[error("expected work on step {expected}, found work on step {found}")]
    Ahead { expected: u64, found: u64 },
    #[error("expected {what} below {n}, found {found}")]
    OutOfRange { what: &'static str, n: u64, found: u64 },
}

/// What computes.
#[derive(Debug)]
pub(super) struct Computer {
    pub backend: OpenBackend,
    /// Number of the newest order that changes the parameters.
    pub newest: Arc<AtomicU64>,
    /// Updates applied to the replica.
    pub step: Arc<AtomicU64>,
    /// From when on this worker's clock counts.
    clock: Instant,
    loaded: Option<LoadedReplica>,
}

impl Computer {
    pub fn new(backend: OpenBackend, newest: Arc<AtomicU64>, step: Arc<AtomicU64>) -> Self {
        Self { backend, newest, step, clock: Instant::now(), loaded: None }
    }

    /// Whether a job is expected to take no longer than `limit`, if its shards take as long as the largest one, and cannot wait for
    /// places for its results.
    pub fn is_short(&self, job: &Job, limit: Duration) -> bool {
        let Order::Update(Update { work: Some(Work { shards, batches, .. }), .. }) = &job.order else { return false };
        // A place for each result, and one for an error.
        if !batches.is_empty() || shards.len() >= job.replies.capacity() {
            return false;
        }
        let n_shards = u32::try_from(shards.len()).expect("below a queue's capacity");
        let largest_shard = self.loaded.as_ref().and_then(|loaded| loaded.largest_shard);
        largest_shard.is_some_and(|(_, time)| time.saturating_mul(n_shards) <= limit)
    }

    pub fn handle(&mut self, job: Job) {
        let Job { plan, order, change, received, replies } = job;
        if replies.is_closed() {
            return; // its session is gone, and the result is not needed
        }
        // A replica is that of the session that loaded it: another one may be of another run.
        self.loaded.take_if(|loaded| !Arc::ptr_eq(&loaded.plan, &plan));
        self.tell_step();
        if let Err(error) = self.follow(&plan, order, change, received, &replies) {
            warn!(%error, "the replica is not what it should be; asking for the state anew");
            self.loaded = None;
            self.tell_step();
            let mut reason = error.to_string();
            reason.truncate(reason.floor_char_boundary(limits::TEXT_BYTES_MAX));
            reply(&replies, Kind::Lagging(Lagging { reason }));
        }
    }

    /// Uses the time until the next order for what that will most probably need.
    pub fn prepare_next(&mut self) {
        if let Some(loaded) = &mut self.loaded {
            loaded.prepare_next();
        }
    }

    /// Has heartbeats say how far the replica is.
    fn tell_step(&self) {
        self.step.store(self.loaded.as_ref().map_or(0, |loaded| loaded.step), Ordering::Relaxed);
    }

    fn follow(
        &mut self,
        plan: &Arc<Plan>,
        order: Order,
        change: u64,
        received: Instant,
        replies: &mpsc::Sender<WorkerMessage>,
    ) -> Result<(), LagError> {
        let work = match order {
            Order::State(state) => {
                let loaded = self.loaded.take().unwrap_or_else(|| LoadedReplica::new(plan, &self.backend));
                self.loaded = Some(loaded.with_state(&state)?);
                state.work
            }
            Order::Update(update) => {
                if let Some(loaded) = &mut self.loaded {
                    loaded.apply(&update)?;
                }
                update.work
            }
            Order::Work(work) => Some(work),
        };
        self.tell_step();
        let (Some(loaded), Some(work)) = (&mut self.loaded, work) else {
            return Ok(()); // nothing to do, or the state was asked for and is on its way
        };
        if work.step < loaded.step {
            debug!(step = work.step, "work on a step that is over");
            return Ok(());
        }
        if work.step > loaded.step {
            return Err(LagError::Ahead { expected: loaded.step, found: work.step });
        }
        let clock = self.clock;
        let is_of_use = || self.newest.load(Ordering::Relaxed) == change && !replies.is_closed();
        for &shard in &work.shards {
            if !is_of_use() {
                debug!(step = work.step, "the step is over before this worker's shards are");
                break;
            }
            let by_clock = |moment: Instant| nanoseconds(moment.saturating_duration_since(clock));
            let (received_nanoseconds, started_nanoseconds) = (by_clock(received), by_clock(Instant::now()));
            let done = loaded.shard(&work, shard)?;
            reply(replies, Kind::ShardDone(ShardDone { received_nanoseconds, started_nanoseconds, ..done }));
        }
        for &batch in &work.batches {
            if !is_of_use() {
                debug!(step = work.step, "the validation is over before this worker's batches are");
                break;
            }
            reply(replies, Kind::BatchDone(loaded.batch(batch, &self.backend)?));
        }
        Ok(())
    }
}

/// Waits for a place, which only threads without a runtime may; a session that is gone needs no answer.
fn reply(replies: &mpsc::Sender<WorkerMessage>, kind: Kind) {
    let message = WorkerMessage { kind: Some(kind) };
    let is_gone = match replies.try_send(message) {
        Ok(()) => false,
        Err(TrySendError::Full(message)) => replies.blocking_send(message).is_err(),
        Err(TrySendError::Closed(_)) => true,
    };
    if is_gone {
        debug!("a result for a session that is gone");
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A replica, and what it was made from.
#[derive(Debug)]
struct LoadedReplica {
    plan: Arc<Plan>,
    /// Updates applied.
    step: u64,
    /// What the optimizer keeps from update to update.
    slots: Vec<Vec<f32>>,
    rates: LearningRates,
    replica: Box<dyn Replica>,
    /// Of the parameters, once it was asked for.
    fingerprint: Option<u64>,
    /// The samples of the largest shard, and how long the last shard of this size took.
    largest_shard: Option<(usize, Duration)>,
    /// The samples of the epoch last worked on.
    sampler: Option<(u32, Sampler)>,
    /// The shard that the next step will most probably want from this worker, and the step's place in the epoch.
    next: Option<(ShardKey, usize)>,
    /// The parameters of this step, if any of it was validated here.
    evaluator: Option<Box<dyn Evaluator>>,
}

impl LoadedReplica {
    fn new(plan: &Arc<Plan>, backend: &OpenBackend) -> Self {
        let (recipe, n_params) = (&plan.terms.recipe, plan.terms.n_params);
        Self {
            plan: Arc::clone(plan),
            step: 0,
            slots: recipe.optimizer.slots(n_params),
            rates: recipe.learning_rates(plan.task.n_samples(Split::Train).into()),
            replica: Arc::clone(&plan.task).replica(recipe.seed, &backend.device),
            fingerprint: None,
            largest_shard: None,
            sampler: None,
            next: None,
            evaluator: None,
        }
    }

    fn with_state(mut self, state: &State) -> Result<Self, LagError> {
        let take = |what, bytes: &[u8], into: &mut [f32]| {
            values::decode(Encoding::F32, bytes, into).map(drop).map_err(|error| LagError::Values { what, error })
        };
        take("the parameters of a state", &state.params, self.replica.params_mut())?;
        let mut slots = self.slots.concat();
        take("what the optimizer keeps, of a state", &state.slots, &mut slots)?;
        if let Some(n_values) = self.slots.first().map(Vec::len).filter(|&n_values| n_values > 0) {
            self.slots = slots.chunks(n_values).map(<[f32]>::to_vec).collect();
        }
        self.enter(state.step);
        Ok(self)
    }

    /// After an error, the parameters may have been changed in part: this replica is of no use any more.
    fn apply(&mut self, update: &Update) -> Result<(), LagError> {
        // That of a state may be any number.
        let expected = self.step.saturating_add(1);
        if update.step != expected {
            return Err(LagError::Update { expected, found: update.step });
        }
        let Self { plan, slots, rates, replica, .. } = self;
        let (optimizer, rate) = (plan.terms.recipe.optimizer, rates.at(self.step));
        let mut fingerprinter = Fingerprinter::default();
        let params = replica.params_mut();
        plan.transport.take(update, |start, gradient| {
            optimizer.apply(rate, params, slots, start, gradient);
            fingerprinter.add(&params[start..start + gradient.len()]);
        })?;
        self.enter(update.step);
        self.fingerprint = Some(fingerprinter.finish());
        Ok(())
    }

    fn enter(&mut self, step: u64) {
        self.step = step;
        self.fingerprint = None;
        self.evaluator = None;
    }

    fn shard(&mut self, work: &Work, shard: u32) -> Result<ShardDone, LagError> {
        let begun = Instant::now();
        let terms = &self.plan.terms;
        below("a shard", shard.into(), terms.recipe.shards.get().into())?;
        if self.sampler.as_ref().is_none_or(|(epoch, _)| *epoch != work.epoch) {
            let n_samples = self.plan.task.n_samples(Split::Train);
            self.sampler = Some((work.epoch, terms.recipe.sampler(work.epoch, n_samples)));
        }
        let sampler = &self.sampler.as_ref().expect("it was made above").1;
        below("a step of the epoch", work.step_of_epoch.into(), sampler.n_steps() as u64)?;

        let params_fingerprint = *self.fingerprint.get_or_insert_with(|| params_fingerprint(self.replica.params()));
        let key = ShardKey { epoch: work.epoch, step: self.step, shard };
        let samples = sampler.shard(work.step_of_epoch as usize, shard as usize);
        let mut gradient = self.plan.transport.outbound_gradient();
        let sums = self.replica.shard_result(key, samples, gradient.values());
        let (gradient_sum, slot) = gradient.close();
        if work.shards.first() == Some(&shard) {
            // The same workers get the same shards in every step.
            self.next = Some((ShardKey { step: self.step.saturating_add(1), ..key }, work.step_of_epoch as usize + 1));
        }
        let time = begun.elapsed();
        // The last step of an epoch may have smaller ones.
        if self.largest_shard.is_none_or(|(n_samples, _)| samples.len() >= n_samples) {
            self.largest_shard = Some((samples.len(), time));
        }
        Ok(ShardDone {
            fence: Some(terms.fence.clone()),
            step: self.step,
            shard,
            n_samples: sums.n_samples,
            loss_sum: sums.loss_sum,
            counts: sums.counts.to_vec(),
            gradient_sum,
            params_fingerprint,
            compute_nanoseconds: nanoseconds(time),
            slot,
            received_nanoseconds: 0,
            started_nanoseconds: 0,
        })
    }

    fn prepare_next(&mut self) {
        let (Some((key, step_of_epoch)), Some((epoch, sampler))) = (self.next.take(), &self.sampler) else { return };
        if *epoch == key.epoch && step_of_epoch < sampler.n_steps() {
            self.replica.prepare(key, sampler.shard(step_of_epoch, key.shard as usize));
        }
    }

    fn batch(&mut self, batch: u32, backend: &OpenBackend) -> Result<BatchDone, LagError> {
        let Plan { terms, task, .. } = &*self.plan;
        let n_batches = n_batches(task.n_samples(Split::Valid), task.spec().evaluation_batch);
        below("a batch of the validation split", batch.into(), n_batches.into())?;
        let evaluator =
            self.evaluator.get_or_insert_with(|| Arc::clone(task).evaluator(self.replica.params(), &backend.device));
        let sums = evaluator.evaluate_batch(Split::Valid, batch);
        Ok(BatchDone {
            fence: Some(terms.fence.clone()),
            step: self.step,
            batch,
            n_samples: sums.n_samples,
            loss_sum: sums.loss_sum,
            counts: sums.counts.to_vec(),
            params_fingerprint: *self.fingerprint.get_or_insert_with(|| params_fingerprint(self.replica.params())),
        })
    }
}

fn below(what: &'static str, found: u64, n: u64) -> Result<(), LagError> {
    if found < n { Ok(()) } else { Err(LagError::OutOfRange { what, n, found }) }
}

#[cfg(test)]
pub(super) mod tests {
    use engine::args::BackendArgs;
    use engine::recipe::Recipe;

    use super::*;
    use crate::plan::Terms;

    pub struct Bench {
        pub plan: Arc<Plan>,
        pub computer: Computer,
        pub replies: mpsc::Sender<WorkerMessage>,
        pub results: mpsc::Receiver<WorkerMessage>,
    }

    impl Bench {
        pub fn new() -> Self {
            let task = peers::task();
            let welcome = peers::welcome(peers::fence(), task.fingerprint().to_owned());
            let terms = Terms::new(welcome, &model::task::tasks()).expect("a welcome that can be followed");
            let backend =
                BackendArgs { backend: None, device: None, operations: None, threads: None }.open().expect("a device");
            let (replies, results) = mpsc::channel(16);
            let [newest, step] = [0, 0].map(|number| Arc::new(AtomicU64::new(number)));
            let computer = Computer::new(backend, newest, step);
            Self { plan: Arc::new(terms.plan(task)), computer, replies, results }
        }

        /// Gives an order as the newest one, and gives all that came of it.
        fn order(&mut self, order: Order) -> Vec<Kind> {
            let change = self.computer.newest.load(Ordering::Relaxed);
            let (plan, replies) = (Arc::clone(&self.plan), self.replies.clone());
            self.computer.handle(Job { plan, order, change, received: Instant::now(), replies });
            std::iter::from_fn(|| self.results.try_recv().ok()).filter_map(|message| message.kind).collect()
        }

        fn recipe(&self) -> &Recipe {
            &self.plan.terms.recipe
        }

        pub fn params(&self) -> Vec<f32> {
            self.plan.terms.task.initial_params(self.recipe().seed).expect("the network's parameters")
        }

        pub fn state(&self, step: u64, work: Option<Work>) -> Order {
            let params = values::encode(Encoding::F32, &self.params());
            let slots = self.recipe().optimizer.slots(self.params().len());
            let slots = values::encode(Encoding::F32, &slots.concat());
            Order::State(State { step, params, slots, work })
        }
    }

    pub fn work(step: u64, shards: &[u32]) -> Work {
        let step_of_epoch = u32::try_from(step).expect("few steps");
        Work { step, epoch: 0, step_of_epoch, shards: shards.to_vec(), batches: vec![] }
    }

    fn shards(replied: Vec<Kind>) -> Vec<ShardDone> {
        let shard = |kind| match kind {
            Kind::ShardDone(done) => done,
            other => panic!("a shard's result expected, found {other:?}"),
        };
        replied.into_iter().map(shard).collect()
    }

    /// The goal: what a worker computes is what one process alone computes, in every bit, before an update and after it.
    #[test]
    fn shard_results_match_single_process() {
        let mut bench = Bench::new();
        let (recipe, mut params) = (bench.recipe().clone(), bench.params());
        let mut slots = recipe.optimizer.slots(params.len());
        let rates = recipe.learning_rates(peers::N_TRAIN.into());
        let mut replica = Arc::clone(&bench.plan.task).replica(recipe.seed, &bench.computer.backend.device);
        let sampler = recipe.sampler(0, peers::N_TRAIN);

        let mut found = shards(bench.order(bench.state(0, Some(work(0, &[1, 0])))));
        for step in 0..2_u64 {
            let mut gradient = vec![];
            for (done, shard) in found.iter().zip([1_u32, 0]) {
                replica.params_mut().copy_from_slice(&params);
                let places = sampler.shard(usize::try_from(step).expect("few steps"), shard as usize);
                let key = ShardKey { epoch: 0, step, shard };
                let mut expected = vec![0.0; params.len()];
                let sums = replica.shard_result(key, places, &mut expected);
                assert_eq!((done.step, done.shard, done.n_samples), (step, shard, sums.n_samples));
                assert_eq!(done.loss_sum.to_bits(), sums.loss_sum.to_bits());
                assert_eq!(done.gradient_sum, values::encode(Encoding::F32, &expected));
                assert_eq!(done.params_fingerprint, params_fingerprint(&params));
                gradient = expected;
            }
            recipe.optimizer.apply(rates.at(step), &mut params, &mut slots, 0, &gradient);
            bench.computer.prepare_next();
            let gradient = values::encode(Encoding::F32, &gradient);
            let update = Update { step: step + 1, gradient, work: Some(work(step + 1, &[1, 0])), slot: None };
            found = shards(bench.order(Order::Update(update)));
        }
    }

    /// The goal: nothing that comes over the wire can end the thread, and each fault is reported once.
    #[test]
    fn invalid_order_is_reported_once_until_next_state() {
        let check = |make: &dyn Fn(&Bench) -> Order, part: &str| {
            let mut bench = Bench::new();
            assert!(bench.order(bench.state(5, None)).is_empty());
            match bench.order(make(&bench)).as_slice() {
                [Kind::Lagging(Lagging { reason })] => assert!(reason.contains(part), "`{reason}` is not `{part}`"),
                other => panic!("`{part}` expected, found {other:?}"),
            }
            assert!(bench.order(Order::Work(work(5, &[0]))).is_empty(), "{part}");
            assert_eq!(shards(bench.order(bench.state(2, Some(work(2, &[0]))))).len(), 1, "{part}");
        };
        let update = |step, gradient: &[f32]| {
            let gradient = values::encode(Encoding::F32, gradient);
            Order::Update(Update { step, gradient, work: None, slot: None })
        };
        check(&|bench| update(7, &bench.params()), "expected the update to step 6, found that to step 7");
        check(&|bench| update(5, &bench.params()), "found that to step 5");
        check(&|_| update(6, &[1.0]), "the gradient of an update: expected 655256 bytes, found 4");
        check(&|bench| update(6, &vec![f32::NAN; bench.params().len()]), "found one that is not");
        check(&|_| Order::Work(work(6, &[0])), "expected work on step 5, found work on step 6");
        check(&|_| Order::Work(work(5, &[2])), "expected a shard below 2, found 2");
        check(&|_| Order::Work(Work { step_of_epoch: u32::MAX, ..work(5, &[0]) }), "a step of the epoch below 14");
        check(&|_| Order::Work(Work { batches: vec![1], ..work(5, &[]) }), "the validation split below 1, found 1");
        check(&|_| Order::State(State::default()), "the parameters of a state: expected 655256 bytes, found 0");
    }

    #[test]
    fn outdated_work_is_not_computed() {
        let mut bench = Bench::new();
        assert!(bench.order(bench.state(5, None)).is_empty());
        assert!(bench.order(Order::Work(work(4, &[0]))).is_empty(), "an older step");
        let (plan, replies) = (Arc::clone(&bench.plan), bench.replies.clone());
        bench.computer.newest.store(3, Ordering::Relaxed);
        let batches = vec![0];
        let order = Order::Work(Work { batches, ..work(5, &[0, 1]) });
        bench.computer.handle(Job { plan, order, change: 2, received: Instant::now(), replies });
        assert!(bench.results.try_recv().is_err(), "shards and batches of a step that is over");
    }
}
