//! What lies between workers and coordinator: connections, the messages on them, and what can happen to both.

use std::rc::Rc;
use std::time::Duration;

use coordinator::training::{Profile, WorkerId};
use engine::sums::Sums;
use proto::shared::UpdateSlots;

use super::coverage::{Coverage, CoverageCounts};
use super::sim_rng::SimRng;

/// What a worker says.
#[derive(Clone, Debug)]
pub enum ToCoordinator {
    Join(Profile),
    Ready,
    Shard(ShardAnswer),
    Batch { step: u64, batch: u32, sums: Sums, params_fingerprint: u64 },
    Lagging(String),
    Leaving,
    Heartbeat(u64),
}

/// A shard's result as it travels: nothing is known of its numbers.
#[derive(Clone, Debug)]
pub struct ShardAnswer {
    pub step: u64,
    pub shard: u32,
    pub gradient_sum: Vec<f32>,
    pub sums: Sums,
    pub params_fingerprint: u64,
    pub compute: Duration,
}

/// One worker's stream, both ways.
#[derive(Debug)]
pub struct Connection {
    /// Whose it is.
    pub process: usize,
    /// The coordinator's process that it leads to.
    pub incarnation: u32,
    /// The worker's number, once it has joined.
    pub worker_id: Option<WorkerId>,
    /// Where its worker finds averaged gradients, if it is on the coordinator's machine.
    pub updates: Option<Rc<UpdateSlots>>,
    /// Whether the coordinator still listens and speaks.
    pub is_open_here: bool,
    /// Whether nothing arrives any more: it broke, or is half open.
    pub is_cut: bool,
    /// Whether its end is not noticed either.
    pub is_half_open: bool,
    /// When the last message arrives, each way.
    to_coordinator: Duration,
    to_worker: Duration,
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToCoordinator,
    ToWorker,
}

impl Connection {
    pub fn new(process: usize, incarnation: u32, updates: Option<Rc<UpdateSlots>>) -> Self {
        let (worker_id, to_coordinator, to_worker) = (None, Duration::ZERO, Duration::ZERO);
        let (is_open_here, is_cut, is_half_open) = (true, false, false);
        Self { process, incarnation, worker_id, updates, is_open_here, is_cut, is_half_open, to_coordinator, to_worker }
    }

    /// Lets something arrive after all that was sent before it.
    pub fn arrive_last(&mut self, direction: Direction, moment: Duration) -> Duration {
        let last = match direction {
            Direction::ToCoordinator => &mut self.to_coordinator,
            Direction::ToWorker => &mut self.to_worker,
        };
        *last = moment.max(*last);
        *last
    }
}

/// What messages go through.
#[derive(Clone, Debug)]
pub struct Network {
    /// How long a message is on its way, in milliseconds.
    pub delay: (u64, u64),
    /// How many of a thousand are lost, doubled, or overtake others.
    pub n_lost: u64,
    pub n_doubled: u64,
    pub n_overtaking: u64,
}

impl Network {
    /// Whether it does more to messages than that they take their time.
    pub fn is_rough(&self) -> bool {
        self.n_lost + self.n_doubled + self.n_overtaking > 0
    }

    /// How long something is on its way.
    pub fn delay(&self, rng: &mut SimRng) -> Duration {
        rng.time(self.delay.0..=self.delay.1)
    }

    /// When a message sent now arrives: never, or once, or twice.
    pub fn arrivals(
        &self,
        connection: &mut Connection,
        direction: Direction,
        delivery: Delivery,
        now: Duration,
        rng: &mut SimRng,
        coverage: &mut CoverageCounts,
    ) -> Vec<Duration> {
        let may_suffer = delivery == Delivery::Any;
        if may_suffer && rng.is_of_thousand(self.n_lost) {
            coverage.add(Coverage::MessageLost, 1);
            return Vec::new();
        }
        let mut arrivals = Vec::new();
        let n_copies = if may_suffer && rng.is_of_thousand(self.n_doubled) { 2 } else { 1 };
        coverage.add(Coverage::MessageDoubled, n_copies - 1);
        for _ in 0..n_copies {
            let moment = now + self.delay(rng);
            if may_suffer && rng.is_of_thousand(self.n_overtaking) {
                coverage.add(Coverage::MessageOvertaken, 1);
                arrivals.push(moment);
            } else {
                arrivals.push(connection.arrive_last(direction, moment));
            }
        }
        arrivals
    }
}

/// What may happen to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Whatever the network does to messages.
    Any,
    /// It arrives once and in its turn, since what it stands for is no message of ours: the opening and the end of a stream.
    Sure,
}
