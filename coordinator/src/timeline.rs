//! When each shard was computed, by the coordinator's clock: what workers say by their own clocks is aligned by the round trips
//! of work and results. For people only; nothing here decides anything.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use events::{RunEvent, Snapshot, StepEvent, TaskSpan, WorkerStatus};

use crate::training::{Roster, WorkerId};

/// How often there is a snapshot.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(1);
/// Round trips by whose shortest a worker's clock is aligned.
const ROUND_TRIPS: usize = 64;
/// Orders of a worker that are remembered: of the step at hand, and of some before.
const ASSIGNMENTS_MAX: usize = 8;
/// Spans that are kept of a step: of more tasks the last are left out.
const SPANS_MAX: usize = 1024;
/// Spans that a snapshot has: enough for a page, and a bound on the file that snapshots go to.
const SNAPSHOT_SPANS_MAX: usize = 64;

/// What a worker says of a result by its own clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerTimes {
    /// The order to compute arrived.
    pub received: Duration,
    /// It began.
    pub started: Duration,
    /// It had the result.
    pub finished: Duration,
}

/// The times of the step at hand, and the workers' clocks.
#[derive(Debug, Default)]
pub struct Timeline {
    workers: BTreeMap<WorkerId, WorkerTimeline>,
    /// Of the step at hand, with the step it is of: by the coordinator's clock, in milliseconds from its start.
    spans: Vec<(u64, TaskSpan)>,
    last_snapshot: Option<Duration>,
}

/// What is known of a worker.
#[derive(Debug, Default)]
struct WorkerTimeline {
    /// Its last orders, newest last: the updates applied, and when each was sent.
    assignments: VecDeque<(u64, Duration)>,
    /// Of its last results: seconds on the way, and by how many its clock is ahead of the coordinator's.
    round_trips: VecDeque<(f64, f64)>,
    n_shards: u64,
    n_late: u64,
}

impl WorkerTimeline {
    /// Seconds by which its clock is ahead, by the round trip with the least time on the way: half of what is left of it is the
    /// most by which that can be wrong (as in NTP, RFC 5905, section 8).
    fn offset(&self) -> f64 {
        self.round_trips.iter().min_by(|a, b| a.0.total_cmp(&b.0)).map_or(0.0, |&(_, offset)| offset)
    }
}

impl Timeline {
    /// A worker is sent an order to compute after `step` updates.
    pub fn assigned(&mut self, worker_id: WorkerId, step: u64, now: Duration) {
        let assignments = &mut self.workers.entry(worker_id).or_default().assignments;
        if assignments.len() == ASSIGNMENTS_MAX {
            assignments.pop_front();
        }
        assignments.push_back((step, now));
    }

    /// A worker's result of a shard, after `step` updates, was there at a time. Only the first counts.
    pub fn arrived(&mut self, worker_id: WorkerId, step: u64, shard: u32, times: WorkerTimes, arrived: Duration) {
        let Some(worker) = self.workers.get_mut(&worker_id) else { return };
        let orders = worker.assignments.iter().filter(|(of_step, at)| *of_step == step && *at <= arrived);
        let orders: Vec<f64> = orders.map(|(_, at)| at.as_secs_f64()).collect();
        let Some(&assigned) = orders.last() else { return };
        let [received, started, finished] =
            [times.received, times.started, times.finished].map(|time| time.as_secs_f64());
        let arrived = arrived.as_secs_f64();
        let on_the_way = (arrived - assigned) - (finished - received);
        // With several orders for a step, which one was answered is not known; and a worker can say anything.
        if orders.len() == 1 && on_the_way >= 0.0 {
            if worker.round_trips.len() == ROUND_TRIPS {
                worker.round_trips.pop_front();
            }
            worker.round_trips.push_back((on_the_way, f64::midpoint(received - assigned, finished - arrived)));
        }
        let offset = worker.offset();
        let started = (started - offset).clamp(assigned, arrived);
        let finished = (finished - offset).clamp(started, arrived);
        let is_known =
            |(of_step, span): &(u64, TaskSpan)| (*of_step, span.shard, span.worker) == (step, shard, worker_id.0);
        if self.spans.len() < SPANS_MAX && !self.spans.iter().any(is_known) {
            let [assigned, started, finished, arrived] = [assigned, started, finished, arrived].map(|time| 1e3 * time);
            self.spans.push((step, TaskSpan { shard, worker: worker_id.0, assigned, started, finished, arrived }));
        }
    }

