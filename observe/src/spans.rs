//! When each part of a step was, by the coordinator's clock: what traces are drawn from, in whatever format.

use std::ops::Range;
use std::time::Duration;

use events::{RecordedEvent, RunEvent, StepCosts, StepEvent, TaskSpan};

/// The coordinator's phases of a step, in their order.
pub const PHASES: [&str; 7] = ["wait", "decode", "reduce", "update", "encode", "send", "journal"];

/// The parts of a step, from the start of the coordinator's process.
pub struct StepSpans {
    /// The step itself.
    pub step: Range<Duration>,
    /// Its tasks, in the order in which they were begun.
    pub tasks: Vec<TaskTimes>,
    /// The task whose result came last.
    pub last_task: Option<TaskTimes>,
    /// What the coordinator did, in the order of [`PHASES`].
    pub phases: [PhaseSpan; 7],
}

/// When a task was computed: `assigned` ≤ `started` ≤ `finished` ≤ `arrived`.
#[derive(Clone, Copy)]
pub struct TaskTimes {
    /// The shard's position in the step, from 0.
    pub shard: u32,
    /// The worker whose result counted; 0 is the coordinator.
    pub worker: u64,
    /// The coordinator assigned it to the worker.
    pub assigned: Duration,
    /// It began.
    pub started: Duration,
    /// It had the result.
    pub finished: Duration,
    /// The coordinator had it.
    pub arrived: Duration,
}

/// A phase of the coordinator.
pub struct PhaseSpan {
    /// Which.
    pub name: &'static str,
    /// Where it is drawn.
    pub span: Range<Duration>,
    /// How long it took, as measured.
    pub duration: Duration,
}

impl StepSpans {
    /// The parts of a step that happened just now.
    pub fn new(event: &StepEvent) -> Self {
        let mut tasks: Vec<_> = event.tasks.iter().collect();
        tasks.sort_by(|a, b| a.started.total_cmp(&b.started));
        let times = |task: &TaskSpan| {
            let [assigned, started, finished, arrived] =
                [task.assigned, task.started, task.finished, task.arrived].map(|time| event.begun + milliseconds(time));
            TaskTimes { shard: task.shard, worker: task.worker, assigned, started, finished, arrived }
        };
        let last_task = event.tasks.iter().max_by(|a, b| a.arrived.total_cmp(&b.arrived)).map(times);
        Self {
            step: event.begun..end_of(event),
            tasks: tasks.into_iter().map(times).collect(),
            last_task,
            phases: phases(event.begun, last_task, event.costs),
        }
    }
}

/// The coordinator waits until the last result is there. Its own work is known by length alone, and is drawn after that in the
/// order in which it is done; decoding is done while it waits, and is drawn at the end of that. Where there is a journal, the step
/// begins with the update before: it is written to the journal, encoded and sent.
fn phases(begun: Duration, last_task: Option<TaskTimes>, costs: StepCosts) -> [PhaseSpan; 7] {
    let StepCosts { compute: _, wait, decode, reduce, update, encode, send, journal } = costs;
    let waited = last_task.map_or(begun + wait, |task| task.arrived);
    let durations = [wait, decode, reduce, update, encode, send, journal];
    let after = if journal.is_zero() {
        consecutive(waited, [reduce, update, encode, send, journal])
    } else {
        // The last three are those of the update before, with which the step begins: see `StepCosts`.
        let [reduce, update] = consecutive(waited, [reduce, update]);
        let [journal, encode, send] = consecutive(begun, [journal, encode, send]);
        [reduce, update, encode, send, journal]
    };
    let before = [begun..waited, waited.saturating_sub(decode).max(begun)..waited];
    let spans = before.into_iter().chain(after);
    let mut phases = PHASES.into_iter().zip(spans).zip(durations);
    std::array::from_fn(|_| {
        let ((name, span), duration) = phases.next().expect("as many as there are names");
        PhaseSpan { name, span, duration }
    })
}

/// Spans one after the other.
fn consecutive<const N: usize>(mut at: Duration, durations: [Duration; N]) -> [Range<Duration>; N] {
    durations.map(|duration| {
        let start = at;
        at += duration;
        start..at
    })
}

/// When the coordinator's process started, in seconds since 1970, by the newest event that says so.
#[derive(Default)]
pub struct ProcessStart(Option<f64>);

impl ProcessStart {
    /// Takes in what happened.
    pub fn apply(&mut self, recorded: &RecordedEvent) {
        match &recorded.event {
            RunEvent::Started { .. } => self.0 = Some(recorded.time),
            // Anew with each step: the coordinator's clock stops while its process is stalled.
            RunEvent::Step(event) => self.0 = Some(recorded.time - end_of(event).as_secs_f64()),
            _ => {}
        }
    }

    /// The time, if an event has said it.
    pub fn seconds(&self) -> Option<f64> {
        self.0
    }
}

/// From the start of the coordinator's process to the step's end.
fn end_of(event: &StepEvent) -> Duration {
    event.begun + milliseconds(event.record.milliseconds)
}

/// From milliseconds; 0 where they are none.
pub fn milliseconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value / 1e3).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use events::{Figures, StepRecord};

    use super::*;

    /// The goal: what the journal holds up is drawn where it is held up.
    #[test]
    fn journaled_update_is_drawn_at_the_beginning_of_the_next_step() {
        let record = StepRecord {
            step: 2,
            epoch: 1,
            loss: 0.5,
            metrics: Figures::default(),
            n_samples: 32,
            milliseconds: 10.0,
            params_blake3: None,
        };
        let [begun, wait, update, encode, send, journal] = [100, 8, 2, 1, 2, 3].map(Duration::from_millis);
        let costs = StepCosts { wait, update, encode, send, journal, ..StepCosts::default() };
        let spans_of = |costs: StepCosts| {
            let record = record.clone();
            let event = StepEvent { record, workers: vec![1], n_active: 1, costs, begun, tasks: Vec::new() };
            let spans = StepSpans::new(&event).phases.map(|phase| (phase.name, phase.span));
            BTreeMap::from(spans.map(|(name, span)| (name, (span.start.as_millis(), span.end.as_millis()))))
        };
        let spans = spans_of(costs);
        assert_eq!((spans["wait"], spans["update"]), ((100, 108), (108, 110)));
        assert_eq!((spans["journal"], spans["encode"], spans["send"]), ((100, 103), (103, 104), (104, 106)));
        let spans = spans_of(StepCosts { journal: Duration::ZERO, ..costs });
        assert_eq!((spans["update"], spans["encode"], spans["send"]), ((108, 110), (110, 111), (111, 113)));
    }
}
