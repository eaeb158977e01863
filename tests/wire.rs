//! How gradients travel: through shared memory, over gRPC, and both in one run, to the same bits; as bf16 to other ones, but
//! the same for any number of workers, and nearly the same training.

use std::collections::BTreeSet;
use std::process::Command;

use crate::harness::{Process, Run, SHORT_RUN, Stream, TestDir};

/// An epoch of 138 steps on the small data set, cut into four shards.
const RUN: &str = "--shards 4 --batch-size 16 --epochs 1 --data small";
const THROUGH_MEMORY: &str = "gradients=through shared memory";
const OVER_GRPC: &str = "gradients=over gRPC";

/// How many workers of a coordinator went each way.
fn n_ways(coordinator: &Process) -> [usize; 2] {
    [THROUGH_MEMORY, OVER_GRPC].map(|way| coordinator.lines(Stream::Err, way).len())
}

/// A worker in a PID namespace of its own, as in a container: it cannot open what a coordinator outside has. None, with a
/// message, where the system does not allow such a namespace.
fn contained_worker(dir: &TestDir, address: &str) -> Option<Process> {
    let worker = dir.worker_command(address);
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    let is_possible = Command::new("unshare").args(command.get_args()).arg("true").status();
    if !is_possible.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no numbers of their own for processes here");
        return None;
    }
    command.arg(worker.get_program()).args(worker.get_args());
    command.current_dir(worker.get_current_dir().expect("programs are started in a test's folder"));
    for (name, value) in worker.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    Some(dir.start("contained", command))
}

/// The goal: who shares memory with whom decides nothing but the speed.
fn check_ways(arch: &str) {
    let dir = TestDir::new();
    let flags = format!("--arch {arch} {RUN}");
    let expected = dir.reference(&flags);
    let flags = format!("{flags} --hash-steps");
    for (wire, ways) in [("auto", [3, 0]), ("grpc", [0, 3])] {
        let coordinator = dir.coordinator(&format!("{flags} --workers 3 --wire {wire} --run-dir {wire}"));
        let run = dir.run(wire, &coordinator.end());
        run.assert_same_bits(&expected);
        assert_eq!(n_ways(&coordinator), ways, "--wire {wire}");
        assert_eq!(
            (&run.description["wire"], &run.description["shared_memory"]),
            (&wire.into(), &(wire == "auto").into())
        );
    }
    let (coordinator, address) = dir.external(&format!("{flags} --run-dir mixed"));
    let Some(contained) = contained_worker(&dir, &address) else { return };
    let sharing = dir.worker("sharing", &address);
    let run = dir.run("mixed", &coordinator.end());
    run.assert_same_bits(&expected);
    assert_eq!(n_ways(&coordinator), [1, 1]);
    let out_of_reach = contained.lines(Stream::Err, "the coordinator's memory is out of reach");
    assert_eq!(out_of_reach.len(), 1, "it says so");
    let both: BTreeSet<u64> = run.workers().concat().into_iter().collect();
    assert_eq!(both.len(), 2, "both took part");
    contained.succeed();
    sharing.succeed();
}

#[test]
fn conv_has_same_bits_over_grpc_and_shared_memory() {
    check_ways("conv");
}

#[test]
fn recurrent_has_same_bits_over_grpc_and_shared_memory() {
    check_ways("recurrent");
}

#[test]
fn denoising_has_same_bits_over_grpc_and_shared_memory() {
    check_ways("denoising");
}

/// As far as a run is concerned, they are one.
#[test]
fn resume_may_switch_between_grpc_and_shared_memory() {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {RUN}");
    let expected = dir.reference(&flags);
    for (before, after, ways) in [("auto", "grpc", [0, 2]), ("grpc", "auto", [2, 0])] {
        let flags = format!("{flags} --wire {before} --workers 3 --checkpoint-every 20 --run-dir ./{before}");
        let coordinator = dir.coordinator(&flags);
        coordinator.wait_for_checkpoint(40);
        assert_eq!(coordinator.terminated()["outcome"], "stopped");
        let coordinator = dir.coordinator(&format!("--resume ./{before} --data small --workers 2 --wire {after}"));
        dir.run(before, &coordinator.end()).assert_same_bits(&expected);
        assert_eq!(n_ways(&coordinator), ways);
    }
}

fn val_loss(run: &Run) -> f64 {
    run.history.last().expect("an epoch")["val_loss"].as_f64().expect("a loss")
}

/// The goal: rounding is a part of what is computed, not of who computes it.
fn check_bf16(arch: &str) {
    let dir = TestDir::new();
    let flags = format!("--arch {arch} {SHORT_RUN}");
    let exact = dir.reference(&flags);
    let flags = format!("{flags} --wire grpc-bf16 --hash-steps");
    let one = dir.train(&format!("{flags} --workers 1"), "one");
    let three = dir.train(&format!("{flags} --workers 3"), "three");
    three.assert_same_bits(&one);
    assert_ne!(one.params_blake3, exact.params_blake3, "something was rounded");
    let apart = (val_loss(&one) / val_loss(&exact) - 1.0).abs();
    assert!(apart <= 0.01, "val loss {} with bf16, {} with f32", val_loss(&one), val_loss(&exact));
}

#[test]
fn conv_in_bf16_has_same_bits_with_any_worker_count() {
    check_bf16("conv");
}

#[test]
fn denoising_in_bf16_has_same_bits_with_any_worker_count() {
    check_bf16("denoising");
}

/// What rounding took from the gradients so far is a part of a checkpoint.
#[test]
fn resumed_bf16_run_has_same_bits() {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {SHORT_RUN} --wire grpc-bf16 --hash-steps");
    let whole = dir.train(&format!("{flags} --workers 1"), "whole");
    let coordinator = dir.coordinator(&format!("{flags} --workers 3 --checkpoint-every 50 --run-dir cut"));
    coordinator.wait_for_checkpoint(100);
    assert_eq!(coordinator.terminated()["outcome"], "stopped");
    let end = dir.coordinator("--resume cut --data small --workers 2 --wire grpc-bf16 --hash-steps").end();
    dir.run("cut", &end).assert_same_bits(&whole);
}
