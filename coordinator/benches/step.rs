//! What a step costs the coordinator besides waiting: decoding the gradients of 4 workers, adding them, the update, and
//! encoding the averaged gradient, for the parameters of the denoising network.

mod workers;

use std::hint::black_box;
use std::time::Duration;

use coordinator::training::{Event, Training};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use model::arch::Architecture;
use model::task::initial_params;
use proto::v1::Encoding;
use proto::values;

const N_WORKERS: u32 = 4;

/// Reduces and updates; gives the averaged gradient.
fn step(training: &mut Training, events: Vec<Event>) -> Vec<f32> {
    for event in events {
        training.handle_event(Duration::ZERO, event);
    }
    workers::update(training)
}

fn benchmarks(criterion: &mut Criterion) {
    let mut training = workers::training(initial_params(Architecture::Denoising, 1), N_WORKERS);
    let gradient: Vec<f32> = training.state().params.iter().map(|value| value * 0.001).collect();
    let message = values::encode(Encoding::F32, &gradient);
    let mut decoded = vec![0.0; gradient.len()];

    criterion.bench_function("decode 4 gradients", |bencher| {
        bencher.iter(|| {
            for _ in 0..N_WORKERS {
                values::decode(Encoding::F32, black_box(&message), &mut decoded).expect("finite values");
            }
        });
    });
    criterion.bench_function("reduce and update, 4 shards", |bencher| {
        // The events of one step fit the next one but for their step and fingerprint, so each is made anew, untimed.
        let training = std::cell::RefCell::new(&mut training);
        let gradients = || (0..N_WORKERS).map(|_| gradient.clone());
        bencher.iter_batched(
            || workers::events(&training.borrow(), gradients()),
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
