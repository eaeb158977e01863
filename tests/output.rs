//! Whoever reads what a coordinator says may go away, or stop reading: no step waits for that, and nothing is lost by it.

use std::cell::RefCell;
use std::io::Read;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::harness::{SHORT_RUN, TestDir, wait_until};

/// A coordinator whose standard error is a pipe in the test's hands.
fn start(dir: &TestDir, flags: &str) -> Child {
    let mut command = dir.command("coordinator", flags);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the program starts")
}

/// Waits for a good end; the last line on standard output.
fn end(mut coordinator: Child) -> Value {
    let mut stdout = coordinator.stdout.take().expect("a pipe");
    let mut text = String::new();
    stdout.read_to_string(&mut text).expect("text");
    let coordinator = RefCell::new(coordinator);
    let status = || coordinator.borrow_mut().try_wait().expect("a child's end can be asked for");
    wait_until("the coordinator has ended", Duration::from_mins(1), || status().is_some());
    assert!(status().is_some_and(|status| status.success()), "{:?}", status());
    serde_json::from_str(text.lines().last().expect("a last line")).expect("JSON")
}

#[test]
fn closed_log_pipe_does_not_end_run() {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {SHORT_RUN}");
    let expected = dir.reference(&flags);
    let flags = format!("{flags} --hash-steps --workers 2 --checkpoint-every 50 --json --run-dir run");
    let mut coordinator = start(&dir, &flags);
    let mut first = [0];
    coordinator.stderr.take().expect("a pipe").read_exact(&mut first).expect("a log"); // and closes the pipe
    let end = end(coordinator);
    dir.run("run", &end).assert_same_bits(&expected);
    assert!(dir.path("run/checkpoints/step-00000276.safetensors").is_file());
}

#[test]
fn unread_log_pipe_does_not_block_run() {
    let dir = TestDir::new();
    // Some 800 lines of the log are more than a pipe takes.
    let flags = "--arch denoising --shards 4 --batch-size 16 --epochs 6 --data small --workers 2 --checkpoint-every 1 \
                 --keep 1 --json --run-dir run";
    let coordinator = start(&dir, flags);
    assert_eq!(end(coordinator)["outcome"], "completed");
    assert!(dir.path("run/checkpoints/step-00000828.safetensors").is_file());
}
