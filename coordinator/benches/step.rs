//! What a step costs the coordinator besides waiting: decoding the gradients of 4 workers, adding them, the update, and
//! encoding the averaged gradient, for the parameters of the denoising network.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Duration;

use coordinator::training::{
    Action, AfterStop, CheckpointEvery, Computed, Event, Profile, Rounding, Rules, ShardDone, State, Training, Work,
    WorkerId,
};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use model::arch::Architecture;
use model::gradients::ShardResult;
use model::layers::Noise;
use model::loss::LossSums;
use model::params::{initial_params, params_fingerprint};
use model::recipe::Recipe;
use model::sgd::Sgd;
use proto::v1::Encoding;
use proto::values;

const N_SHARDS: u32 = 4;

fn recipe() -> Recipe {
    let count = |value: u32| value.try_into().expect("above 0");
    Recipe {
        architecture: Architecture::Denoising,
        epochs: count(1_000_000),
        batch_size: count(32),
        shards: count(N_SHARDS),
        sgd: Sgd { learning_rate: 1e-6, momentum: 0.0, nesterov: false },
        noise: Noise::None,
        shuffle: true,
        seed: 1,
        max_steps: None,
        init_from: None,
    }
}

/// A core with as many workers as shards, each waiting for its shard.
fn training() -> Training {
    let recipe = recipe();
    let state = State::new(&recipe, Rounding::None, initial_params(recipe.architecture, 1));
    let rules = Rules {
        recipe,
        // An epoch that no measurement comes to the end of.
        n_train: 4_000_000_000,
        n_valid: 1,
        rounding: Rounding::None,
        checkpoint_every: CheckpointEvery::Epoch,
        silence_max: Duration::from_hours(1),
        join_wait_max: Duration::from_hours(1),
        audit: 0.0,
        after_stop: AfterStop::End,
    };
    let mut training = Training::new(rules, state, Duration::ZERO);
    for worker_id in (1..=N_SHARDS.into()).map(WorkerId) {
        training.handle_event(Duration::ZERO, Event::Joined(worker_id, Profile::default()));
        training.handle_event(Duration::ZERO, Event::Ready(worker_id));
    }
    while training.poll_action(Duration::ZERO).is_some() {}
    training
}

/// The results of a step's shards, as they are in the core's hands.
fn events(training: &Training, gradient: &[f32]) -> Vec<Event> {
    let state = training.state();
    let params_fingerprint = params_fingerprint(&state.params);
    let event = |shard: u32| {
        let sums = LossSums { loss_sum: 1.0, correct_sum: 1, n_samples: 8 };
        let computed = Computed::Finite(ShardResult { gradient_sum: gradient.to_vec(), sums });
        let done = ShardDone { step: state.step, shard, computed, params_fingerprint, compute: Duration::ZERO };
        Event::ShardDone(WorkerId(u64::from(shard) + 1), done)
    };
    (0..N_SHARDS).map(event).collect()
}

/// Reduces and updates; gives the averaged gradient.
fn step(training: &mut Training, events: Vec<Event>) -> Vec<f32> {
    for event in events {
        training.handle_event(Duration::ZERO, event);
    }
    let mut averaged = None;
    while let Some(action) = training.poll_action(Duration::ZERO) {
        if let Action::SendUpdate { gradient, work } = action {
            let dealt: BTreeMap<WorkerId, Work> = work;
            assert_eq!(dealt.len(), N_SHARDS as usize, "every worker has its next shard");
            averaged = Some(gradient);
        }
    }
    averaged.expect("a step with all its results ends in an update")
}

fn benchmarks(criterion: &mut Criterion) {
    let mut training = training();
    let gradient: Vec<f32> = training.state().params.iter().map(|value| value * 0.001).collect();
    let message = values::encode(Encoding::F32, &gradient);
    let mut decoded = vec![0.0; gradient.len()];

    criterion.bench_function("decode 4 gradients", |bencher| {
        bencher.iter(|| {
            for _ in 0..N_SHARDS {
                values::decode(Encoding::F32, black_box(&message), &mut decoded).expect("finite values");
            }
        });
    });
    criterion.bench_function("reduce and update, 4 shards", |bencher| {
        // The events of one step fit the next one but for their step and fingerprint, so each is made anew, untimed.
        let training = std::cell::RefCell::new(&mut training);
        bencher.iter_batched(
            || events(&training.borrow(), &gradient),
            |events| step(&mut training.borrow_mut(), events),
            BatchSize::PerIteration,
        );
    });
    criterion.bench_function("encode the averaged gradient", |bencher| {
        bencher.iter(|| values::encode(Encoding::F32, black_box(&gradient)));
    });
}

criterion_group!(benches, benchmarks);
criterion_main!(benches);
