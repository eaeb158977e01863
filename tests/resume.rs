//! A coordinator that ends or dies in the middle of a run: the next one goes on from a checkpoint, to the same bits; or
//! says why it does not.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::{N_SHORT_STEPS, Process, Run, SHORT_RUN, Stream, TERMINATED, TestDir};

/// Ends a local run of four workers in the middle of its first epoch, and gives the process that was.
fn interrupt(dir: &TestDir, flags: &str, signal: &str) -> Process {
    let flags = format!("{flags} --workers 4 --checkpoint-every 50 --run-dir run");
    let coordinator = dir.coordinator(&flags);
    coordinator.wait_for_checkpoint(100);
    coordinator.signal(signal);
    coordinator
}

/// Ends a run in the middle as a user would: its last line.
fn stop(dir: &TestDir, flags: &str) -> Value {
    let coordinator = interrupt(dir, flags, "TERM");
    coordinator.check_end(TERMINATED, &[]);
    let end = coordinator.last_json();
    assert_eq!(end["outcome"], "stopped");
    end
}

/// Goes on with two workers where there were four, and gives the step that it went on from and what came out.
fn resume(dir: &TestDir, flags: &str) -> (u64, Run) {
    let coordinator = dir.coordinator(&format!("{flags} --resume run --data small --workers 2"));
    let end = coordinator.end();
    assert_eq!(end["outcome"], "completed");
    (coordinator.begin()["step"].as_u64().expect("a step"), dir.run("run", &end))
}

/// The checkpoints of the run, the newest last.
fn checkpoints(dir: &TestDir) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.path("run/checkpoints")).expect("a folder");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a file").path()).collect();
    paths.sort_unstable();
    paths
}

fn check_stopped((signal, exit_code): (&str, i32), arch: &str, resume_flags: &str) {
    let dir = TestDir::new();
    let flags = format!("{arch} {SHORT_RUN}");
    let expected = dir.reference(&flags);
    let coordinator = interrupt(&dir, &flags, signal);
    coordinator.check_end(exit_code, &[]);
    let end = coordinator.last_json();
    assert_eq!(end["outcome"], "stopped");
    let step = end["step"].as_u64().expect("a step");
    assert!((100..N_SHORT_STEPS).contains(&step), "{end}");
    let newest = checkpoints(&dir).pop().expect("a checkpoint");
    assert!(newest.ends_with(format!("step-{step:08}.safetensors")), "{} after {end}", newest.display());
    assert_eq!(dir.path(end["checkpoint"].as_str().expect("a checkpoint")), newest);

    let (from, resumed) = resume(&dir, resume_flags);
    assert_eq!(from, step);
    resumed.assert_same_bits(&expected);
    assert_eq!(resumed.description["incarnation"], 2);
}

#[test]
fn stopped_run_resumes_to_same_bits() {
    check_stopped(("TERM", TERMINATED), "--arch denoising", "");
}

#[test]
fn interrupted_run_resumes_to_same_bits() {
    check_stopped(("INT", 0), "--arch conv", "");
}

#[test]
fn momentum_run_resumes_with_velocity() {
    check_stopped(("TERM", TERMINATED), "--arch denoising --momentum 0.9 --nesterov --learning-rate 0.1", "");
}

#[test]
fn adamw_run_resumes_with_moments_and_learning_rate() {
    let flags = "--arch denoising --optimizer adamw --learning-rate 0.01 --lr-schedule cosine --warmup-steps 20 --clip-norm 0.1";
    check_stopped(("TERM", TERMINATED), flags, "--optimizer adamw --lr-schedule cosine");
}

/// What is given again and is as it was is no other run.
#[test]
fn resume_with_same_flags_is_accepted() {
    check_stopped(("TERM", TERMINATED), "--arch denoising", "--arch denoising --batch-size 16 --shards 4 --epochs 2");
}

#[test]
fn killed_run_resumes_to_same_bits() {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {SHORT_RUN}");
    let expected = dir.reference(&flags);
    interrupt(&dir, &flags, "KILL").wait_exit();
    let (from, resumed) = resume(&dir, "");
    // Of steps after the newest checkpoint, lines may be there; they are written anew.
    assert!(from >= 100 && from.is_multiple_of(50), "resumed at step {from}");
    resumed.assert_same_bits(&expected);
}

