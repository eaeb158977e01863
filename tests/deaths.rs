//! A coordinator that dies at any instant, a disk that it cannot write to any more, and workers that are silent when it is
//! to end: nothing that was kept is lost, what is wrong is said, and the next coordinator comes to the same bits.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use safetensors::SafeTensors;

use crate::harness::{Process, SHORT_RUN, SmallDisk, Stream, TestDir, field, is_alive, signal, wait_until};

/// Of the instants at which coordinators die.
const SEED: u64 = 20;
/// A run that no coordinator comes to the end of before it is killed, however slow the disk is; the last one is given fewer
/// epochs.
const ENDLESS_RUN: &str = "--arch denoising --shards 4 --batch-size 16 --epochs 1000000 --data small";
/// Steps of an epoch of it.
const N_EPOCH_STEPS: u64 = 138;
/// How long a run that was asked to end may take, whichever process is silent.
const END_MAX: Duration = Duration::from_mins(1);

/// Panics unless every checkpoint of a run that has its name is whole; gives how many files were not finished.
fn check_checkpoints(run: &Path) -> usize {
    let mut n_unfinished = 0;
    for entry in fs::read_dir(run.join("checkpoints")).expect("a folder") {
        let path = entry.expect("a file").path();
        let name = path.file_name().expect("a name").to_string_lossy();
        if name.starts_with(".telar-") {
            n_unfinished += 1;
            continue;
        }
        assert!(name.starts_with("step-") && name.ends_with(".safetensors"), "{name}");
        let bytes = fs::read(&path).expect("a file");
        let tensors = SafeTensors::deserialize(&bytes).unwrap_or_else(|error| panic!("{name} is not whole: {error}"));
        assert!(!tensors.is_empty(), "{name}");
    }
    n_unfinished
}

/// Kills a coordinator at a drawn instant: so long at most after one of some numbers of checkpoints, or, if that is 0, after
/// its beginning.
fn kill(coordinator: &Process, plan: &mut ChaCha8Rng, n_checkpoints: &[usize], pause_max: Duration) {
    coordinator.begin();
    let n_checkpoints = n_checkpoints[plan.next_u32() as usize % n_checkpoints.len()];
    let pause = pause_max.mul_f64(f64::from(plan.next_u32()) / f64::from(u32::MAX));
    if n_checkpoints > 0 {
        coordinator.wait_for_nth_line(Stream::Err, "checkpoint saved", n_checkpoints);
    }
    assert!(!coordinator.ends_within(pause), "the run is too short for so many deaths");
    coordinator.kill();
    check_nothing_skipped(coordinator);
}

/// Epochs with which a run ends soon after its newest checkpoint.
fn n_epochs_to_end(run: &Path) -> u64 {
    let entries = fs::read_dir(run.join("checkpoints")).expect("a folder");
    let names = entries.map(|entry| entry.expect("a file").file_name().to_string_lossy().into_owned());
    let step = |name: String| name.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse::<u64>().ok();
    names.filter_map(step).max().expect("a checkpoint") / N_EPOCH_STEPS + 2
}

fn check_nothing_skipped(coordinator: &Process) {
    let skipped = coordinator.lines(Stream::Err, "checkpoint skipped");
    assert!(skipped.is_empty(), "{skipped:?}");
}

/// Files of a run's folder that were not finished, and have stayed.
fn unfinished(run: &Path) -> Vec<String> {
    let folders = [run.to_owned(), run.join("checkpoints"), run.join("reconstructions"), run.join("codes")];
    // There is no folder of pictures before the first one.
    let entries =
        folders.iter().filter(|folder| folder.exists()).flat_map(|folder| fs::read_dir(folder).expect("a folder"));
    let names = entries.map(|entry| entry.expect("a file").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(".telar-")).collect()
}

/// The goal: whenever a coordinator dies, and however often, only the next coordinator has to be started.
#[test]
fn twenty_coordinator_kills_change_no_bits_and_end_no_worker() {
    eprintln!("the instants of seed {SEED}");
    let mut plan = ChaCha8Rng::seed_from_u64(SEED);
    let dir = TestDir::new();
    let others = "--checkpoint-every 5 --hash-steps --launch external --listen unix:socket";
    let mut coordinator = dir.coordinator(&format!("{ENDLESS_RUN} --run-dir run {others}"));
    let workers = ["worker 1", "worker 2"].map(|name| dir.worker(name, "unix:socket"));
    // Before it there is nothing to resume.
    coordinator.wait_for_checkpoint(0);
    for death in 1..=20 {
        kill(&coordinator, &mut plan, &[0, 0, 0, 0, 1, 2, 4, 8], Duration::from_millis(200));
        check_checkpoints(&dir.path("run"));
        if death < 20 {
            coordinator = dir.coordinator(&format!("--resume run --data small {others}"));
        }
    }
    let n_epochs = n_epochs_to_end(&dir.path("run"));
    coordinator = dir.coordinator(&format!("--resume run --data small --epochs {n_epochs} {others}"));
    coordinator.begin();
    assert!(workers.iter().all(Process::is_running));
    let run = dir.run("run", &coordinator.end());
    check_nothing_skipped(&coordinator);
    run.assert_same_bits(&dir.reference(&ENDLESS_RUN.replace("1000000", &n_epochs.to_string())));
    assert_eq!(run.description["incarnation"], 21);
    for worker in workers {
        worker.succeed();
    }
}

