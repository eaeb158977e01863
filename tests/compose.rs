//! deploy/compose.yaml on a real Docker engine: whatever befalls the containers, the run ends with the bits of one process.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Compose, Process, Stream, TERMINATED, TestDir, docker, field, inspect, signal, wait_until};

const WORKERS: usize = 3;
/// How long a worker is paused: longer than the 2 s after which its silence is noticed.
const PAUSE: Duration = Duration::from_secs(5);
/// How long the engine may take for one thing.
const ENGINE_WAIT_MAX: Duration = Duration::from_mins(1);

/// What is trained: long enough for all faults, and with a checkpoint in each of the moments between them.
const RUN: [(&str, &str); 5] = [
    ("TELAR_ARCH", "conv"),
    ("TELAR_SHARDS", "4"),
    ("TELAR_BATCH_SIZE", "16"),
    ("TELAR_EPOCHS", "60"),
    ("TELAR_CHECKPOINT_EVERY", "50"),
];
const REFERENCE: &str = "--arch conv --shards 4 --batch-size 16 --epochs 60 --data small";

/// A process of the coordinator, and its log as it comes.
struct Coordinator {
    container: String,
    incarnation: u32,
    log: Process,
}

impl Coordinator {
    fn follow(dir: &TestDir, compose: &Compose, incarnation: u32) -> Self {
        let [container] = compose.containers("coordinator").try_into().expect("one coordinator");
        let mut command = Command::new("docker");
        command.args(["logs", "--follow", &container]);
        let log = dir.start(&format!("coordinator {incarnation}"), command);
        Self { container, incarnation, log }
    }

    /// What this process' lines hold that say `words`.
    fn part(&self, words: &str) -> String {
        format!("incarnation={}}}: {words}", self.incarnation)
    }

    /// Waits for the nth line of this process that says so; when it came.
    fn wait_for(&self, words: &str, nth: usize) -> Instant {
        let part = self.part(words);
        self.log.wait_for_nth_line(Stream::Err, &part, nth);
        let lines = self.log.said();
        let line = lines.iter().filter(|line| line.text.contains(&part)).nth(nth - 1);
        line.expect("it was there a moment ago").at
    }

    fn count(&self, words: &str) -> usize {
        self.log.lines(Stream::Err, &self.part(words)).len()
    }

    /// Waits for two more checkpoints, so that the next fault finds the run in full swing.
    fn settle(&self) {
        self.wait_for("checkpoint saved", self.count("checkpoint saved") + 2);
    }

    /// The last step that it has logged.
    fn last_step(&self) -> u64 {
        let lines = self.log.lines(Stream::Err, &self.part("step done"));
        field(lines.last().expect("a step"), "step").parse().expect("a number")
    }
}

/// A row of the table: what happened, when the coordinator noticed, when all was as before.
fn report(fault: &str, begun: Instant, noticed: Instant, recovered: Instant, n_again: u64) {
    let [noticed, recovered] = [noticed, recovered].map(|at| at.saturating_duration_since(begun).as_millis());
    eprintln!("{fault:<36} {noticed:>9} {recovered:>10} {n_again:>6}");
}

/// Does something to one worker, and waits until it is missed; undoes it, and waits until it is back.
fn disturb(coordinator: &Coordinator, fault: &str, begin: impl FnOnce(), end: impl FnOnce()) {
    let [n_left, n_joined] = ["worker left", "worker joined"].map(|words| coordinator.count(words));
    let begun = Instant::now();
    begin();
    let noticed = coordinator.wait_for("worker left", n_left + 1);
    end();
    let recovered = coordinator.wait_for("worker joined", n_joined + 1);
    report(fault, begun, noticed, recovered, 0);
    coordinator.settle();
}

/// Kills the first process of a container, and with it all others, as a crash would: the engine takes `docker kill` for a wish.
fn crash(container: &str) {
    signal("KILL", inspect(container, ".State.Pid").parse().expect("a process"));
}