/// Workers of a coordinator that is gone look for it, and find the one that resumes the run.
fn check_come_back(signal: &str) {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {SHORT_RUN}");
    let expected = dir.reference(&flags);
    let listen = "--launch external --listen unix:socket";
    let coordinator = dir.coordinator(&format!("{flags} --checkpoint-every 50 --run-dir run {listen}"));
    let workers = ["worker 1", "worker 2"].map(|name| dir.worker(name, "unix:socket"));
    coordinator.wait_for_nth_line(Stream::Err, "worker joined", 2);
    coordinator.wait_for_checkpoint(100);
    coordinator.signal(signal);
    coordinator.wait_exit();
    for worker in &workers {
        worker.wait_for_line(Stream::Err, "trying again");
    }

    let end = dir.coordinator(&format!("--resume run --data small {listen}")).end();
    dir.run("run", &end).assert_same_bits(&expected);
    for worker in workers {
        worker.succeed();
        assert_eq!(worker.lines(Stream::Err, "joined the run").len(), 2, "it joined both coordinators");
    }
}

#[test]
fn workers_rejoin_after_coordinator_is_stopped() {
    check_come_back("TERM");
}

#[test]
fn workers_rejoin_after_coordinator_is_killed() {
    check_come_back("KILL");
}

/// The goal: no damaged checkpoint is ever trained on, and none takes a run with it.
#[test]
fn damaged_checkpoint_is_reported_and_older_one_used() {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {SHORT_RUN}");
    let expected = dir.reference(&flags);
    stop(&dir, &flags);
    let [oldest, torn, flipped] = checkpoints(&dir).try_into().expect("three checkpoints are kept");
    let mut bytes = fs::read(&flipped).expect("a checkpoint");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&flipped, &bytes).expect("a file");
    fs::write(&torn, &bytes[..middle]).expect("a file");

    let coordinator = dir.coordinator("--resume run --data small --workers 2");
    let end = coordinator.end();
    let skipped = coordinator.lines(Stream::Err, "checkpoint skipped");
    assert_eq!(skipped.len(), 2, "{skipped:?}");
    assert!(skipped[0].contains("some bits are others"), "{skipped:?}");
    let step = coordinator.begin()["step"].as_u64().expect("a step");
    assert!(oldest.ends_with(format!("step-{step:08}.safetensors")), "went on from step {step}");
    dir.run("run", &end).assert_same_bits(&expected);
}

/// The goal: whatever would give other bits is refused with what to do, and leaves the run as it was.
#[test]
fn refused_resume_reports_reason_and_changes_nothing() {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {SHORT_RUN}");
    let expected = dir.reference(&flags);
    stop(&dir, &flags);
    let pixels = dir.path("other/train-images-idx3-ubyte");
    crate::harness::SMALL_DATA.write(&dir.path("other"));
    let mut bytes = fs::read(&pixels).expect("a file");
    bytes[1_000] ^= 1;
    fs::write(&pixels, bytes).expect("a file");

    let check = |flags: &str, exit_code, parts: &[&str]| dir.fail("coordinator", flags, exit_code, parts);
    let resumed = "--resume run --data small";
    let as_before = "as in the run that is resumed, found";
    check(&format!("{resumed} --arch conv"), 64, &["expected --arch denoising", as_before, "found --arch conv"]);
    check(&format!("{resumed} --batch-size 32"), 64, &["expected --batch-size 16", as_before]);
    check(&format!("{resumed} --shards 2"), 64, &["expected --shards 4", as_before]);
    check(&format!("{resumed} --wire grpc-bf16"), 64, &["as in the run that is resumed; leave --wire as it was"]);
    check("--resume run --data other", 65, &["expected the data set that the run was begun with", "with --data"]);
    check("--resume nowhere --data small", 65, &["expected a checkpoint to resume from in nowhere", "found none"]);
    check("--resume --data small", 64, &["expected a run to resume in runs/, found none"]);
    check(&format!("{flags} --run-dir run"), 73, &["run", "it holds a run already"]);

    let (from, resumed) = resume(&dir, "");
    assert!(from >= 100, "resumed at step {from}");
    resumed.assert_same_bits(&expected);
}

#[test]
fn run_without_valid_checkpoint_is_not_resumed() {
    let dir = TestDir::new();
    stop(&dir, &format!("--arch denoising {SHORT_RUN}"));
    for path in checkpoints(&dir) {
        fs::write(path, b"torn").expect("a file");
    }
    dir.fail("coordinator", "--resume run --data small", 65, &["found only damaged ones", "step-00000100"]);
}

#[test]
fn second_coordinator_on_folder_is_refused() {
    let dir = TestDir::new();
    stop(&dir, &format!("--arch denoising {SHORT_RUN}"));
    let first = dir.coordinator("--resume run --data small --launch external --listen unix:socket");
    first.begin();
    dir.fail("coordinator", "--resume run --data small", 73, &["found another coordinator"]);
    assert!(first.is_running());
}

