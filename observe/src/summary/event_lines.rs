//! What happened, as lines: faults, recoveries and the rest.

use events::{MirrorEvent, RunEvent};

use super::{Summary, push_bounded};

/// Lines of what happened that are kept; of more the newest.
pub const EVENT_LINES_MAX: usize = 500;

/// A line of what happened.
#[derive(Clone, Debug, PartialEq)]
pub struct EventLine {
    /// Seconds since 1970.
    pub time: f64,
    /// How it is shown.
    pub kind: EventKind,
    /// The line.
    pub text: String,
    /// Where it is of refusals: which.
    pub refusals: Option<Refusals>,
}

/// Refusals of one kind for one worker, with none but refusals between them. They share a line, so that a flood of them leaves
/// the other lines where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusals {
    /// The worker.
    pub worker: u64,
    /// What followed.
    pub kind: RefusalKind,
    /// How many they are.
    pub n_times: u64,
}

/// What followed on a message that could not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// The message was ignored.
    Refused,
    /// The worker's replica was sent again.
    Resent,
}

/// How a line of what happened is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// As it should be.
    Info,
    /// A fault.
    Fault,
    /// The recovery from one.
    Recovery,
}

impl Summary {
    /// Adds a line; a refusal takes the place of the same worker's line among the refusals at the end.
    pub(super) fn add_line(&mut self, mut line: EventLine) {
        if let Some(new) = &mut line.refusals {
            let newest = self.event_lines.iter().enumerate().rev();
            let mut known = newest.map_while(|(place, known)| Some((place, known.refusals?)));
            if let Some((place, known)) = known.find(|(_, known)| (known.worker, known.kind) == (new.worker, new.kind))
            {
                new.n_times = known.n_times + 1;
                line.text = format!("{} ({} times)", line.text, new.n_times);
                self.event_lines.remove(place);
            }
        }
        push_bounded(&mut self.event_lines, line, EVENT_LINES_MAX);
    }

    /// How an event is shown, from what was known before it.
    pub(super) fn kind(&self, event: &RunEvent) -> EventKind {
        match event {
            RunEvent::WorkerLeft { .. } if self.outcome.is_some() => EventKind::Info,
            RunEvent::Ended { outcome, .. } if matches!(outcome.as_str(), "completed" | "stopped") => EventKind::Info,
            RunEvent::WorkerLeft { .. }
            | RunEvent::WorkerEvicted { .. }
            | RunEvent::TaskLate { .. }
            | RunEvent::ReplicaResent { .. }
            | RunEvent::ResultRefused { .. }
            | RunEvent::Waiting
            | RunEvent::Ended { .. }
            | RunEvent::Mirror(
                MirrorEvent::Failing { .. } | MirrorEvent::Behind { .. } | MirrorEvent::GivenUp { .. },
            ) => EventKind::Fault,
            RunEvent::Started { incarnation, .. } if self.is_restart(*incarnation) => EventKind::Recovery,
            RunEvent::WorkerJoined { .. } if self.n_lost > 0 => EventKind::Recovery,
            RunEvent::Continuing | RunEvent::Mirror(MirrorEvent::CaughtUp { .. }) => EventKind::Recovery,
            RunEvent::Step(_)
            | RunEvent::Epoch(_)
            | RunEvent::Snapshot(_)
            | RunEvent::Started { .. }
            | RunEvent::WorkerJoined { .. }
            | RunEvent::ComputeClassAdded { .. }
            | RunEvent::Mirror(MirrorEvent::Ahead { .. } | MirrorEvent::Finishing { .. }) => EventKind::Info,
        }
    }
}

impl EventLine {
    /// A line of one event.
    pub fn new(time: f64, kind: EventKind, text: String) -> Self {
        Self { time, kind, text, refusals: None }
    }

    /// The line of this event.
    pub(super) fn of(event: &RunEvent, time: f64, kind: EventKind, text: String) -> Self {
        Self { refusals: refusals(event), ..Self::new(time, kind, text) }
    }
}

/// What an event refuses, if it does.
fn refusals(event: &RunEvent) -> Option<Refusals> {
    let (worker, kind) = match event {
        RunEvent::ResultRefused { worker, .. } => (*worker, RefusalKind::Refused),
        RunEvent::ReplicaResent { worker, .. } => (*worker, RefusalKind::Resent),
        _ => return None,
    };
    Some(Refusals { worker, kind, n_times: 1 })
}
