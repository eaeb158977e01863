//! The program as its users run it, on a small text: many processes, the same bits.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// A small network, with dropout, since that draws random numbers in each shard.
const SIZE: &str = "--layers 2 --width 32 --heads 2 --context 64 --dropout 0.1";

/// Nothing that is waited for takes longer.
const WAIT_MAX: Duration = Duration::from_mins(2);

/// A folder in which programs run.
struct Place(TempDir);

/// A process that is killed when it is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Place {
    /// Paragraphs of 2 to 5 sentences that differ in a few words: a network learns quickly what they have in common.
    fn with_text() -> Self {
        let place = Self::empty();
        let animals = ["cat", "horse", "nightingale", "ox"];
        let verbs = ["sees", "follows", "remembers"];
        let mut text = String::new();
        for number in 0..200 {
            for sentence in 0..2 + number % 4 {
                let (subject, object) = (animals[(number + sentence) % 4], animals[number / 4 % 4]);
                writeln!(text, "The {subject} {} the {object}.", verbs[number / 16 % 3]).expect("text");
            }
            writeln!(text, "That was number {number}.\n").expect("text");
        }
        std::fs::write(place.path("text.txt"), text).expect("a file");
        place
    }

    fn empty() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_language"));
        command.args(line.split_whitespace()).current_dir(self.0.path());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TELAR_")) {
            command.env_remove(name);
        }
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().expect("the program starts")
    }

    /// The standard output of a run that succeeds.
    fn output(&self, line: &str) -> String {
        let output = self.run(line);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "`{line}`: {out}{err}");
        out.into_owned()
    }

    /// The last line of JSON of a run that succeeds.
    fn end(&self, line: &str) -> Value {
        let out = self.output(&format!("{line} --json"));
        serde_json::from_str(out.lines().last().expect("a line")).expect("JSON")
    }

    /// Runs a command that fails with a message.
    fn fail(&self, line: &str, exit_code: i32, part: &str) {
        let output = self.run(line);
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(exit_code), "`{line}`: {err}");
        assert!(err.contains(part), "`{line}` does not say `{part}`: {err}");
    }

    /// The losses of all steps of a run.
    fn losses(&self, run_dir: &str) -> Vec<f64> {
        let steps = std::fs::read_to_string(self.path(run_dir).join("steps.jsonl")).expect("the steps of a run");
        let loss = |line| serde_json::from_str::<Value>(line).expect("JSON")["loss"].as_f64().expect("a loss");
        steps.lines().map(loss).collect()
    }
}

/// The goal: one process and any number of workers train the same network, and it learns.
#[test]
fn training_on_any_number_of_workers_gives_same_bits_and_lower_loss() {
    let place = Place::with_text();
    let flags = format!(
        "{SIZE} --data text.txt --shards 4 --epochs 4 --batch-size 16 --learning-rate 0.005 --lr-schedule constant --warmup-steps 0 --clip-norm 1"
    );
    let alone = place.end(&format!("train {flags} --run-dir alone"));
    for n_workers in [2, 3] {
        let cluster = place.end(&format!("coordinator {flags} --workers {n_workers} --run-dir run-{n_workers}"));
        assert_eq!(cluster["params_blake3"], alone["params_blake3"], "{n_workers} workers");
        assert_eq!(cluster["last_epoch"]["val_loss"], alone["last_epoch"]["val_loss"]);
    }
    let losses = place.losses("alone");
    assert_eq!(losses, place.losses("run-3"));
    assert!(losses[0] > 7.5, "8 bits per byte before training, found {}", losses[0]);
    let val_loss = alone["last_epoch"]["val_loss"].as_f64().expect("a validation loss");
    assert!(val_loss < 3.0, "far below 8 bits per byte after training, found {val_loss}");

    // The file holds the settings of its network.
    let sample = "sample --weights alone/model.safetensors";
    place.fail(&format!("{sample} --prompt {}", "a".repeat(64)), 65, "fewer bytes than --context 64");
    let sample = format!("{sample} --prompt The --length 40");
    let text = place.output(&sample);
    assert!(text.starts_with("The"), "{text}");
    assert_eq!(text, place.output(&sample), "the same seed gives the same text");
}

/// The goal: a worker without the text fetches it from the coordinator.
#[test]
fn worker_without_text_fetches_it() {
    let place = Place::with_text();
    let text = "--data text.txt";
    let flags = format!("{SIZE} --shards 2 --epochs 1");
    let alone = place.end(&format!("train {flags} {text} --run-dir alone"));
    let flags = format!("coordinator {flags} {text} --launch external --listen unix:socket --workers 1 --run-dir run");
    let mut coordinator = place.command(&flags);
    let mut coordinator =
        Killed(coordinator.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts"));
    let begun = Instant::now();
    while !place.path("socket").exists() {
        assert!(begun.elapsed() < WAIT_MAX, "no socket after {WAIT_MAX:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    place.output("worker --coordinator unix:socket --threads 1");
    assert!(coordinator.0.wait().expect("it ends").success());
    let run = std::fs::read_to_string(place.path("run/run.json")).expect("the description of the run");
    let run: Value = serde_json::from_str(&run).expect("JSON");
    assert_eq!(run["result"]["params_blake3"], alone["params_blake3"]);
}

/// The goal: an error says what was expected, what was found, and what to write.
#[test]
fn mistake_in_flags_or_data_is_explained() {
    let place = Place::empty();
    place.fail(
        "train --width 30 --heads 4",
        64,
        "expected --width as a multiple of --heads, found --width 30 --heads 4",
    );
    place.fail("train --context 9", 64, "expected --context from 32 to 1024, found 9");
    place.fail("train --dropout 1", 64, "expected --dropout from 0 to below 1, found 1");
    place.fail("train --data .", 65, "found no paragraph of at least 16 bytes");
    place.fail("train --data nowhere", 65, "cannot read text from nowhere");
    place.fail("sample --weights nowhere", 65, "cannot read nowhere");
    place.fail("sample", 2, "Usage: language sample");
}
