//! Schedules in words, for people.

use std::fmt::Write as _;

use coordinator::events::RunEvent;
use coordinator::training::{Action, Event, Report, ShardDone, Work};

use super::network::{ShardAnswer, ToCoordinator};

pub fn of_work(work: &Work) -> String {
    match work {
        Work::Nothing => "nothing".to_owned(),
        Work::Shards { step, shards, .. } => format!("shards {shards:?} of {step}"),
        Work::Batches { step, batches } => format!("batches {batches:?} of {step}"),
    }
}

pub fn of_message(message: &ToCoordinator) -> String {
    match message {
        ToCoordinator::Join(profile) => format!("join of process {}", profile.process),
        ToCoordinator::Ready => "ready".to_owned(),
        ToCoordinator::Shard(ShardAnswer { step, shard, .. }) => format!("shard {shard} of {step}"),
        ToCoordinator::Batch { step, batch, .. } => format!("batch {batch} of {step}"),
        ToCoordinator::Lagging(reason) => format!("lagging: {reason}"),
        ToCoordinator::Leaving => "leaving".to_owned(),
        ToCoordinator::Heartbeat(step) => format!("heartbeat at {step}"),
    }
}

pub fn of_event(event: &Event) -> String {
    match event {
        Event::Joined(worker_id, profile) => format!("joined {worker_id} (process {})", profile.process),
        Event::Ready(worker_id) => format!("ready {worker_id}"),
        Event::ShardDone(worker_id, ShardDone { step, shard, .. }) => format!("shard {shard} of {step} by {worker_id}"),
        Event::BatchDone(worker_id, done) => format!("batch {} of {} by {worker_id}", done.batch, done.step),
        Event::Lagging(worker_id, reason) => format!("lagging {worker_id}: {reason}"),
        Event::Leaving(worker_id, _) => format!("leaving {worker_id}"),
        Event::Heartbeat(worker_id, step) => format!("heard {worker_id} at {step}"),
        Event::Lost(worker_id, reason) => format!("lost {worker_id}: {reason}"),
        Event::OwnTaskDone(done) => format!("{:?} {} of {} by the coordinator", done.kind, done.task, done.step),
        Event::Stop => "stop".to_owned(),
    }
}

pub fn of_action(action: &Action) -> String {
    match action {
        Action::Welcome(worker_id) => format!("welcome {worker_id}"),
        Action::SendState(worker_id, work) => format!("state {worker_id}: {}", of_work(work)),
        Action::SendUpdate { work, .. } => {
            let mut text = "update".to_owned();
            for (worker_id, work) in work {
                write!(text, " {worker_id}: {};", of_work(work)).expect("a text takes all");
            }
            text
        }
        Action::SendWork(worker_id, work) => format!("work {worker_id}: {}", of_work(work)),
        Action::Refuse(worker_id, refusal) => format!("refuse {worker_id}: {refusal}"),
        Action::Close(worker_id, close_reason, reason) => format!("close {worker_id} ({close_reason:?}): {reason}"),
        Action::ComputeTask(work) => format!("compute {}", of_work(work)),
        Action::Checkpoint => "checkpoint".to_owned(),
        Action::Finish(outcome) => format!("finish: {outcome:?}"),
        Action::Report(Report::Step(report)) => format!("step {} by {:?}", report.step, report.workers),
        Action::Report(Report::Epoch(report)) => format!("epoch {} at {}", report.epoch, report.step),
        Action::Report(Report::Event(RunEvent::WorkerJoined { worker, n_active, .. })) => {
            format!("joined {worker}, {n_active} active")
        }
        Action::Report(Report::Event(RunEvent::WorkerLeft { worker, n_reassigned, .. })) => {
            format!("left {worker}, {n_reassigned} reassigned")
        }
        Action::Report(report) => format!("{report:?}"),
    }
}