/// The goal: a file under its final name is whole, and what a death leaves beside it goes.
#[test]
fn fifty_kills_during_saves_leave_only_valid_checkpoints() {
    eprintln!("the instants of seed {SEED}");
    let mut plan = ChaCha8Rng::seed_from_u64(SEED);
    let dir = TestDir::new();
    let others = "--checkpoint-every 1 --workers 1 --hash-steps";
    let mut coordinator = dir.coordinator(&format!("{ENDLESS_RUN} --run-dir run {others}"));
    coordinator.wait_for_checkpoint(0);
    let mut n_torn = 0;
    for death in 1..=50 {
        kill(&coordinator, &mut plan, &[1, 2, 3], Duration::from_millis(20));
        let n_unfinished = check_checkpoints(&dir.path("run"));
        assert!(n_unfinished <= 1, "{n_unfinished} unfinished files after death {death}");
        n_torn += n_unfinished;
        if death < 50 {
            coordinator = dir.coordinator(&format!("--resume run --data small {others}"));
        }
    }
    eprintln!("{n_torn} of 50 deaths were in the middle of a file");
    assert!(n_torn > 0, "no death was in the middle of a file: this shows nothing");
    let n_epochs = n_epochs_to_end(&dir.path("run"));
    coordinator = dir.coordinator(&format!("--resume run --data small --epochs {n_epochs} {others}"));
    let run = dir.run("run", &coordinator.end());
    check_nothing_skipped(&coordinator);
    run.assert_same_bits(&dir.reference(&ENDLESS_RUN.replace("1000000", &n_epochs.to_string())));
    assert_eq!(unfinished(&dir.path("run")), [""; 0]);
}

/// The goal: whatever becomes of the files that `--data` names, they were read, and no process is killed for it.
#[test]
fn dataset_truncated_in_place_ends_no_process() {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {SHORT_RUN}");
    let expected = dir.reference(&flags);
    let (coordinator, address) = dir.external(&format!("{flags} --checkpoint-every 20 --run-dir run"));
    let worker = dir.worker("worker", &address);
    coordinator.wait_for_checkpoint(20);
    for entry in fs::read_dir(dir.path("small")).expect("a folder") {
        let path = entry.expect("a file").path();
        fs::File::options().write(true).open(path).and_then(|file| file.set_len(0)).expect("a file");
    }
    dir.run("run", &coordinator.end()).assert_same_bits(&expected);
    worker.succeed();
}

/// The newest checkpoint is that of an epoch's last step, from before its validation, and the epoch has its line already.
#[test]
fn kill_after_validation_leaves_one_line_per_epoch() {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {SHORT_RUN}");
    let expected = dir.reference(&flags);
    let coordinator = dir.coordinator(&format!("{flags} --workers 2 --checkpoint-every 138 --run-dir run"));
    coordinator.wait_for_checkpoint(138);
    let history = dir.path("run/history.jsonl");
    wait_until("the first epoch has its line", END_MAX, || fs::metadata(&history).is_ok_and(|file| file.len() > 0));
    coordinator.kill();
    let next = dir.coordinator("--resume run --data small --workers 2");
    let end = next.end();
    assert_eq!(next.begin()["step"], 138);
    dir.run("run", &end).assert_same_bits(&expected);
}

/// A run on a disk of its own that fails it after its second checkpoint: it ends with what is wrong, and the run goes on
/// where there is room.
fn check_disk(n_kibibytes: u32, spoil: impl Fn(&SmallDisk, &Process), parts: &[&str]) {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {SHORT_RUN}");
    let expected = dir.reference(&flags);
    let Some(disk) = SmallDisk::new(&dir, n_kibibytes) else { return };
    let flags = format!("{flags} --workers 2 --checkpoint-every 20 --hash-steps --run-dir disk/run --json");
    let coordinator = dir.start("coordinator", disk.inside(&dir.command("coordinator", &flags)));
    coordinator.wait_for_checkpoint(20);
    spoil(&disk, &coordinator);
    coordinator.check_end(73, parts);
    assert_eq!(check_checkpoints(&disk.path("run")), 0, "unfinished files");

    disk.copy("run", &dir.path("run"));
    let next = dir.coordinator("--resume run --data small --workers 2 --hash-steps");
    let end = next.end();
    check_nothing_skipped(&next);
    let from = next.begin()["step"].as_u64().expect("a step");
    assert!(from >= 20, "resumed at step {from}");
    dir.run("run", &end).assert_same_bits(&expected);
}

