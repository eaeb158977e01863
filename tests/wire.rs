//! Gradients as bf16: other bits than with f32, but the same ones for any number of workers, and nearly the same training.

use crate::harness::{Place, Run, SHORT_RUN};

fn val_loss(run: &Run) -> f64 {
    run.history.last().expect("an epoch")["val_loss"].as_f64().expect("a loss")
}

/// The goal: rounding is a part of what is computed, not of who computes it.
fn check(arch: &str) {
    let place = Place::new();
    let flags = format!("--arch {arch} {SHORT_RUN}");
    let exact = place.reference(&flags);
    let flags = format!("{flags} --wire grpc-bf16 --hash-steps");
    let one = place.train(&format!("{flags} --workers 1"), "one");
    let three = place.train(&format!("{flags} --workers 3"), "three");
    three.assert_same_bits(&one);
    assert_ne!(one.params_blake3, exact.params_blake3, "something was rounded");
    let apart = (val_loss(&one) / val_loss(&exact) - 1.0).abs();
    assert!(apart <= 0.01, "val loss {} with bf16, {} with f32", val_loss(&one), val_loss(&exact));
}

#[test]
fn conv_has_the_same_bits_as_bf16_with_any_number_of_workers() {
    check("conv");
}

#[test]
fn denoising_has_the_same_bits_as_bf16_with_any_number_of_workers() {
    check("denoising");
}

/// What rounding took from the gradients so far is a part of a checkpoint.
#[test]
fn a_resumed_run_has_the_same_bits_as_bf16() {
    let place = Place::new();
    let flags = format!("--arch denoising {SHORT_RUN} --wire grpc-bf16 --hash-steps");
    let whole = place.train(&format!("{flags} --workers 1"), "whole");
    let coordinator = place.coordinator(&format!("{flags} --workers 3 --checkpoint-every 50 --run-dir cut"));
    coordinator.wait_for_checkpoint(100);
    coordinator.signal("TERM");
    assert_eq!(coordinator.end()["outcome"], "stopped");
    let end = place.coordinator("--resume cut --data small --workers 2 --wire grpc-bf16 --hash-steps").end();
    place.run("cut", &end).assert_same_bits(&whole);
}
