//! Programs of tasks that the engine does not know, as their users run them: many processes, the same bits.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Nothing that is waited for takes longer.
const WAIT_MAX: Duration = Duration::from_mins(2);

/// The program of several tasks in `examples/odd.rs`.
fn program(folder: &Path, line: &str) -> Command {
    let tests = std::env::current_exe().expect("a test is a program");
    let built = tests.parent().and_then(Path::parent).expect("the folder of what is built").join("examples/odd");
    let mut command = Command::new(built);
    command.args(line.split_whitespace()).current_dir(folder);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TELAR_")) {
        command.env_remove(name);
    }
    command
}

struct TestDir(TempDir);

impl TestDir {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn run(&self, line: &str) -> Output {
        program(self.0.path(), line).output().expect("the program starts")
    }

    /// The last line of JSON of a run that ends well.
    fn end(&self, line: &str) -> serde_json::Value {
        let output = self.run(&format!("{line} --json"));
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "`{line}`: {out}{err}");
        serde_json::from_str(out.lines().last().expect("a line")).expect("JSON")
    }

    /// What a run that fails says.
    fn fail(&self, line: &str, exit_code: i32, part: &str) {
        let output = self.run(line);
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(exit_code), "`{line}`: {err}");
        assert!(err.contains(part), "`{line}` does not say `{part}`: {err}");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < WAIT_MAX, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A process that is killed when it is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The goal: any network, any data: whatever a task has, workers of any number give the bits of one process.
#[test]
fn custom_task_has_same_bits_with_any_worker_count() {
    let dir = TestDir::new();
    let flags = "--task words --rate 0.3 --noise 0.5 --shards 6 --clip-norm 0.8 --lr-schedule cosine --warmup-steps 3";
    let alone = dir.end(&format!("train {flags} --run-dir alone"));
    let other = dir.end(&format!("train {flags} --run-dir other --noise 0.25").replace("--noise 0.5 ", ""));
    assert_ne!(alone["params_blake3"], other["params_blake3"], "the task's own flag changes what is trained");
    for n_workers in [1, 2, 5] {
        let cluster = dir.end(&format!("coordinator {flags} --workers {n_workers} --run-dir run-{n_workers}"));
        assert_eq!(cluster["params_blake3"], alone["params_blake3"], "{n_workers} workers");
        assert_eq!(cluster["last_epoch"]["val_loss"], alone["last_epoch"]["val_loss"]);
        assert!(cluster["last_epoch"]["val_word_accuracy"].as_f64().expect("the task's metric") > 0.0);
        assert!(cluster["last_epoch"]["sentences_per_second"].is_number());
    }
    let evaluated = dir.end("evaluate --task words --split valid --weights alone/model.safetensors");
    assert_eq!(evaluated["loss"], alone["last_epoch"]["val_loss"]);
    // The weights know their task and its settings.
    let evaluated = dir.end("evaluate --split valid --weights alone/model.safetensors");
    assert_eq!(evaluated["loss"], alone["last_epoch"]["val_loss"]);
    dir.fail(
        "evaluate --task moody --weights alone/model.safetensors",
        65,
        "expected weights of moody, found weights of words",
    );
    // A run that is stopped and resumed, without its flags.
    let stopped =
        format!("coordinator {flags} --workers 2 --max-steps 5 --run-dir stopped").replace("--lr-schedule cosine ", "");
    dir.end(&stopped);
    let resumed = dir.end("coordinator --task words --workers 3 --resume stopped --max-steps 9");
    let whole = dir.end(&stopped.replace("--max-steps 5 --run-dir stopped", "--max-steps 9 --run-dir whole"));
    assert_eq!(resumed["params_blake3"], whole["params_blake3"]);
    dir.fail("coordinator --task words --resume stopped --rate 0.5", 64, "expected --rate 0.3 as in the run");
}

/// The goal: a worker of another machine that is killed in the middle costs nothing but its work.
#[test]
fn killed_worker_changes_no_bits() {
    let dir = TestDir::new();
    let flags = "--task words --shards 4 --epochs 60 --hash-steps";
    let alone = dir.end(&format!("train {flags} --run-dir alone"));
    let listen = "--launch external --listen unix:socket --workers 2 --run-dir run --json";
    let mut coordinator = program(dir.0.path(), &format!("coordinator {flags} {listen}"));
    let mut coordinator = Killed(coordinator.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("a start"));
    wait_until("the socket", || dir.path("socket").exists());
    let worker = || {
        let mut worker = program(dir.0.path(), "worker --coordinator unix:socket --threads 1");
        Killed(worker.stderr(Stdio::null()).spawn().expect("a start"))
    };
    let (first, mut second) = (worker(), worker());
    let n_steps = || std::fs::read_to_string(dir.path("run/steps.jsonl")).map_or(0, |text| text.lines().count());
    wait_until("some steps", || n_steps() > 30);
    drop(first);
    assert!(coordinator.0.wait().expect("it ends").success());
    assert!(second.0.wait().expect("it ends").success());
    let mut out = String::new();
    std::io::Read::read_to_string(coordinator.0.stdout.as_mut().expect("a pipe"), &mut out).expect("text");
    let end: serde_json::Value = serde_json::from_str(out.lines().last().expect("a line")).expect("JSON");
    assert_eq!((end["step"].as_u64(), &end["params_blake3"]), (Some(60 * 8), &alone["params_blake3"]));
}