#[test]
fn run_killed_before_first_step_resumes() {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {SHORT_RUN} --hash-steps");
    let expected = dir.reference(&format!("--arch denoising {SHORT_RUN}"));
    let coordinator = dir.coordinator(&format!("{flags} --launch external --listen unix:socket --run-dir run"));
    coordinator.wait_for_checkpoint(0);
    coordinator.kill();
    let end = dir.coordinator("--resume run --data small --workers 2 --hash-steps").end();
    dir.run("run", &end).assert_same_bits(&expected);
}

/// What a supervisor does: the same command again after each death, until one ends with 0.
#[test]
fn same_command_starts_resumes_and_ends_run() {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {SHORT_RUN}");
    let expected = dir.reference(&flags);
    let again = format!("{flags} --workers 2 --checkpoint-every 50 --run-dir run --resume auto");
    let first = dir.coordinator(&again);
    first.wait_for_checkpoint(50);
    first.kill();
    let second = dir.coordinator(&again);
    assert!(second.begin()["step"].as_u64().expect("a step") >= 50, "it begins where the first one was killed");
    second.wait_for_checkpoint(150);
    second.terminate();
    let third = dir.coordinator(&again);
    let run = dir.run("run", &third.end());
    run.assert_same_bits(&expected);
    assert_eq!(run.description["incarnation"], 3);

    // Once more after the end, as where a machine failed before it could say so.
    let end = dir.coordinator(&again).end();
    assert_eq!((&end["outcome"], &end["params_blake3"]), (&"completed".into(), &run.params_blake3.clone().into()));
}

#[test]
fn run_killed_before_first_checkpoint_is_restarted() {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {SHORT_RUN}");
    let expected = dir.reference(&flags);
    let begun = dir.coordinator(&format!("{flags} --workers 2 --run-dir run"));
    begun.wait_for_checkpoint(0);
    begun.kill();
    for path in checkpoints(&dir) {
        fs::remove_file(path).expect("a file");
    }
    let end = dir.coordinator(&format!("{flags} --workers 2 --run-dir run --resume auto")).end();
    dir.run("run", &end).assert_same_bits(&expected);
}

/// The goal: whatever moment a coordinator is killed at, the same command begins its run again or goes on with it.
#[test]
fn folder_left_before_first_checkpoint_is_reused() {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {SHORT_RUN} --max-steps 3");
    let begun = dir.coordinator(&format!("{flags} --launch external --listen unix:socket --run-dir begun"));
    begun.wait_for_checkpoint(0);
    begun.kill();
    let file = |path: &str| fs::read(dir.path("begun").join(path)).expect("a file");
    let (description, checkpoint) = (file("run.json"), file("checkpoints/step-00000000.safetensors"));
    let torn = &checkpoint[..checkpoint.len() / 2];
    // Each has what those before it have.
    let moments: [&[(&str, &[u8])]; 7] = [
        &[("history.jsonl", b"")],
        &[("steps.jsonl", b""), (".lock", b"")],
        &[(".telar-Xa1b2c", &description[..100])],
        &[("run.json", &description)],
        &[("checkpoints/.telar-Xa1b2c", torn), ("journal/a.safetensors", b""), ("journal/b.safetensors", b"")],
        &[("journal/a.safetensors", torn)],
        &[("steps.jsonl", b"{\"step\":1,\"loss\":0.5}\n")],
    ];
    for n_moments in 0..=moments.len() {
        for resume in ["", "--resume auto"] {
            let run = dir.path("run");
            fs::create_dir_all(run.join("reconstructions")).expect("a folder");
            for (path, content) in moments[..n_moments].concat() {
                let path = run.join(path);
                fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
                fs::write(path, content).expect("a file");
            }
            let end = dir.coordinator(&format!("{flags} --workers 1 --run-dir run {resume}")).end();
            assert_eq!((&end["outcome"], &end["step"]), (&"completed".into(), &3.into()), "{n_moments} {resume}");
            let steps = fs::read_to_string(run.join("steps.jsonl")).expect("a file");
            assert_eq!(steps.lines().count(), 3, "{n_moments} {resume}: {steps}");
            fs::remove_dir_all(run).expect("a folder");
        }
    }
}

