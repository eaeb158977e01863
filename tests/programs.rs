//! The coordinator and its local workers as programs: flags, files, signals, exit codes, and that no process stays behind.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use engine::params::params_blake3;
use model::weights::read_any;
use serde_json::Value;

use crate::harness::{Process, SHORT_RUN, Stream, TERMINATED, TestDir, field, is_alive, signal, wait_until};

/// How long a worker may outlive its coordinator.
const AFTERLIFE_MAX: Duration = Duration::from_secs(1);

/// The processes of the local workers, of which there are so many, when all take part.
fn local_workers(coordinator: &Process, n_workers: usize) -> Vec<u32> {
    coordinator.wait_for_nth_line(Stream::Err, "worker joined", n_workers);
    let lines = coordinator.lines(Stream::Err, "local worker started");
    lines.iter().map(|line| field(line, "process").parse().expect("a number")).collect()
}

fn check_gone(processes: &[u32]) {
    wait_until("all workers are gone", AFTERLIFE_MAX, || processes.iter().all(|&process| !is_alive(process)));
}

/// An endless run, ended by a signal.
fn check_nothing_stays(name: &str) -> Process {
    let dir = TestDir::new();
    let flags = "--arch denoising --batch-size 16 --epochs 100000 --workers 3 --data small --run-dir run";
    let coordinator = dir.coordinator(flags);
    let processes = local_workers(&coordinator, 3);
    assert!(processes.len() == 3 && processes.iter().all(|&process| is_alive(process)), "{processes:?}");
    coordinator.signal(name);
    coordinator.wait_exit();
    check_gone(&processes);
    coordinator
}

#[test]
fn completed_run_leaves_no_process() {
    let dir = TestDir::new();
    let coordinator = dir.coordinator(&format!("--arch denoising {SHORT_RUN} --workers 3 --run-dir run"));
    let processes = local_workers(&coordinator, 3);
    assert_eq!(coordinator.end()["outcome"], "completed");
    check_gone(&processes);
}

#[test]
fn terminated_run_leaves_no_process() {
    let coordinator = check_nothing_stays("TERM");
    coordinator.check_end(TERMINATED, &[]);
    assert_eq!(coordinator.last_json()["outcome"], "stopped");
}

#[test]
fn interrupted_run_leaves_no_process() {
    assert_eq!(check_nothing_stays("INT").end()["outcome"], "stopped");
}

#[test]
fn killed_coordinator_leaves_no_process() {
    assert_eq!(check_nothing_stays("KILL").wait_exit().signal(), Some(9));
}

#[test]
fn killed_local_worker_is_restarted() {
    let dir = TestDir::new();
    let flags = format!("--arch conv {SHORT_RUN}");
    let expected = dir.reference(&flags);
    let coordinator = dir.coordinator(&format!("{flags} --workers 2 --checkpoint-every 20 --run-dir run"));
    let processes = local_workers(&coordinator, 2);
    coordinator.wait_for_checkpoint(20);
    signal("KILL", processes[0]);
    coordinator.wait_for_line(Stream::Err, "local worker ended; it is started anew");
    let again = local_workers(&coordinator, 3);
    dir.run("run", &coordinator.end()).assert_same_bits(&expected);
    check_gone(&again);
}

#[test]
fn repeated_worker_start_failure_ends_run_with_its_output() {
    let dir = TestDir::new();
    let program = dir.path("broken-worker");
    fs::write(&program, "#!/bin/sh\necho 'I have no hands' >&2\nexit 3\n").expect("a file");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a file of one's own");
    let flags = format!("--arch conv {SHORT_RUN} --workers 2 --worker-program broken-worker --run-dir run");
    let coordinator = dir.coordinator(&flags);
    let words = ["ended 5 times at once", "exit status: 3", "its last words were:", "  I have no hands"];
    coordinator.check_end(69, &words);
    assert!(!coordinator.lines(Stream::Err, "worker process 1: I have no hands").is_empty(), "its lines are passed on");
}