fn exit_code(container: &str) -> i32 {
    inspect(container, ".State.ExitCode").parse().expect("a number")
}

#[test]
fn container_faults_change_no_bits() {
    let dir = TestDir::new();
    let small = dir.path("small");
    let folder = [
        ("DATASET", small.to_str().expect("a path in UTF-8")),
        ("TELAR_DATA", "/data"),
        ("RUST_LOG", "info,coordinator::observe::view=debug"),
    ];
    let Some(compose) = Compose::if_any(&[&RUN[..], &folder].concat()) else { return };
    let expected = dir.reference(REFERENCE);
    eprintln!("{:<36} {:>9} {:>10} {:>6}", "fault", "noticed", "recovered", "steps");
    eprintln!("{:<36} {:>9} {:>10} {:>6}", "", "ms", "ms", "again");

    compose.run(&format!("up --detach --build --scale worker={WORKERS}"));
    let first = Coordinator::follow(&dir, &compose, 1);
    first.wait_for("worker joined", WORKERS);
    first.settle();
    let workers: [String; WORKERS] = compose.containers("worker").try_into().expect("as many as asked for");

    disturb(&first, "worker killed", || crash(&workers[0]), || ());
    assert_eq!(inspect(&workers[0], ".RestartCount"), "1");
    let paused = Instant::now();
    disturb(
        &first,
        "worker paused for 5 s",
        || drop(docker(&["pause", &workers[1]])),
        || {
            wait_until("the pause is over", 2 * PAUSE, || paused.elapsed() >= PAUSE);
            docker(&["unpause", &workers[1]]);
        },
    );
    let network = compose.network("training");
    disturb(
        &first,
        "worker cut off, then let back",
        || drop(docker(&["network", "disconnect", &network, &workers[2]])),
        || drop(docker(&["network", "connect", &network, &workers[2]])),
    );

    let begun = Instant::now();
    crash(&first.container);
    first.log.wait_exit();
    let ended = Instant::now();
    wait_until("the engine has restarted it", ENGINE_WAIT_MAX, || inspect(&first.container, ".RestartCount") == "1");
    let second = Coordinator::follow(&dir, &compose, 2);
    let recovered = second.wait_for("step done", 1);
    let resumed = second.log.wait_for_line(Stream::Err, "run resumed");
    let from: u64 = field(&resumed, "step").parse().expect("a number");
    report("coordinator killed", begun, ended, recovered, first.last_step() - from);
    second.wait_for("worker joined", WORKERS);
    second.settle();

    let begun = Instant::now();
    compose.run("stop");
    assert_eq!(exit_code(&second.container), TERMINATED, "work that is not done is no success");
    second.log.wait_exit();
    let stopped = Instant::now();
    compose.run(&format!("up --detach --scale worker={WORKERS}"));
    let third = Coordinator::follow(&dir, &compose, 3);
    let recovered = third.wait_for("step done", 1);
    let resumed = third.log.line_if_any(Stream::Err, "run resumed", 2).expect("it was resumed twice");
    let from: u64 = field(&resumed, "step").parse().expect("a number");
    report("all stopped, and started again", begun, stopped, recovered, second.last_step().saturating_sub(from));

    assert_eq!(docker(&["wait", &third.container]), "0");
    for worker in &compose.containers("worker") {
        assert_eq!(docker(&["wait", worker]), "0");
    }
    docker(&["cp", &format!("{}:/runs/run", third.container), dir.path("run").to_str().expect("a path in UTF-8")]);
    let description = std::fs::read(dir.path("run/run.json")).expect("a file");
    let description: Value = serde_json::from_slice(&description).expect("JSON");
    // All of it with certificates and a token, which compose has made by itself.
    let security = json!({ "tls": true, "token": true, "insecure": false, "reflection": false });
    assert_eq!(description["security"], security);
    dir.run("run", &description["result"]).assert_same_bits(&expected);
}
