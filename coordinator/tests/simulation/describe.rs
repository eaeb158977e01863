//! Schedules in words, for people.

use coordinator::input::Input;
use coordinator::observe::Entry;
use coordinator::training::{Event, ShardDone};
use events::RunEvent;
use prost::bytes::Bytes;
use proto::v1::coordinator_message::Kind;
use proto::v1::{State, Update};

use super::shell::Noted;

pub fn of_input(input: &Input) -> String {
    match input {
        Input::Joined(worker_id, profile, _) => format!("joined {worker_id} (process {})", profile.process),
        Input::Ready(worker_id, path) => format!("ready {worker_id}, gradients {path}"),
        Input::ShardDone(worker_id, ShardDone { step, shard, .. }, ..) => {
            format!("shard {shard} of {step} by {worker_id}")
        }
        Input::Happened(Event::OwnTaskDone(done)) => {
            format!("{:?} {} of {} by the coordinator", done.kind, done.task, done.step)
        }
        Input::Happened(event) => format!("{event:?}"),
    }
}

/// Without the numbers of states and gradients.
pub fn of_noted(noted: &Noted) -> String {
    match noted {
        Noted::Sent(worker_id, kind) => {
            let no_numbers = Bytes::new;
            let kind = match kind.clone() {
                Kind::State(state) => Kind::State(State { params: no_numbers(), slots: no_numbers(), ..state }),
                Kind::Update(update) => Kind::Update(Update { gradient: no_numbers(), ..update }),
                kind => kind,
            };
            format!("to {worker_id}: {kind:?}")
        }
        Noted::Recorded(Entry::Event(RunEvent::Step(step))) => {
            format!("step {} by {:?}", step.record.step, step.workers)
        }
        Noted::Recorded(Entry::Epoch { record, .. }) => format!("{record:?}"),
        Noted::Recorded(entry) => format!("{entry:?}"),
        Noted::Checkpoint(state) => format!("checkpoint of {}", state.step),
        Noted::Journal(state) => format!("journal of {}", state.step),
        Noted::Closed(_) | Noted::Dropped(..) | Noted::Compute(..) => format!("{noted:?}"),
    }
}
