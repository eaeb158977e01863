//! A virtual worker: a process that searches a coordinator, is in a session, and computes, as the real one does in
//! `worker/src`; and that lies, if it is one that does.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use coordinator::training::{Profile, SchedulePosition};
use engine::params::params_fingerprint;
use engine::shard::ShardResult;
use proto::shared::UpdateSlots;
use proto::v1::coordinator_message::Kind;
use proto::v1::{self, Encoding, Update, Work};
use proto::values::decode;

use super::network::{ShardAnswer, ToCoordinator};
use super::reference::Problem;

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// A worker's process.
pub struct Worker {
    pub slot: usize,
    pub profile: Profile,
    pub is_alive: bool,
    /// It was asked to end.
    pub is_leaving: bool,
    /// It stands still until then.
    pub stalled_until: Duration,
    /// The session that it is in, or begins.
    pub connection: Option<usize>,
    pub search: Search,
    pub computer: Computer,
    pub lies: Option<Lies>,
}

/// The search for a coordinator, as in `worker/src/run.rs`.
pub struct Search {
    wait_max: Duration,
    begun: Duration,
    pause: Duration,
    session_begun: Option<Duration>,
}

impl Search {
    pub fn begin(wait_max: Duration, now: Duration) -> Self {
        Self { wait_max, begun: now, pause: PAUSE_MIN, session_begun: None }
    }

    /// It was welcomed.
    pub fn is_found(&self) -> bool {
        self.session_begun.is_some()
    }

    pub fn found(&mut self, now: Duration) {
        self.session_begun = Some(now);
    }

    /// How long to wait before the next attempt, if there is to be one.
    pub fn go_on(&mut self, now: Duration) -> Option<Duration> {
        if let Some(session_begun) = self.session_begun.take() {
            if now.saturating_sub(session_begun) > PAUSE_MAX {
                self.pause = PAUSE_MIN;
            }
            self.begun = now;
        }
        let time_left = self.wait_max.saturating_sub(now.saturating_sub(self.begun));
        let pause = self.pause.min(time_left);
        self.pause = (2 * self.pause).min(PAUSE_MAX);
        (!time_left.is_zero()).then_some(pause)
    }
}

/// What a liar says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lie {
    NotFinite,
    WrongLength,
    WrongCount,
    /// The replica is another one, and so is what it gives.
    Stray,
    WrongBits,
    /// Finite numbers that no training gives.
    Nonsense,
    /// Results of shards that it was not dealt.
    Undealt,
    /// Wrong bits where it guesses that results are not compared: as if shards were audited by the seed.
    Guess,
    /// Nothing but heartbeats.
    Silent,
    /// Endless heartbeats, and every result four times.
    Flood,
}

/// When a liar says it.
#[derive(Clone, Copy, Debug)]
pub struct Lies {
    pub lie: Lie,
    /// True results before.
    pub n_true: u32,
    pub is_once: bool,
    pub n_told: u32,
}

impl Lies {
    /// Whether the next result is to be a lie.
    pub fn are_due(&mut self) -> bool {
        let is_true = self.n_true > 0;
        self.n_true -= u32::from(is_true);
        !is_true && (!self.is_once || self.n_told == 0)
    }

    /// Makes a lie of a result, if the result can be one.
    pub fn distort(&mut self, message: &mut ToCoordinator, problem: &Problem) -> bool {
        let is_lie = match (self.lie, message) {
            (Lie::Stray | Lie::Silent | Lie::Flood, _) => true,
            (Lie::Undealt, message) => matches!(message, ToCoordinator::Shard(_)),
            (Lie::Guess, ToCoordinator::Shard(answer)) if is_guessed_audited(problem, answer) => false,
            (lie, ToCoordinator::Shard(answer)) => {
                distort_shard(lie, self.n_told, answer);
                true
            }
            (Lie::NotFinite, ToCoordinator::Batch { sums, .. }) => {
                sums.loss_sum = f64::NAN;
                true
            }
            (Lie::Nonsense, ToCoordinator::Batch { sums, .. }) => {
                sums.loss_sum = 1e300;
                true
            }
            (Lie::WrongCount, ToCoordinator::Batch { sums, .. }) => {
                sums.n_samples += 1;
                true
            }
            // A batch has no gradient, and its losses are not compared.
            _ => false,
        };
        self.n_told += u32::from(is_lie);
        is_lie
    }
}

