//! Where orders are executed: on a thread of its own if they take long, so that heartbeats and messages never wait for it, and
//! otherwise by the task that reads messages.

mod computer;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use engine::args::OpenBackend;
use proto::limits::HEARTBEAT_INTERVAL;
use proto::v1::{State, Update, Work, WorkerMessage};
use tokio::sync::mpsc;
use tokio::task::yield_now;

use crate::plan::Plan;

use computer::{Computer, Job};

/// Orders that wait for the thread. More than these wait in the connection, whose window bounds them.
const ORDERS_MAX: usize = 16;
/// Orders that take no longer are executed by the task that reads messages: heartbeats can wait so long, and to wake a thread twice
/// costs a tenth of a step of 1.5 ms.
const SHORT: Duration = HEARTBEAT_INTERVAL.checked_div(10).expect("ten is above 0");

/// What the coordinator asks of a replica.
#[derive(Debug)]
pub(crate) enum Order {
    /// To be this.
    State(State),
    /// To take over a gradient.
    Update(Update),
    /// To compute on the parameters as they are.
    Work(Work),
}

/// The replica, for those who give it orders.
#[derive(Debug)]
pub(crate) struct Compute {
    computer: Arc<Mutex<Computer>>,
    jobs: mpsc::Sender<Job>,
    /// Jobs that the thread has not finished.
    n_waiting: Arc<AtomicUsize>,
    /// Number of the newest order that changes the parameters: tasks of older parameters are not needed any more.
    newest: Arc<AtomicU64>,
    /// Updates applied to the replica.
    step: Arc<AtomicU64>,
}

/// The compute thread has ended, which only a panic causes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the computation ended by a fault of this program, which is told above")]
pub struct ComputeEnded;

impl Compute {
    /// Starts the thread. It ends when all senders of orders are gone.
    pub fn start(backend: OpenBackend) -> std::io::Result<Self> {
        let (jobs, mut waiting) = mpsc::channel::<Job>(ORDERS_MAX);
        let [newest, step] = [0, 0].map(|number| Arc::new(AtomicU64::new(number)));
        let n_waiting = Arc::new(AtomicUsize::new(0));
        let computer = Computer::new(backend, Arc::clone(&newest), Arc::clone(&step));
        let computer = Arc::new(Mutex::new(computer));
        let compute = Self { computer: Arc::clone(&computer), jobs, n_waiting: Arc::clone(&n_waiting), newest, step };
        std::thread::Builder::new().name("compute".to_owned()).spawn(move || {
            // Ends when all senders of orders are gone.
            while let Some(job) = waiting.blocking_recv() {
                let mut computer = computer.lock().expect("the task that reads messages ends the worker after a panic");
                computer.handle(job);
                if n_waiting.fetch_sub(1, Ordering::Release) == 1 {
                    computer.prepare_next();
                }
            }
        })?;
        Ok(compute)
    }

    /// Executes an order if it is short, and otherwise waits for a place in the thread's queue.
    ///
    /// # Errors
    /// If the compute thread has ended, or the order caused a panic.
    pub async fn submit(
        &self,
        plan: &Arc<Plan>,
        order: Order,
        replies: &mpsc::Sender<WorkerMessage>,
    ) -> Result<(), ComputeEnded> {
        let change = match order {
            // Counted before it waits, so that what it makes useless is left at once.
            Order::State(_) | Order::Update(_) => self.newest.fetch_add(1, Ordering::Relaxed) + 1,
            Order::Work(_) => self.newest.load(Ordering::Relaxed),
        };
        let received = Instant::now();
        let job = Job { plan: Arc::clone(plan), order, change, received, replies: replies.clone() };
        if let Some(job) = self.handle_if_short(job)? {
            let place = self.jobs.reserve().await.map_err(|_| ComputeEnded)?;
            self.n_waiting.fetch_add(1, Ordering::Relaxed);
            place.send(job);
        } else {
            // The results are sent first.
            yield_now().await;
            if let Ok(mut computer) = self.computer.try_lock() {
                catch_panic(|| computer.prepare_next())?;
            }
        }
        Ok(())
    }

    /// Executes a job that is short, if the thread has nothing to do; returns any other.
    fn handle_if_short(&self, job: Job) -> Result<Option<Job>, ComputeEnded> {
        if self.n_waiting.load(Ordering::Acquire) > 0 {
            return Ok(Some(job));
        }
        let mut computer = match self.computer.try_lock() {
            Ok(computer) => computer,
            Err(TryLockError::WouldBlock) => return Ok(Some(job)),
            Err(TryLockError::Poisoned(_)) => return Err(ComputeEnded),
        };
        if !computer.is_short(&job, SHORT) {
            return Ok(Some(job));
        }
        catch_panic(|| computer.handle(job)).map(|()| None)
    }

    /// Updates that the replica had when it was last changed; 0 before its first state.
    pub fn step(&self) -> u64 {
        self.step.load(Ordering::Relaxed)
    }

    /// Waits until the thread has ended.
    pub async fn ended(&self) -> ComputeEnded {
        self.jobs.closed().await;
        ComputeEnded
    }
}

/// Runs work whose state is not used again after a panic: the worker ends.
fn catch_panic(work: impl FnOnce()) -> Result<(), ComputeEnded> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| ComputeEnded)
}