    /// A worker is late once more.
    pub fn late(&mut self, worker_id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&worker_id) {
            worker.n_late += 1;
        }
    }

    /// A worker is gone.
    pub fn left(&mut self, worker_id: WorkerId) {
        self.workers.remove(&worker_id);
    }

    /// Fills in when the shards of a step were computed whose results count.
    pub fn finish_step(&mut self, event: &mut StepEvent) {
        let begun = 1e3 * event.begun.as_secs_f64();
        let of_step = event.record.step - 1; // the updates that it was computed after
        for (_, span) in self.spans.drain(..).filter(|(step, _)| *step == of_step) {
            if event.workers.get(span.shard as usize) == Some(&span.worker) {
                let from_begin = |time: f64| ((time - begun).max(0.0) * 1e3).round() / 1e3;
                let TaskSpan { shard, worker, assigned, started, finished, arrived } = span;
                event.tasks.push(TaskSpan {
                    shard,
                    worker,
                    assigned: from_begin(assigned),
                    started: from_begin(started),
                    finished: from_begin(finished),
                    arrived: from_begin(arrived),
                });
            }
        }
        event.tasks.sort_by_key(|span| span.shard);
        for worker in &event.workers {
            // One that has left since, and the coordinator itself, are in no roster.
            if let Some(worker) = self.workers.get_mut(&WorkerId(*worker)) {
                worker.n_shards += 1;
            }
        }
    }

    /// How a step went and how the workers are, if that was last said a while ago.
    pub fn snapshot(&mut self, event: &StepEvent, roster: &Roster, now: Duration) -> Option<RunEvent> {
        if self.last_snapshot.is_some_and(|last| now.saturating_sub(last) < SNAPSHOT_INTERVAL) {
            return None;
        }
        self.last_snapshot = Some(now);
        let status = |(worker_id, last_heard): (WorkerId, Duration)| {
            let known = self.workers.get(&worker_id);
            WorkerStatus {
                worker: worker_id.0,
                silent_milliseconds: (1e3 * now.saturating_sub(last_heard).as_secs_f64()).round(),
                n_shards: known.map_or(0, |worker| worker.n_shards),
                n_late: known.map_or(0, |worker| worker.n_late),
            }
        };
        Some(RunEvent::Snapshot(Snapshot {
            step: event.record.step,
            milliseconds: event.record.milliseconds,
            costs: event.costs,
            tasks: event.tasks.iter().copied().take(SNAPSHOT_SPANS_MAX).collect(),
            workers: roster.active_members().map(|(id, member)| status((id, member.last_heard))).collect(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use events::{Figures, StepCosts, StepRecord};

    use super::*;

    const WORKER: WorkerId = WorkerId(3);

    fn milliseconds(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn step_event(begun: u64) -> StepEvent {
        let metrics = Figures::default();
        let (loss, n_samples) = (0.5, 8);
        let record =
            StepRecord { step: 5, epoch: 1, loss, metrics, n_samples, milliseconds: 40.0, params_blake3: None };
        let (costs, begun) = (StepCosts::default(), milliseconds(begun));
        StepEvent { record, workers: vec![3, 3], n_active: 1, costs, begun, tasks: Vec::new() }
    }

    /// The goal: whatever a worker's clock says, its work lies where it was by the coordinator's clock, to the quickest round
    /// trip's asymmetry.
    #[test]
    fn worker_clock_is_aligned_by_the_quickest_round_trip() {
        let mut timeline = Timeline::default();
        // The worker's clock is 50,000 ms ahead; messages take 1 ms, but those of the first result 1 and 21.
        let times = |received: u64, started: u64, finished: u64| WorkerTimes {
            received: milliseconds(50_000 + received),
            started: milliseconds(50_000 + started),
            finished: milliseconds(50_000 + finished),
        };
        timeline.assigned(WORKER, 3, milliseconds(100));
        timeline.arrived(WORKER, 3, 0, times(101, 102, 110), milliseconds(131));
        timeline.assigned(WORKER, 4, milliseconds(200));
        timeline.arrived(WORKER, 4, 0, times(201, 203, 210), milliseconds(211));
        timeline.assigned(WORKER, 4, milliseconds(300)); // as for one more task, after the first result
        timeline.arrived(WORKER, 4, 1, times(301, 302, 310), milliseconds(331));
        let mut event = step_event(200);
        timeline.finish_step(&mut event);
        let expected = |shard, [assigned, started, finished, arrived]: [f64; 4]| TaskSpan {
            shard,
            worker: 3,
            assigned,
            started,
            finished,
            arrived,
        };
        assert_eq!(
            event.tasks,
            [expected(0, [0.0, 3.0, 10.0, 11.0]), expected(1, [100.0, 102.0, 110.0, 131.0])],
            "those of the step before are not of this one"
        );
    }

    #[test]
    fn times_that_cannot_be_are_brought_between_assignment_and_arrival() {
        let mut timeline = Timeline::default();
        timeline.assigned(WORKER, 4, milliseconds(10));
        let (received, started, finished) = (milliseconds(900), milliseconds(5), Duration::from_secs(1 << 40));
        timeline.arrived(WORKER, 4, 1, WorkerTimes { received, started, finished }, milliseconds(20));
        let mut event = step_event(10);
        timeline.finish_step(&mut event);
        let [TaskSpan { assigned, started, finished, arrived, .. }] = event.tasks[..] else { panic!("{event:?}") };
        assert!(assigned <= started && started <= finished && finished <= arrived, "{event:?}");
        assert_eq!((assigned, arrived), (0.0, 10.0));
    }

    /// The goal: a result that arrives out of order is left out, and ends nothing.
    #[test]
    fn result_that_arrived_before_its_assignment_has_no_span() {
        let mut timeline = Timeline::default();
        timeline.assigned(WORKER, 4, milliseconds(30));
        timeline.arrived(WORKER, 4, 0, WorkerTimes::default(), milliseconds(20));
        timeline.arrived(WORKER, 3, 0, WorkerTimes::default(), milliseconds(40));
        timeline.arrived(WORKER, 4, 1, WorkerTimes::default(), milliseconds(40));
        timeline.arrived(WORKER, 4, 1, WorkerTimes::default(), milliseconds(41));
        let mut event = step_event(30);
        timeline.finish_step(&mut event);
        let found: Vec<_> = event.tasks.iter().map(|span| (span.shard, span.arrived)).collect();
        assert_eq!(found, [(1, 10.0)], "a result is drawn once");
    }

    /// The goal: nothing is kept of workers that have left, whatever of theirs still counts.
    #[test]
    fn workers_that_left_are_forgotten() {
        let mut timeline = Timeline::default();
        timeline.assigned(WORKER, 4, milliseconds(1));
        timeline.left(WORKER);
        timeline.late(WORKER);
        timeline.finish_step(&mut step_event(0));
        assert!(timeline.workers.is_empty());
    }

    #[test]
    fn snapshot_is_taken_once_a_second() {
        let (mut timeline, event, roster) = (Timeline::default(), step_event(0), Roster::new(milliseconds(5)));
        let times = [0, 10, 999, 1000, 1001, 1999, 2000].map(milliseconds);
        let taken = times.map(|now| timeline.snapshot(&event, &roster, now).is_some());
        assert_eq!(taken, [true, false, false, true, false, false, true]);
    }
}
