//! Any number of workers gives the bits of one process that computes all shards one after the other: after every step, in
//! every digit of every figure. With shuffling, with the book's noise, over two epochs.

use crate::harness::{N_SHORT_STEPS, SHORT_RUN, TestDir};

/// Fewer workers than shards, as many, more, and a number that does not divide them.
fn check(arch: &str) {
    let dir = TestDir::new();
    let flags = format!("--arch {arch} {SHORT_RUN}");
    let expected = dir.reference(&flags);
    assert_eq!(expected.steps.len() as u64, N_SHORT_STEPS);
    for n_workers in [1, 2, 3, 4, 6] {
        let found = dir.train(&format!("{flags} --workers {n_workers} --hash-steps"), &format!("run-{n_workers}"));
        let is_named = |step: &serde_json::Value| step["params_blake3"].is_string();
        assert!(found.steps.iter().all(is_named), "the parameters of every step are compared");
        found.assert_same_bits(&expected);
    }
}

#[test]
fn conv_has_same_bits_with_any_worker_count() {
    check("conv");
}

#[test]
fn recurrent_has_same_bits_with_any_worker_count() {
    check("recurrent");
}

#[test]
fn denoising_has_same_bits_with_any_worker_count() {
    check("denoising");
}

#[test]
fn every_optimizer_has_same_bits_with_any_worker_count() {
    check("conv --optimizer adam --weight-decay 0.01 --lr-schedule step:0.5:1");
    check("denoising --optimizer adamw --lr-schedule linear --warmup-steps 9 --clip-norm 0.1 --learning-rate 0.01");
    check("denoising --momentum 0.9 --weight-decay 0.001 --lr-schedule cosine --learning-rate 0.1");
}