/// The goal: who presses Ctrl-C twice does not wait, even for workers that hang.
fn check_second_signal(name: &str, exit_code: i32) {
    let dir = TestDir::new();
    let flags = "--arch denoising --batch-size 16 --epochs 100000 --checkpoint-every 1000000 --workers 2 --data small \
                 --run-dir run";
    let coordinator = dir.coordinator(flags);
    let processes = local_workers(&coordinator, 2);
    coordinator.wait_for_line(Stream::Out, r#""event":"epoch""#);
    for &process in &processes {
        signal("STOP", process);
    }
    coordinator.signal(name);
    // Taken note of, and so not one with the second signal.
    coordinator.wait_for_checkpoint(1);
    coordinator.signal(name);
    assert_eq!(coordinator.wait_exit().code(), Some(exit_code));
    for &process in &processes {
        signal("CONT", process);
    }
    check_gone(&processes);
}

#[test]
fn second_sigint_ends_program_immediately() {
    check_second_signal("INT", 130);
}

#[test]
fn second_sigterm_ends_program_immediately() {
    check_second_signal("TERM", 143);
}

#[test]
fn flag_overrides_environment_and_environment_overrides_file() {
    let dir = TestDir::new();
    fs::write(dir.path("telar.toml"), "arch = 'denoising'\nbatch-size = 16\nmax-steps = 9\nworkers = 1\n")
        .expect("a file");
    let check = |run: &str, variable: Option<&str>, flags: &str, n_steps: u64| {
        let flags = format!("--config telar.toml --data small --json --run-dir {run} {flags}");
        let mut command = dir.command("coordinator", &flags);
        command.envs(variable.map(|value| ("TELAR_MAX_STEPS", value)));
        let end = dir.start(run, command).end();
        assert_eq!(end["step"], n_steps);
        let recipe = dir.run(run, &end).recipe();
        assert_eq!((recipe.task.as_str(), recipe.batch_size.get()), ("denoising", 16));
    };
    check("file", None, "", 9);
    check("environment", Some("6"), "", 6);
    check("flag", Some("6"), "--max-steps 3", 3);
}

#[test]
fn invalid_flags_are_refused_with_advice() {
    let dir = TestDir::new();
    let check = |flags: &str, exit_code, parts: &[&str]| {
        dir.fail("coordinator", &format!("{flags} --data small --run-dir run"), exit_code, parts);
        assert!(!dir.path("run").exists(), "`{flags}` left something behind");
    };
    check("", 64, &["expected --arch conv, recurrent or denoising, found none", "`--arch denoising`"]);
    check("--arch conv --workers 0", 64, &["expected --workers from 1 to 1024, found 0", "`--workers 4`"]);
    check("--arch conv --shards 40", 64, &["found --shards 40 with --batch-size 32"]);
    check("--arch conv --batch-size 0", 64, &["expected --batch-size", "`--batch-size 32`"]);
    check("--arch conv --checkpoint-every 0", 64, &["found `0`; write for example `500`"]);
    check("--arch conv --heartbeat-timeout 0.5", 64, &["expected --heartbeat-timeout from 1 to", "found 0.5"]);
    check("--arch conv --keep 0", 64, &["expected --keep above 0, found 0"]);
    check("--arch conv --listen 127.0.0.1:0", 64, &["`--launch external --listen 127.0.0.1:0`"]);
    check("--arch conv --launch external --listen 7187", 64, &["HOST:PORT or unix:PATH, found `7187`"]);
    check("--arch conv --worker-program nowhere", 64, &["expected the program of a worker at nowhere, found none"]);
    check("--arch konv", 2, &["konv", "conv, recurrent, denoising"]);
    fs::write(dir.path("wrong.toml"), "batch_size = 16\n").expect("a file");
    check("--config wrong.toml", 64, &["wrong.toml", "expected the name of a flag", "found `batch_size`"]);
    check("--config nowhere.toml", 64, &["cannot read nowhere.toml"]);
    dir.fail("coordinator", "--arch conv --data nowhere --run-dir run", 65, &["nowhere", "found neither"]);
}

#[test]
fn run_folder_is_complete_after_end() {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {SHORT_RUN} --workers 2 --run-dir run");
    let coordinator = dir.start("coordinator", dir.command("coordinator", &flags));
    coordinator.succeed();
    let (_, weights) = read_any(&dir.path("run/model.safetensors")).expect("whole weights");
    let hash = params_blake3(&weights.params);
    for part in [
        "weights         run/model.safetensors",
        &format!("params blake3   {hash}"),
        "run folder: run",
        "epoch 2/2",
        "page            ",
    ] {
        assert!(!coordinator.lines(Stream::Out, part).is_empty(), "it did not print `{part}`");
    }
    let text = fs::read_to_string(dir.path("run/run.json")).expect("run.json");
    let description: Value = serde_json::from_str(&text).expect("JSON");
    let result = &description["result"];
    assert_eq!((&result["outcome"], &result["step"]), (&"completed".into(), &276.into()), "{description}");
    assert_eq!(result["params_blake3"], hash);
    assert_eq!((&description["workers"], &description["recipe"]["shards"]), (&2.into(), &4.into()));
    assert_eq!(description["compute_classes"].as_array().map(Vec::len), Some(1));
    for name in [
        "reconstructions/epoch-01.png",
        "reconstructions/epoch-02.png",
        "codes/epoch-01.png",
        "codes/epoch-02.png",
        "checkpoints/step-00000276.safetensors",
    ] {
        assert!(Path::new(&dir.path("run")).join(name).is_file(), "no {name}");
    }
}

#[test]
fn help_has_example_and_grouped_flags() {
    let dir = TestDir::new();
    let check = |program: &str, parts: &[&str]| {
        let process = dir.start(program, dir.command(program, "--help"));
        process.succeed();
        for part in parts {
            assert!(!process.lines(Stream::Out, part).is_empty(), "`{program} --help` does not hold `{part}`");
        }
    };
    check(
        "coordinator",
        &[
            "  coordinator --workers 4 --arch denoising",
            "  coordinator certificates --out tls --host",
            "  worker --coordinator https://",
            "What is trained:",
            "Who computes:",
            "Security:",
            "Data:",
            "What computes:",
            "What comes out:",
            "Output:",
            "TELAR_WORKERS",
            "KUBEFLOW_TRAINER_SERVER_URL",
        ],
    );
    check(
        "worker",
        &[
            "  worker --coordinator https://",
            "--token-file worker-1/token",
            "Connection:",
            "Security:",
            "Data:",
            "What computes:",
            "Output:",
            "Configuration:",
            "TELAR_COORDINATOR",
        ],
    );
}

#[test]
fn run_continues_while_one_local_worker_keeps_dying() {
    let dir = TestDir::new();
    let flags = "--arch denoising --batch-size 16 --epochs 100000 --checkpoint-every 100 --workers 2 --data small \
                 --run-dir run";
    let coordinator = dir.coordinator(flags);
    for life in 1..=6 {
        let line = coordinator.wait_for_nth_line(Stream::Err, "local worker started local_worker=1 ", life);
        signal("KILL", field(&line, "process").parse().expect("a process number"));
    }
    let step = coordinator.wait_for_checkpoint(100);
    coordinator.wait_for_checkpoint(step + 1_000);
    assert_eq!(coordinator.terminated()["outcome"], "stopped");
}

/// The folders of coordinators for their sockets and data sets.
fn private_folders(dir: &TestDir) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.path("")).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.filter(|path| path.file_name().expect("a name").to_string_lossy().starts_with("telar-")).collect()
}

