//! How the coordinator's own work for a step grows with workers and with parameters: decoding every worker's gradient,
//! adding them, the update, and encoding the averaged gradient once. Gradients are synthetic, nothing is sent, and all of it
//! goes on one thread. Prints a line of JSON for each cell, with medians in milliseconds.

mod workers;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use engine::reduce::average;
use proto::v1::Encoding;
use proto::values;
use serde_json::json;

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Parameters of the denoising network, the largest of the three.
const DENOISING: usize = 163_814;

/// Workers and parameters. The largest cell takes 3.2 GB.
const CELLS: [(u32, usize); 11] = [
    (1, DENOISING),
    (2, DENOISING),
    (4, DENOISING),
    (8, DENOISING),
    (16, DENOISING),
    (32, DENOISING),
    (64, DENOISING),
    (4, 100_000),
    (4, 1_000_000),
    (4, 10_000_000),
    (4, 100_000_000),
];

/// A cell is measured for so long, and for so many steps at least.
const TIME_MIN: Duration = Duration::from_millis(500);
const N_STEPS_MIN: usize = 5;

/// What a step is made of, in the order in which it goes through them.
const OWN: [&str; 4] = ["decode", "reduce", "update", "encode"];

fn main() {
    for (n_workers, n_params) in CELLS {
        let mut spent = measure(n_workers, n_params);
        let n_steps = spent["decode"].len();
        let own: Vec<Duration> = (0..n_steps).map(|step| OWN.iter().map(|part| spent[part][step]).sum()).collect();
        spent.insert("own", own);
        let milliseconds: BTreeMap<&str, f64> =
            spent.into_iter().map(|(part, times)| (part, milliseconds(median(times)))).collect();
        let cell =
            json!({ "workers": n_workers, "params": n_params, "n_steps": n_steps, "milliseconds": milliseconds });
        println!("{cell}");
    }
}

/// In whole microseconds: what is below is noise.
fn milliseconds(time: Duration) -> f64 {
    (1e6 * time.as_secs_f64()).round() / 1e3
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// How long each part took in each step.
fn measure(n_workers: u32, n_params: usize) -> BTreeMap<&'static str, Vec<Duration>> {
    // Values of several sizes, none of them so small that it would be slow.
    let params: Vec<f32> = [0.01_f32, -0.02, 0.03, -0.04, 0.05].into_iter().cycle().take(n_params).collect();
    let message = values::encode(Encoding::F32, &params);
    let mut replica = params.clone();
    let mut core = workers::training(params, n_workers);
    let mut gradients: Vec<Vec<f32>> = (0..n_workers).map(|_| vec![0.0; n_params]).collect();
    let mut spent: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    let mut begun = Instant::now();
    let mut n_steps = 0;
    // Ends with the time. The first step is not counted: memory comes with it.
    while n_steps <= N_STEPS_MIN || begun.elapsed() < TIME_MIN {
        let mut parts: Vec<(&str, Duration)> = Vec::new();
        parts.push(timed("decode", || {
            for gradient in &mut gradients {
                values::decode(Encoding::F32, black_box(&message), gradient).expect("finite values");
            }
        }));
        let events = workers::events(&core, gradients.drain(..));
        parts.push(timed("reduce", || {
            for event in events {
                core.handle_event(Duration::ZERO, event);
            }
        }));
        let mut averaged = Vec::new();
        parts.push(timed("update", || averaged = workers::update(&mut core)));
        let mut encoded = None;
        parts.push(timed("encode", || encoded = Some(values::encode(Encoding::F32, black_box(&averaged)))));
        drop(encoded);

        // The parts of the update once more, each for itself.
        parts.push(timed("average", || assert!(average(&mut averaged, 3), "finite values")));
        let rate = engine::optimizer::Rate { learning_rate: 1e-6, step: 1 };
        parts.push(timed("apply", || {
            workers::SGD.apply(rate, &mut replica, &mut [Vec::new()], 0, black_box(&averaged));
        }));
        gradients.extend(core.take_spent().into_iter().chain([averaged]));

        if n_steps == 0 {
            begun = Instant::now();
        } else {
            for (part, time) in parts {
                spent.entry(part).or_default().push(time);
            }
        }
        n_steps += 1;
    }
    spent
}

fn timed(part: &'static str, work: impl FnOnce()) -> (&'static str, Duration) {
    let begun = Instant::now();
    work();
    (part, begun.elapsed())
}
