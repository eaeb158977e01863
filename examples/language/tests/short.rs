//! The program as its users run it, on a small text: many processes, the same bits.

use std::fmt::Write;

use testdir::{TestDir, wait_until};

/// A small network, with dropout, since that draws random numbers in each shard.
const SIZE: &str = "--layers 2 --width 32 --heads 2 --context 64 --dropout 0.1";

fn empty_dir() -> TestDir {
    TestDir::new(env!("CARGO_BIN_EXE_language"))
}

/// Paragraphs of 2 to 5 sentences that differ in a few words: a network learns quickly what they have in common.
fn dir_with_text() -> TestDir {
    let dir = empty_dir();
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
    std::fs::write(dir.path("text.txt"), text).expect("a file");
    dir
}

/// The losses of all steps of a run.
fn losses(dir: &TestDir, run_dir: &str) -> Vec<f64> {
    let steps = dir.lines(&format!("{run_dir}/steps.jsonl"));
    steps.iter().map(|step| step["loss"].as_f64().expect("a loss")).collect()
}

/// The goal: one process and any number of workers train the same network, and it learns.
#[test]
fn training_on_any_number_of_workers_gives_same_bits_and_lower_loss() {
    let dir = dir_with_text();
    let flags = format!(
        "{SIZE} --data text.txt --shards 4 --epochs 4 --batch-size 16 --learning-rate 0.005 --lr-schedule constant --warmup-steps 0 --clip-norm 1"
    );
    let alone = dir.end(&format!("train {flags} --run-dir alone"));
    for n_workers in [2, 3] {
        let cluster = dir.end(&format!("coordinator {flags} --workers {n_workers} --run-dir run-{n_workers}"));
        assert_eq!(cluster["params_blake3"], alone["params_blake3"], "{n_workers} workers");
        assert_eq!(cluster["last_epoch"]["val_loss"], alone["last_epoch"]["val_loss"]);
    }
    let found = losses(&dir, "alone");
    assert_eq!(found, losses(&dir, "run-3"));
    assert!(found[0] > 7.5, "8 bits per byte before training, found {}", found[0]);
    let val_loss = alone["last_epoch"]["val_loss"].as_f64().expect("a validation loss");
    assert!(val_loss < 3.0, "far below 8 bits per byte after training, found {val_loss}");
    let last = dir.lines("run-2/history.jsonl").pop().expect("an epoch");
    assert_eq!(last["val_perplexity"].as_f64().map(f64::to_bits), Some(val_loss.exp2().to_bits()), "{last}");

    // The file holds the settings of its network.
    let sample = "sample --weights alone/model.safetensors";
    dir.fail(&format!("{sample} --prompt {}", "a".repeat(64)), 64, "fewer bytes than --context 64");
    dir.fail(&format!("{sample} --temperature 0"), 64, "expected --temperature from 0.01 to 100, found 0");
    let sample = format!("{sample} --prompt The --length 40");
    let text = dir.output(&sample);
    assert!(text.starts_with("The"), "{text}");
    assert_eq!(text, dir.output(&sample), "the same seed gives the same text");
}

/// The goal: a worker without the text fetches it from the coordinator.
#[test]
fn worker_without_text_fetches_it() {
    let dir = dir_with_text();
    let text = "--data text.txt";
    let flags = format!("{SIZE} --shards 2 --epochs 1");
    let alone = dir.end(&format!("train {flags} {text} --run-dir alone"));
    let flags = format!("coordinator {flags} {text} --launch external --listen unix:socket --workers 1 --run-dir run");
    let mut coordinator = dir.start(&flags);
    wait_until("the socket", || dir.path("socket").exists());
    dir.output("worker --coordinator unix:socket --threads 1");
    assert!(coordinator.0.wait().expect("it ends").success());
    let run = dir.json("run/run.json");
    assert_eq!(run["result"]["params_blake3"], alone["params_blake3"]);
}

/// The goal: an error says what was expected, what was found, and what to write.
#[test]
fn mistake_in_flags_or_data_is_explained() {
    let dir = empty_dir();
    dir.fail("train --width 30 --heads 4", 64, "expected --width as a multiple of --heads, found --width 30 --heads 4");
    dir.fail("train --context 9", 64, "expected --context from 32 to 1024, found 9");
    dir.fail("train --dropout 1", 64, "expected --dropout from 0 to below 1, found 1");
    dir.fail("train --data .", 65, "found no paragraph of at least 16 bytes");
    dir.fail("train --data nowhere", 65, "cannot read text from nowhere");
    dir.fail("sample --weights nowhere", 65, "cannot read nowhere");
    dir.fail("sample", 2, "Usage: language sample");
    assert!(dir.output("--help").contains("Print text that trained weights generate"));
}