fn distort_shard(lie: Lie, variant: u32, answer: &mut ShardAnswer) {
    match (lie, variant % 3) {
        (Lie::NotFinite, 0) => answer.gradient_sum[0] = f32::NAN,
        (Lie::NotFinite, 1) => answer.gradient_sum[0] = f32::NEG_INFINITY,
        (Lie::NotFinite, _) => answer.sums.loss_sum = f64::INFINITY,
        (Lie::WrongLength, 0) => answer.gradient_sum.push(0.0),
        (Lie::WrongLength, _) => answer.gradient_sum.truncate(answer.gradient_sum.len() - 1),
        (Lie::WrongCount, 0) => answer.sums.n_samples += 1,
        (Lie::WrongCount, _) => answer.sums.counts[0] = u64::MAX,
        (Lie::Nonsense, 0) => answer.gradient_sum.iter_mut().for_each(|value| *value = 3e38),
        (Lie::Nonsense, 1) => answer.gradient_sum[0] = -1e30,
        (Lie::Nonsense, _) => answer.sums.loss_sum = 1e300,
        (Lie::Stray | Lie::Undealt | Lie::Silent | Lie::Flood, _) => unreachable!("what it computes is true"),
        // The last bit that a bf16 has, which leaves a number a number.
        (Lie::WrongBits | Lie::Guess, 0) => {
            answer.gradient_sum[0] = f32::from_bits(answer.gradient_sum[0].to_bits() ^ 0x1_0000);
        }
        (Lie::WrongBits | Lie::Guess, 1) => answer.sums.loss_sum = f64::from_bits(answer.sums.loss_sum.to_bits() ^ 1),
        (Lie::WrongBits | Lie::Guess, _) => answer.gradient_sum.iter_mut().for_each(|value| *value = -1e4),
    }
}

/// Whether a liar takes a shard for one that is compared: half of them, by the seed, which every worker receives.
fn is_guessed_audited(problem: &Problem, answer: &ShardAnswer) -> bool {
    (problem.recipe.seed ^ answer.step ^ u64::from(answer.shard)).count_ones().is_multiple_of(2)
}

/// The thread that computes, as in `worker/src/compute.rs`.
#[derive(Default)]
pub struct Computer {
    jobs: VecDeque<Job>,
    /// Number of the newest order that changes the parameters.
    newest: u64,
    loaded: Option<LoadedReplica>,
    at_work: Option<AtWork>,
}

struct Job {
    connection: usize,
    order: Kind,
    change: u64,
    updates: Option<Rc<UpdateSlots>>,
}

struct LoadedReplica {
    connection: usize,
    step: u64,
    params: Vec<f32>,
    slots: Vec<Vec<f32>>,
    fingerprint: u64,
}

struct AtWork {
    connection: usize,
    change: u64,
    work: Work,
    n_done: usize,
    is_computing: bool,
}

impl Computer {
    /// Takes an order.
    pub fn submit(&mut self, connection: usize, order: Kind, updates: Option<Rc<UpdateSlots>>) {
        if matches!(order, Kind::State(_) | Kind::Update(_)) {
            self.newest += 1;
        }
        self.jobs.push_back(Job { connection, order, change: self.newest, updates });
    }

    /// Updates that the replica has.
    pub fn step(&self) -> u64 {
        self.loaded.as_ref().map_or(0, |loaded| loaded.step)
    }

    /// Runs until something has to be computed; whether that is so. Faults of the replica are added to `sent`.
    pub fn go_on(&mut self, session: Option<usize>, problem: &Problem, sent: &mut Vec<ToCoordinator>) -> bool {
        // Ends: each turn ends a piece of work or takes an order.
        loop {
            if let Some(at_work) = &mut self.at_work {
                if at_work.is_computing {
                    return false;
                }
                let is_of_use = at_work.change == self.newest && session == Some(at_work.connection);
                if is_of_use && at_work.n_done < n_tasks(&at_work.work) {
                    at_work.is_computing = true;
                    return true;
                }
                self.at_work = None;
            }
            let Some(Job { connection, order, change, updates }) = self.jobs.pop_front() else { return false };
            if session != Some(connection) {
                continue;
            }
            self.loaded.take_if(|loaded| loaded.connection != connection);
            match self.follow(connection, order, updates.as_deref(), problem) {
                Ok(Some(work)) => {
                    self.at_work = Some(AtWork { connection, change, work, n_done: 0, is_computing: false });
                }
                Ok(None) => {}
                Err(reason) => {
                    self.loaded = None;
                    sent.push(ToCoordinator::Lagging(reason));
                }
            }
        }
    }