/// Puts a hole before the lines of a file, as if there were millions more of them.
fn lengthen(path: &Path, n_bytes: u64) {
    let lines = fs::read(path).expect("a file");
    let mut file = File::create(path).expect("a file");
    file.set_len(n_bytes).and_then(|()| file.seek(SeekFrom::End(0))).expect("a file system with sparse files");
    file.write_all(&[b"\n", &lines[..]].concat()).expect("a file");
}

/// The goal: however long a run has become, it goes on.
#[test]
fn run_with_gigabytes_of_lines_resumes_to_same_bits() {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {SHORT_RUN}");
    let expected = dir.reference(&flags);
    let step = stop(&dir, &flags)["step"].as_u64().expect("a step");
    lengthen(&dir.path("run/steps.jsonl"), 5 << 30);
    let coordinator = dir.coordinator("--resume run --data small --workers 2");
    assert_eq!(coordinator.begin()["step"], step);
    assert_eq!(coordinator.end()["params_blake3"], expected.params_blake3);
}

#[test]
fn auto_resume_never_overwrites_unresumable_run() {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {SHORT_RUN}");
    let auto = format!("{flags} --workers 2 --run-dir run --resume auto");
    stop(&dir, &flags);
    for path in checkpoints(&dir) {
        fs::write(path, b"torn").expect("a file");
    }
    dir.fail("coordinator", &auto, 65, &["found only damaged ones"]);
    // A run of one process has no checkpoints, and is worth as much.
    dir.start("autoencoder", dir.command("autoencoder", &format!("train {flags} --run-dir alone"))).succeed();
    dir.fail("coordinator", &auto.replace("--run-dir run", "--run-dir alone"), 73, &["it holds a run already"]);
    let weights = fs::read(dir.path("alone/model.safetensors"));
    assert!(weights.is_ok(), "its weights are gone");
}

/// A supervisor that started workers with a run that was complete already sees them end.
#[test]
fn resume_of_completed_run_ends_waiting_workers() {
    let dir = TestDir::new();
    dir.train(&format!("--arch denoising {SHORT_RUN} --workers 2"), "run");
    let again = "--resume auto --run-dir run --workers 2 --launch external --listen unix:socket";
    let coordinator = dir.coordinator(&format!("--arch denoising {SHORT_RUN} {again}"));
    let workers = ["worker 1", "worker 2"].map(|name| dir.worker(name, "unix:socket"));
    assert_eq!(coordinator.end()["outcome"], "completed");
    for worker in workers {
        worker.succeed();
        assert!(!worker.lines(Stream::Err, "the run is complete").is_empty());
    }
}

#[test]
fn run_folder_with_one_empty_file_is_reused() {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {SHORT_RUN} --max-steps 3 --workers 2 --resume auto");
    for name in ["history.jsonl", "steps.jsonl"] {
        fs::create_dir(dir.path(name)).expect("a folder");
        fs::write(dir.path(name).join(name), "").expect("a file");
        assert_eq!(dir.coordinator(&format!("{flags} --run-dir {name}")).end()["step"], 3);
    }
}

#[test]
fn auto_resume_refuses_diverged_run() {
    let dir = TestDir::new();
    let flags =
        "--arch denoising --shards 4 --batch-size 16 --data small --learning-rate 1e9 --workers 2 --run-dir run";
    dir.fail("coordinator", flags, 74, &["diverged: at step"]);
    dir.fail(
        "coordinator",
        &format!("{flags} --resume auto"),
        74,
        &["found one that ended with: the run diverged: at step"],
    );
}

/// The goal: a network that is there at one start and not at the next one changes no run's data set.
#[test]
fn resumed_run_keeps_its_dataset() {
    let dir = TestDir::new();
    let offline = |flags: &str| {
        let mut command =
            dir.command("coordinator", &format!("--arch denoising --workers 2 --json --run-dir run {flags}"));
        for name in ["ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "http_proxy", "https_proxy"] {
            command.env(name, "http://127.0.0.1:9"); // no proxy listens there
        }
        dir.start("coordinator", command)
    };
    let first = offline("--max-steps 3");
    first.wait_for_line(Stream::Err, "NOT FASHION-MNIST");
    first.succeed();
    let again = offline("--max-steps 5 --resume auto");
    assert_eq!(again.end()["step"], 5);
    assert!(again.lines(Stream::Err, "NOT FASHION-MNIST").is_empty(), "the garments are what the run is about");

    let description = fs::read_to_string(dir.path("run/run.json")).expect("a file");
    fs::write(dir.path("run/run.json"), description.replace("synthetic garments", "/cache/fashion-mnist"))
        .expect("a file");
    offline("--max-steps 7 --resume auto").check_end(69, &["could not be downloaded"]);
}
