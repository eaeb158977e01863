//! The bits of every optimizer, learning-rate schedule and clipping, which no machine may change.

use std::path::Path;

use engine::numerics::REVISION;
use engine::optimizer::{LearningRates, LrSchedule, Optimizer, clip_norm};
use serde::Deserialize;

/// As `golden/optimizers.py` writes it.
#[derive(Deserialize)]
struct Golden {
    initial: Vec<f32>,
    gradients: Vec<Vec<f32>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    optimizer: Optimizer,
    clip_norm: Option<f64>,
    schedule: LrSchedule,
    n_steps: u64,
    steps_per_epoch: u64,
}

/// Revision, and the blake3 of all parameters after each step of each case.
const EXPECTED: (u32, &str) = (1, "4d5233fd6bc7175a4b5ded8b23fa79e2412205433c5fe41d00c3ded098c7b84f");

#[test]
fn optimizer_bits_change_only_with_revision() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/optimizers.json");
    let golden = std::fs::read(path).expect("it comes with the project");
    let Golden { initial, gradients, cases } = serde_json::from_slice(&golden).expect("cases");
    let mut hasher = blake3::Hasher::new();
    for Case { optimizer, clip_norm: norm_max, schedule, n_steps, steps_per_epoch } in cases {
        let rates = LearningRates::new(optimizer.learning_rate, schedule, n_steps, steps_per_epoch);
        let (mut params, mut slots) = (initial.clone(), optimizer.slots(initial.len()));
        for (step, gradient) in (0..).zip(&gradients) {
            let mut gradient = gradient.clone();
            if let Some(norm_max) = norm_max {
                clip_norm(&mut gradient, norm_max);
            }
            optimizer.apply(rates.at(step), &mut params, &mut slots, 0, &gradient);
            for value in &params {
                hasher.update(&value.to_le_bytes());
            }
        }
    }
    let found = hasher.finalize().to_hex();
    assert_eq!(
        (REVISION, found.as_str()),
        EXPECTED,
        "if the bits are meant to change, raise REVISION in model/src/numerics.rs"
    );
}
