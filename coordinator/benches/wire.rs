//! What it costs to move a gradient of the denoising network between processes: as bytes of a message, and through shared
//! memory. Both ends are in one process here, so that what another core's cache costs is not in it.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use engine::optimizer::{Optimizer, Rate};
use engine::params::params_fingerprint;
use model::arch::Architecture;
use model::task::initial_params;
use proto::shared::{ResultSlots, Results, UpdateSlots, Updates};
use proto::v1::Encoding;
use proto::values;

const SGD: Optimizer = Optimizer::sgd(1e-6, 0.0, false);
const RATE: Rate = Rate { learning_rate: 1e-6, step: 1 };

/// A result, from where a worker computed it to where the coordinator adds it.
fn results(criterion: &mut Criterion) {
    let gradient = initial_params(Architecture::Denoising, 1);
    let mut taken = vec![0.0; gradient.len()];
    let mut group = criterion.benchmark_group("result");
    group.bench_function("encode", |bencher| bencher.iter(|| values::encode(Encoding::F32, black_box(&gradient))));
    let message = values::encode(Encoding::F32, &gradient);
    group.bench_function("decode", |bencher| {
        bencher.iter(|| values::decode(Encoding::F32, black_box(&message), &mut taken).expect("finite values"));
    });
    let (results, handle) = Results::create(gradient.len()).expect("shared memory");
    let slots = ResultSlots::open(std::process::id(), &handle.message(), gradient.len()).expect("a region");
    for _ in 0..2 {
        let mut free = slots.free().expect("a free slot");
        free.values().copy_from_slice(&gradient);
        results.take(free.fill(), &mut taken).expect("a full slot");
    }
    group.bench_function("take from a slot", |bencher| {
        bencher.iter(|| {
            let slot = slots.free().expect("a free slot").fill();
            results.take(slot, black_box(&mut taken)).expect("a full slot");
        });
    });
}

/// An update, from where the coordinator averaged it to the replicas.
fn updates(criterion: &mut Criterion) {
    let mut params = initial_params(Architecture::Denoising, 1);
    let gradient = params.clone();
    let mut decoded = vec![0.0; gradient.len()];
    let message = values::encode(Encoding::F32, &gradient);
    let mut group = criterion.benchmark_group("update");
    group.bench_function("decode and apply", |bencher| {
        bencher.iter(|| {
            values::decode(Encoding::F32, black_box(&message), &mut decoded).expect("finite values");
            SGD.apply(RATE, &mut params, &mut [Vec::new()], 0, &decoded);
        });
    });
    let mut updates = Updates::create(gradient.len()).expect("shared memory");
    let slots = UpdateSlots::open(std::process::id(), &updates.message(), gradient.len()).expect("a region");
    let mut step = 0;
    group.bench_function("write to a slot", |bencher| {
        bencher.iter(|| {
            step += 1;
            updates.write(step, black_box(&gradient))
        });
    });
    let slot = updates.write(step + 1, &gradient);
    group.bench_function("read from a slot and apply", |bencher| {
        bencher.iter(|| {
            let apply = |start: usize, block: &[f32]| {
                SGD.apply(RATE, &mut params, &mut [Vec::new()], start, block);
            };
            slots.read(slot, step + 1, apply).expect("it is there");
        });
    });
    group.bench_function("fingerprint", |bencher| bencher.iter(|| params_fingerprint(black_box(&params))));
}

criterion_group!(benches, results, updates);
criterion_main!(benches);