/// Permissions of a folder and all that is in it, by name.
fn modes(folder: &Path) -> Vec<(String, u32)> {
    let mut found = vec![(folder.display().to_string(), fs::metadata(folder).expect("it is there").mode() & 0o777)];
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(modes(&path));
        } else {
            found.push((path.display().to_string(), fs::metadata(&path).expect("it is there").mode() & 0o777));
        }
    }
    found
}

/// The goal: no other user of the machine finds the socket or the data set, and a process that was killed leaves no data behind
/// for longer than until the next one.
#[test]
fn private_folder_is_owner_only_and_removed_after_kill() {
    let dir = TestDir::new();
    let start = |run: &str| {
        let flags = "--arch denoising --batch-size 16 --epochs 100000 --workers 1 --data small --json --run-dir";
        let mut command = Command::new("sh");
        command.args(["-c", "umask 000; exec \"$0\" \"$@\""]);
        let program = dir.command("coordinator", &format!("{flags} {run}"));
        command.arg(program.get_program()).args(program.get_args()).current_dir(dir.path(""));
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        // Without a cache, the data set lies in the private folder.
        command.env("XDG_CACHE_HOME", "/proc/nowhere");
        let coordinator = dir.start("coordinator", command);
        coordinator.wait_for_line(Stream::Err, "worker joined");
        coordinator
    };
    let first = start("first");
    let [abandoned] = private_folders(&dir).try_into().expect("one folder");
    let found = modes(&abandoned);
    assert!(found.len() >= 7, "a folder, its lock, the socket, a folder of data and four files: {found:?}");
    assert!(found.iter().all(|(_, mode)| [0o600, 0o700].contains(&(mode & 0o777))), "{found:?}");
    first.kill();
    first.wait_exit();
    let second = start("second");
    let third = start("third");
    assert!(!abandoned.exists(), "{} is still there", abandoned.display());
    assert_eq!(private_folders(&dir).len(), 2, "those of two that are at work");
    for coordinator in [second, third] {
        coordinator.terminate();
    }
    assert_eq!(private_folders(&dir), [""; 0].map(PathBuf::from));
}