    fn follow(
        &mut self,
        connection: usize,
        order: Kind,
        updates: Option<&UpdateSlots>,
        problem: &Problem,
    ) -> Result<Option<Work>, String> {
        let work = match order {
            Kind::State(v1::State { step, params, slots, work }) => {
                let params = numbers(Encoding::F32, &params);
                let (mut kept, mut slots) = (&*slots, problem.recipe.optimizer.slots(params.len()));
                for slot in &mut slots {
                    let bytes = kept.split_off(..4 * slot.len()).expect("as many as the optimizer keeps");
                    *slot = numbers(Encoding::F32, bytes);
                }
                let fingerprint = params_fingerprint(&params);
                self.loaded = Some(LoadedReplica { connection, step, params, slots, fingerprint });
                work
            }
            Kind::Update(Update { step, gradient, slot, work }) => {
                if let Some(loaded) = &mut self.loaded {
                    if step != loaded.step + 1 {
                        return Err(format!("expected the update to step {}, found that to {step}", loaded.step + 1));
                    }
                    let gradient = match slot {
                        None => numbers(problem.encoding, &gradient),
                        Some(slot) => {
                            let mut gradient = Vec::new();
                            let updates = updates.expect("who has no memory is sent bytes");
                            updates
                                .read(slot, step, |_, values| gradient.extend(values))
                                .map_err(|error| error.to_string())?;
                            gradient
                        }
                    };
                    let rate = problem.rates.at(loaded.step);
                    problem.recipe.optimizer.apply(rate, &mut loaded.params, &mut loaded.slots, 0, &gradient);
                    loaded.step = step;
                    loaded.fingerprint = params_fingerprint(&loaded.params);
                }
                work
            }
            Kind::Work(work) => Some(work),
            other => unreachable!("{other:?} is no order"),
        };
        let (Some(loaded), Some(work)) = (&self.loaded, work.filter(|work| n_tasks(work) > 0)) else {
            return Ok(None);
        };
        if work.step > loaded.step {
            return Err(format!("expected work on step {}, found work on {}", loaded.step, work.step));
        }
        Ok((work.step == loaded.step).then_some(work))
    }

    /// A bit of the replica turns over.
    pub fn stray(&mut self) {
        let loaded = self.loaded.as_mut().expect("it computes on a replica");
        loaded.params[0] = f32::from_bits(loaded.params[0].to_bits() ^ 1);
        loaded.fingerprint = params_fingerprint(&loaded.params);
    }

    /// Results of all shards of the step at hand that its order does not name. They are right, so that no harm is done if one of
    /// them is dealt to it meanwhile.
    pub fn undealt(&self, problem: &Problem) -> Vec<ToCoordinator> {
        let (Some(loaded), Some(AtWork { work, .. })) = (&self.loaded, &self.at_work) else { return Vec::new() };
        let message = |shard| {
            let (step, params_fingerprint, compute) = (loaded.step, loaded.fingerprint, Duration::ZERO);
            let ShardResult { gradient_sum, sums } = problem.shard(&loaded.params, position_of(work), step, shard);
            ToCoordinator::Shard(ShardAnswer { step, shard, gradient_sum, sums, params_fingerprint, compute })
        };
        let is_undealt = |shard: &u32| !work.shards.is_empty() && !work.shards.contains(shard);
        (0..problem.recipe.shards.get()).filter(is_undealt).map(message).collect()
    }

    /// What it has computed, and on which connection it was asked to.
    pub fn finish(&mut self, problem: &Problem, compute: Duration) -> (usize, ToCoordinator) {
        let at_work = self.at_work.as_mut().expect("it was at work");
        let loaded = self.loaded.as_ref().expect("it computes on a replica");
        let (step, params_fingerprint) = (loaded.step, loaded.fingerprint);
        let message = if let Some(&shard) = at_work.work.shards.get(at_work.n_done) {
            let result = problem.shard(&loaded.params, position_of(&at_work.work), step, shard);
            let ShardResult { gradient_sum, sums } = result;
            ToCoordinator::Shard(ShardAnswer { step, shard, gradient_sum, sums, params_fingerprint, compute })
        } else {
            let batch = at_work.work.batches[at_work.n_done];
            let sums = problem.batch(&loaded.params, step, batch);
            ToCoordinator::Batch { step, batch, sums, params_fingerprint }
        };
        at_work.n_done += 1;
        at_work.is_computing = false;
        (at_work.connection, message)
    }
}

/// Shards, or batches.
fn n_tasks(work: &Work) -> usize {
    work.shards.len() + work.batches.len()
}

pub fn position_of(work: &Work) -> SchedulePosition {
    SchedulePosition { epoch: work.epoch, step_of_epoch: work.step_of_epoch }
}

/// As many numbers as there are bytes for.
pub fn numbers(encoding: Encoding, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / encoding.value_bytes()];
    decode(encoding, bytes, &mut values).expect("the coordinator sends finite numbers");
    values
}