/// Three checkpoints of 642 KiB fit, and a fourth one does not.
#[test]
fn full_disk_at_checkpoint_is_reported_and_loses_nothing() {
    let full = "No space left on device";
    check_disk(
        2_050,
        |_, _| (),
        &[
            "checkpoint not saved; training goes on",
            &format!("cannot write disk/run/checkpoints/step-00000060.safetensors: {full}"),
            &format!("error: cannot write disk/run/model.safetensors: {full}"),
            "make room",
        ],
    );
}

#[test]
fn disk_filled_by_others_is_reported_and_loses_nothing() {
    check_disk(
        20_000,
        // A checkpoint that is given up makes room, which must not be there for what comes next.
        |disk, coordinator| disk.fill_until(|| coordinator.ends_within(Duration::from_millis(1))),
        &["error: cannot write disk/run/steps.jsonl: No space left on device", "make room"],
    );
}

#[test]
fn read_only_run_folder_is_reported_and_loses_nothing() {
    let read_only = "Read-only file system";
    check_disk(
        20_000,
        |disk, _| disk.make_read_only("run"),
        &[
            "checkpoint not saved; training goes on",
            &format!("error: cannot write disk/run/model.safetensors: {read_only}"),
            "make this one writable",
        ],
    );
}

/// The goal: what is lost with the disk at the very end is computed again by the workers that are there.
#[test]
fn workers_wait_for_next_coordinator_if_last_files_fail() {
    let dir = TestDir::new();
    let recipe = "--arch denoising --shards 4 --batch-size 16 --epochs 1 --data small --max-steps 60";
    let expected = dir.reference(recipe);
    let Some(disk) = SmallDisk::new(&dir, 2_050) else { return };
    let external = "--launch external --listen unix:socket";
    let flags = format!("{recipe} --checkpoint-every 20 --run-dir disk/run --json {external}");
    let coordinator = dir.start("coordinator", disk.inside(&dir.command("coordinator", &flags)));
    let worker = dir.worker("worker", "unix:socket");
    coordinator.check_end(73, &["error: cannot write disk/run/model.safetensors"]);
    worker.wait_for_line(Stream::Err, "could not write the run's last files");

    disk.copy("run", &dir.path("run"));
    let end = dir.coordinator(&format!("--resume run --data small {external}")).end();
    dir.run("run", &end).assert_same_bits(&expected);
    worker.succeed();
}

/// Asks a run of two workers to end when both have gone silent. Local ones are gone when it has ended.
fn check_silent(launch: &str) {
    let dir = TestDir::new();
    let is_external = !launch.is_empty();
    let flags = "--arch denoising --batch-size 16 --epochs 100000 --checkpoint-every 20 --data small --run-dir run";
    let coordinator = dir.coordinator(&format!("{flags} --workers 2 {launch}"));
    let workers = ["worker 1", "worker 2"].map(|name| is_external.then(|| dir.worker(name, "unix:socket")));
    coordinator.wait_for_nth_line(Stream::Err, "worker joined", 2);
    coordinator.wait_for_checkpoint(20);
    let joined = coordinator.lines(Stream::Err, "worker joined");
    let processes: Vec<u32> = joined.iter().map(|line| field(line, "process").parse().expect("a number")).collect();
    for &process in &processes {
        signal("STOP", process);
    }
    let asked = Instant::now();
    let end = coordinator.terminated();
    let waited = asked.elapsed();
    assert!(waited < END_MAX, "it took {waited:?} to end");
    assert_eq!(end["outcome"], "stopped");
    check_checkpoints(&dir.path("run"));
    let checkpoint = format!("run/checkpoints/step-{:08}.safetensors", end["step"].as_u64().expect("a step"));
    assert_eq!(end["checkpoint"], checkpoint);
    assert!(dir.path(&checkpoint).is_file(), "no {checkpoint}");
    assert!(processes.iter().all(|&process| is_alive(process) == is_external), "{processes:?}");
    for worker in workers.iter().flatten() {
        worker.signal("CONT");
        worker.wait_for_line(Stream::Err, "trying again");
    }
}

#[test]
fn stop_with_silent_local_workers_ends_them_in_time() {
    check_silent("");
}

#[test]
fn stop_with_silent_external_workers_ends_in_time() {
    check_silent("--launch external --listen unix:socket");
}