#[cfg(test)]
mod tests {
    use engine::params::params_fingerprint;
    use proto::limits;
    use proto::v1::worker_message::Kind;
    use proto::v1::{Encoding, Heartbeat, ShardDone};
    use proto::values;
    use tokio::time::timeout;

    use super::computer::tests::{Bench, work};
    use super::*;
    use crate::link::GradientTransport;

    fn compute(bench: &Bench) -> Compute {
        Compute::start(bench.computer.backend.clone()).expect("a thread")
    }

    async fn result(bench: &mut Bench) -> ShardDone {
        let message = timeout(limits::FIRST_MESSAGE_WAIT_MAX, bench.results.recv()).await.expect("a result in time");
        match message.and_then(|message| message.kind) {
            Some(Kind::ShardDone(done)) => done,
            other => panic!("a shard's result expected, found {other:?}"),
        }
    }

    fn update(step: u64, gradient: &[f32], shards: &[u32]) -> Order {
        let gradient = values::encode(Encoding::F32, gradient);
        Order::Update(Update { step, gradient, work: Some(work(step, shards)), slot: None })
    }

    /// Whether an order is short by what its computer knows, for which the thread's work is waited for.
    fn is_short(compute: &Compute, bench: &Bench, order: Order) -> bool {
        let (plan, replies) = (Arc::clone(&bench.plan), bench.replies.clone());
        let job = Job { plan, order, change: 0, received: Instant::now(), replies };
        compute.computer.lock().expect("no panic").is_short(&job, SHORT)
    }

    /// The goal: a short order is executed at once, on the parameters that all orders before it have made.
    #[tokio::test]
    async fn short_order_is_executed_inline_after_queued_orders() {
        let mut bench = Bench::new();
        let (compute, mut params) = (compute(&bench), bench.params());
        let gradient = vec![0.01; params.len()];
        // The time of a shard is not known yet, and the second order finds the thread at work.
        for order in [bench.state(0, None), update(1, &gradient, &[0])] {
            compute.submit(&bench.plan, order, &bench.replies).await.expect("a queue");
        }
        assert_eq!(result(&mut bench).await.step, 1);
        while compute.n_waiting.load(Ordering::Acquire) > 0 || compute.computer.try_lock().is_err() {
            yield_now().await;
        }
        let recipe = bench.plan.terms.recipe.clone();
        let (mut slots, rates) = (recipe.optimizer.slots(params.len()), recipe.learning_rates(peers::N_TRAIN.into()));
        let mut apply = |step: u64, params: &mut [f32]| {
            recipe.optimizer.apply(rates.at(step - 1), params, &mut slots, 0, &gradient);
        };
        apply(1, &mut params);
        for step in 2..6 {
            apply(step, &mut params);
            // On a busy machine a shard may take long, and the order goes to the thread.
            let is_idle = compute.n_waiting.load(Ordering::Acquire) == 0;
            let is_inline = is_idle && is_short(&compute, &bench, update(step, &gradient, &[1, 0]));
            let order = update(step, &gradient, &[1, 0]);
            compute.submit(&bench.plan, order, &bench.replies).await.expect("computing goes on");
            if is_inline {
                assert_eq!(compute.step(), step, "it is executed when `submit` returns");
            }
            for shard in [1, 0] {
                let done = result(&mut bench).await;
                assert_eq!((done.step, done.shard), (step, shard));
                assert_eq!(done.params_fingerprint, params_fingerprint(&params));
            }
            assert_eq!(compute.step(), step);
        }
    }

    /// The goal: the task that reads messages never waits for places in a queue that it empties itself.
    #[tokio::test]
    async fn full_reply_queue_moves_work_to_thread() {
        let mut bench = Bench::new();
        let (compute, gradient) = (compute(&bench), vec![0.01; bench.params().len()]);
        let state = bench.state(0, Some(work(0, &[0])));
        compute.submit(&bench.plan, state, &bench.replies).await.expect("a queue");
        assert_eq!(result(&mut bench).await.step, 0);
        for n_free in 0..3 {
            while bench.replies.capacity() > n_free {
                let heartbeat = WorkerMessage { kind: Some(Kind::Heartbeat(Heartbeat { step: 0 })) };
                bench.replies.try_send(heartbeat).expect("room");
            }
            let step = n_free as u64 + 1;
            compute.submit(&bench.plan, update(step, &gradient, &[0, 1]), &bench.replies).await.expect("a queue");
            let mut n_results = 0;
            while n_results < 2 {
                let message = timeout(limits::FIRST_MESSAGE_WAIT_MAX, bench.results.recv()).await.expect("in time");
                n_results += usize::from(matches!(message, Some(WorkerMessage { kind: Some(Kind::ShardDone(_)) })));
            }
        }
    }

    /// The goal: a panic of the compute thread is reported as an error, and leaves no idle worker.
    #[tokio::test]
    async fn compute_thread_panic_is_reported() {
        let mut bench = Bench::new();
        let plan = Arc::get_mut(&mut bench.plan).expect("nobody else has it");
        plan.transport = GradientTransport::open(Encoding::F32, None, 1); // which has no memory for the network's gradient
        let compute = compute(&bench);
        let state = bench.state(0, Some(work(0, &[0])));
        compute.submit(&bench.plan, state, &bench.replies).await.expect("a queue");
        let ended = timeout(limits::FIRST_MESSAGE_WAIT_MAX, compute.ended()).await;
        assert_eq!(ended, Ok(ComputeEnded));
    }
}