/// The goal: a run ends when it no longer improves, after the same step for any number of workers, and its best weights are kept.
#[test]
fn early_stopping_keeps_best_weights_on_any_number_of_workers() {
    let dir = TestDir::new();
    let flags = "--task words --shards 3 --epochs 60 --learning-rate 0.1 --patience 3";
    let alone = dir.end(&format!("train {flags} --run-dir alone"));
    let (best, last) = (&alone["best_epoch"], alone["last_epoch"]["epoch"].as_u64().expect("an epoch"));
    let best_epoch = best["epoch"].as_u64().expect("an epoch");
    assert_eq!((alone["stopped_early"].as_bool(), alone["interrupted"].as_bool()), (Some(true), Some(false)));
    assert!(last < 60 && last == best_epoch + 3, "{alone}");
    let best_weights = |run: &str| std::fs::read(dir.path(run).join("best.safetensors")).expect("the best weights");
    let evaluated = dir.end("evaluate --task words --split valid --weights alone/best.safetensors");
    assert_eq!(evaluated["loss"], best["val_loss"]);
    let check = |found: serde_json::Value, run: &str| {
        assert_eq!(found["params_blake3"], alone["params_blake3"], "{run}");
        assert_eq!((&found["step"], &found["best_epoch"]), (&alone["step"], best), "{run}");
        assert_eq!((found["stopped_early"].as_bool(), found["outcome"].as_str()), (Some(true), Some("completed")));
        assert!(best_weights(run) == best_weights("alone"), "{run}");
    };
    check(dir.end(&format!("coordinator {flags} --workers 3 --run-dir three")), "three");
    // A run that is stopped after its best epoch knows it when it is resumed; 8 steps are an epoch.
    let stopped = dir.end(&format!("coordinator {flags} --run-dir two --workers 2 --max-steps {}", 8 * best_epoch + 8));
    assert_eq!((stopped["stopped_early"].as_bool(), &stopped["best_epoch"]), (Some(false), best));
    check(dir.end("coordinator --task words --workers 2 --resume two --epochs 60"), "two");
    // It is complete, unless more patience is asked for.
    let resumed = dir.end("coordinator --task words --workers 1 --resume two");
    assert_eq!(resumed["step"], alone["step"]);
    let resumed = dir.end("coordinator --task words --workers 1 --resume two --patience 5");
    assert!(resumed["step"].as_u64() > alone["step"].as_u64(), "{resumed}");
    dir.fail("train --task broken --init-partial", 2, "--init-from <FILE>");
    let partial =
        "train --task moody --max-steps 1 --init-from alone/best.safetensors --init-partial --run-dir partial";
    let output = dir.run(partial);
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(out.contains("tensors from alone/best.safetensors"), "{out}");
    dir.fail(
        "train --task broken --init-from alone/best.safetensors --init-partial",
        65,
        "tensors one.weight, one.bias",
    );
}

/// The goal: what a task does wrong gets a sentence.
#[test]
fn task_fault_is_reported_with_reason() {
    let dir = TestDir::new();
    dir.fail("coordinator --workers 2", 64, "expected --task words, moody or broken, found none");
    dir.fail("train --task words --rate 1", 64, "expected --rate from 0 to below 1, found 1");
    dir.fail("train --task moody --rate 0.5", 64, "--rate is not a flag of the task moody");
    dir.fail("train --task words --data nowhere", 65, "expected no --data, found nowhere");
    dir.fail("train --task words --weight-decay 0.1", 64, "parameters that are not trained, such as frozen.weight");
    dir.fail("train --task broken --how shared", 64, "found one.weight in other.weight too");
    dir.fail("train --task broken --how nan", 74, "the loss of shard 0 is not finite");
    dir.fail("coordinator --task broken --how nan --workers 2", 74, "the run diverged: at step 1");
    dir.fail("coordinator --task broken --how sizes --workers 2", 64, "expected the parameter layout");
    // Data that depends on who gathers it: each of two votes, and the coordinator's, is another one.
    let output = dir.run("coordinator --task moody --workers 2 --shards 4 --epochs 1 --audit 1 --run-dir moody");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(err.contains("evicted") && err.contains("wrong"), "{err}");
}

/// The goal: a worker's program without the task of the run says which it has and which it lacks.
#[test]
fn worker_without_task_of_run_exits_with_reason() {
    let dir = TestDir::new();
    let flags = "--task words --launch external --listen unix:socket --run-dir run";
    let mut coordinator = program(dir.0.path(), &format!("coordinator {flags}"));
    let _coordinator = Killed(coordinator.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a start"));
    wait_until("the socket", || dir.path("socket").exists());
    let tests = std::env::current_exe().expect("a test is a program");
    let built = tests.parent().and_then(Path::parent).expect("the folder of what is built").join("examples/line");
    let mut worker = Command::new(built);
    worker.args(["worker", "--coordinator", "unix:socket"]).current_dir(dir.0.path());
    let output = worker.output().expect("a start");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{err}");
    assert!(err.contains("expected the task fit, which this program knows, found the task `words`"), "{err}");
}
