//! A core whose workers always answer: what the measurements here feed it with, and what they take from it.

use std::collections::BTreeMap;
use std::time::Duration;

use coordinator::training::{
    Action, AfterStop, AuditSecret, CheckpointEvery, Computed, Event, Profile, Rounding, Rules, ShardDone, State,
    Training, Work, WorkerId,
};
use engine::optimizer::{LrSchedule, Optimizer};
use engine::params::params_fingerprint;
use engine::recipe::Recipe;
use engine::shard::ShardResult;
use engine::sums::{Sums, counts};

/// The update that a core makes. So small a rate that no measurement strays.
pub const SGD: Optimizer = Optimizer::sgd(1e-6, 0.0, false);

/// A core with as many workers as shards, each waiting for its shard.
pub fn training(params: Vec<f32>, n_workers: u32) -> Training {
    let count = |value: u32| value.try_into().expect("above 0");
    let recipe = Recipe {
        task: "denoising".to_owned(), // a name: the core takes parameters of any number
        settings: serde_json::Value::Null,
        epochs: count(1_000_000),
        batch_size: count(8 * n_workers),
        shards: count(n_workers),
        optimizer: SGD,
        lr_schedule: LrSchedule::default(),
        clip_norm: None,
        shuffle: true,
        seed: 1,
        max_steps: None,
        patience: None,
        init_from: None,
        init_partial: false,
        init_map: Vec::new(),
    };
    let state = State::new(&recipe, Rounding::None, params);
    let rules = Rules {
        recipe,
        // An epoch that no measurement comes to the end of.
        n_train: 4_000_000_000,
        n_valid: 1,
        evaluation_batch: 500,
        metrics: &[],
        rounding: Rounding::None,
        checkpoint_every: CheckpointEvery::Epoch,
        heartbeat_timeout: Duration::from_hours(1),
        join_timeout: Duration::from_hours(1),
        audit: 0.0,
        audit_secret: AuditSecret::new([0; 32]),
        own_class: String::new(),
        after_stop: AfterStop::End,
    };
    let mut training = Training::new(rules, state, Duration::ZERO);
    for worker_id in (1..=n_workers.into()).map(WorkerId) {
        training.handle_event(Duration::ZERO, Event::Joined(worker_id, Profile::default()));
        training.handle_event(Duration::ZERO, Event::Ready(worker_id));
    }
    while training.poll_action(Duration::ZERO).is_some() {}
    training
}

/// The results of the step at hand, a gradient for each shard, as they are in the core's hands.
pub fn events(training: &Training, gradients: impl IntoIterator<Item = Vec<f32>>) -> Vec<Event> {
    let state = training.state();
    let params_fingerprint = params_fingerprint(&state.params);
    let event = |(shard, gradient_sum): (u32, Vec<f32>)| {
        let sums = Sums { loss_sum: 1.0, counts: counts(&[1]), n_samples: 8 };
        let computed = Computed::Finite(ShardResult { gradient_sum, sums });
        let compute = Duration::ZERO;
        let done = ShardDone { step: state.step, shard, computed, gradient_norm: 1.0, params_fingerprint, compute };
        Event::ShardDone(WorkerId(u64::from(shard) + 1), done)
    };
    (0..).zip(gradients).map(event).collect()
}

/// Makes the update of a step whose results are all there; gives the averaged gradient.
pub fn update(training: &mut Training) -> Vec<f32> {
    let n_workers = training.schedule().n_shards() as usize;
    let mut averaged = None;
    while let Some(action) = training.poll_action(Duration::ZERO) {
        if let Action::SendUpdate { gradient, work } = action {
            let dealt: BTreeMap<WorkerId, Work> = work;
            assert_eq!(dealt.len(), n_workers, "every worker has its next shard");
            averaged = Some(gradient);
        }
    }
    averaged.expect("a step with all its results ends in an update")
}
