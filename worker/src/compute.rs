//! Who computes: a thread of its own, so that heartbeats and messages never wait for it.

mod computer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use engine::args::OpenBackend;
use proto::v1::{State, Update, Work, WorkerMessage};
use tokio::sync::mpsc;

use crate::plan::Plan;

use computer::{Computer, Job};

/// Orders that wait for the thread. More than these wait in the connection, whose window bounds them.
const ORDERS_MAX: usize = 16;

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
    jobs: mpsc::Sender<Job>,
    /// Number of the newest order that changes the parameters: what was to be computed before it is of no use to anybody.
    newest: Arc<AtomicU64>,
    /// Updates applied to the replica.
    step: Arc<AtomicU64>,
}

/// Nobody computes any more, which comes only of a panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the computation ended by a fault of this program, which is told above")]
pub struct ComputeEnded;

impl Compute {
    /// Starts the thread. It ends when nobody can give it orders any more.
    pub fn start(backend: OpenBackend) -> std::io::Result<Self> {
        let (jobs, mut waiting) = mpsc::channel::<Job>(ORDERS_MAX);
        let [newest, step] = [0, 0].map(|number| Arc::new(AtomicU64::new(number)));
        let mut computer = Computer::new(backend, Arc::clone(&newest), Arc::clone(&step));
        std::thread::Builder::new().name("compute".to_owned()).spawn(move || {
            // Ends when nobody can give it orders any more.
            while let Some(job) = waiting.blocking_recv() {
                computer.handle(job);
                if waiting.is_empty() {
                    computer.prepare_next();
                }
            }
        })?;
        Ok(Self { jobs, newest, step })
    }

    /// Gives an order, and waits for a place in the queue if it is full.
    ///
    /// # Errors
    /// If nobody computes any more.
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
        self.jobs.send(job).await.map_err(|_| ComputeEnded)
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

    /// The goal: each order is followed on the parameters that all orders before it have made.
    #[tokio::test]
    async fn orders_are_followed_in_turn() {
        let mut bench = Bench::new();
        let (compute, mut params) = (compute(&bench), bench.params());
        let gradient = vec![0.01; params.len()];
        for order in [bench.state(0, None), update(1, &gradient, &[0])] {
            compute.submit(&bench.plan, order, &bench.replies).await.expect("a queue");
        }
        assert_eq!(result(&mut bench).await.step, 1);
        let recipe = bench.plan.terms.recipe.clone();
        let (mut slots, rates) = (recipe.optimizer.slots(params.len()), recipe.learning_rates(peers::N_TRAIN.into()));
        let mut apply = |step: u64, params: &mut [f32]| {
            recipe.optimizer.apply(rates.at(step - 1), params, &mut slots, 0, &gradient);
        };
        apply(1, &mut params);
        for step in 2..6 {
            apply(step, &mut params);
            compute
                .submit(&bench.plan, update(step, &gradient, &[1, 0]), &bench.replies)
                .await
                .expect("computing goes on");
            for shard in [1, 0] {
                let done = result(&mut bench).await;
                assert_eq!((done.step, done.shard), (step, shard));
                assert_eq!(done.params_fingerprint, params_fingerprint(&params));
            }
            assert_eq!(compute.step(), step);
        }
    }

    /// The goal: who reads messages never waits for places that only he can make.
    #[tokio::test]
    async fn full_reply_queue_holds_up_the_thread_alone() {
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

    /// The goal: a fault of the program is an end that can be told, not a worker that does nothing for ever.
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
