//! Workers that others start: how they find the coordinator and the data set, and what else may come to its port.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use model::data::PLAIN_NAMES;

use crate::harness::{Process, SHORT_RUN, Stream, TestDir};

const FETCHING: &str = "fetching it from the coordinator";

/// A worker that has no data set, and keeps what it fetches.
fn bare_worker(dir: &TestDir, name: &str, address: &str) -> Process {
    let elsewhere = dir.path("elsewhere");
    std::fs::create_dir_all(&elsewhere).expect("a folder");
    let mut command: Command = dir.command("worker", &format!("--coordinator {address} --threads 1"));
    command.current_dir(&elsewhere).env("XDG_CACHE_HOME", elsewhere.join("cache"));
    dir.start(name, command)
}

#[test]
fn workers_without_dataset_fetch_it_once() {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {SHORT_RUN}");
    let expected = dir.reference(&flags);
    let (coordinator, address) = dir.external(&format!("{flags} --run-dir first"));
    let workers = ["worker 1", "worker 2"].map(|name| bare_worker(&dir, name, &address));
    dir.run("first", &coordinator.end()).assert_same_bits(&expected);
    for worker in &workers {
        worker.succeed();
    }
    let n_fetched: usize = workers.iter().map(|worker| worker.lines(Stream::Err, FETCHING).len()).sum();
    assert!((1..=2).contains(&n_fetched), "fetched {n_fetched} times");

    let kept = dir.path("elsewhere/cache/telar/datasets");
    let folders: Vec<_> =
        std::fs::read_dir(kept).expect("a folder").map(|entry| entry.expect("a file").path()).collect();
    let [folder] = folders.as_slice() else { panic!("one data set is kept, and nothing else: {folders:?}") };
    for name in PLAIN_NAMES {
        let read = |path| std::fs::read(path).expect("a file");
        assert!(read(folder.join(name)) == read(dir.path("small").join(name)), "{name} is another file");
    }

    let (coordinator, address) = dir.external(&format!("{flags} --max-steps 5 --run-dir second"));
    let worker = bare_worker(&dir, "worker 3", &address);
    coordinator.succeed();
    worker.succeed();
    assert!(worker.lines(Stream::Err, FETCHING).is_empty(), "it was fetched again");
}

#[test]
fn workers_join_through_unix_socket() {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {SHORT_RUN}");
    let expected = dir.reference(&flags);
    let coordinator = dir.coordinator(&format!("{flags} --launch external --listen unix:socket --run-dir run"));
    assert_eq!(coordinator.begin()["address"], "unix:socket");
    let worker = dir.worker("worker", "unix:socket");
    dir.run("run", &coordinator.end()).assert_same_bits(&expected);
    worker.succeed();
}

#[test]
fn run_without_workers_ends_after_join_timeout() {
    let dir = TestDir::new();
    let (coordinator, address) = dir.external(&format!("--arch conv {SHORT_RUN} --join-timeout 1 --run-dir run"));
    let hint = format!("worker --coordinator {address}`, or wait longer");
    coordinator
        .check_end(69, &["expected a worker within 1 seconds", &hint, "none came; start one with `", "--join-timeout"]);
}

#[test]
fn terminated_worker_leaves_and_others_continue() {
    let dir = TestDir::new();
    let flags = format!("--arch conv {SHORT_RUN}");
    let expected = dir.reference(&flags);
    let (coordinator, address) = dir.external(&format!("{flags} --checkpoint-every 20 --run-dir run"));
    let [leaver, other] = ["leaver", "other"].map(|name| dir.worker(name, &address));
    coordinator.wait_for_nth_line(Stream::Err, "worker joined", 2);
    coordinator.wait_for_checkpoint(20);
    leaver.terminate();
    let left = coordinator.wait_for_line(Stream::Err, "worker left");
    assert!(left.contains("it wanted to leave") && left.contains("n_reassigned=0"), "{left}");
    dir.run("run", &coordinator.end()).assert_same_bits(&expected);
    other.succeed();
}

#[test]
fn worker_joins_run_in_progress() {
    let dir = TestDir::new();
    let flags = format!("--arch conv {SHORT_RUN}");
    let expected = dir.reference(&flags);
    let (coordinator, address) = dir.external(&format!("{flags} --checkpoint-every 20 --run-dir run"));
    let first = dir.worker("first", &address);
    coordinator.wait_for_checkpoint(20);
    let second = dir.worker("second", &address);
    let run = dir.run("run", &coordinator.end());
    run.assert_same_bits(&expected);
    let workers = run.workers();
    assert_eq!(workers[0], [1, 1, 1, 1]);
    // Not in each step: one that was late rests for some.
    assert!(workers.contains(&vec![1, 2, 1, 2]), "shards are dealt evenly");
    first.succeed();
    second.succeed();
}

#[test]
fn worker_started_first_waits_for_coordinator() {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {SHORT_RUN} --max-steps 20 --run-dir run");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let worker = dir.worker("worker", &address.to_string());
    worker.wait_for_line(Stream::Err, "trying again");
    let coordinator = dir.coordinator(&format!("{flags} --launch external --listen {address}"));
    coordinator.succeed();
    worker.succeed();
}

#[test]
fn listen_address_in_use_is_reported() {
    let dir = TestDir::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let flags = format!("--arch conv {SHORT_RUN} --launch external --listen {address} --run-dir run");
    dir.fail(
        "coordinator",
        &flags,
        69,
        &[&format!("cannot listen at {address}"), "name another address with --listen"],
    );
}

/// The goal: a client that is no worker cannot disturb a run, nor keep it from ending.
#[test]
fn garbage_connections_do_not_disturb_run() {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {SHORT_RUN}");
    let expected = dir.reference(&flags);
    let (coordinator, address) = dir.external(&format!("{flags} --run-dir run"));
    let port = address.strip_prefix("http://").expect("an address of the web");
    let garbage = vec![0xa5; 100_000];
    let first_words: [&[u8]; 6] = [
        b"",
        b"\x00\xff\x17garbage",
        &garbage,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ];
    // Held open to the run's end.
    let connections = first_words.map(|words| {
        let mut connection = TcpStream::connect(port).expect("somebody listens");
        // It may be closed in the middle of it.
        let _ = connection.write_all(words);
        connection
    });
    let worker = dir.worker("worker", &address);
    coordinator.wait_for_line(Stream::Out, r#""epoch":2"#);
    // Connections that are open keep it from nothing.
    let end = coordinator.end();
    drop(connections);
    dir.run("run", &end).assert_same_bits(&expected);
    worker.succeed();
}

#[test]
fn regular_file_at_socket_path_is_not_replaced() {
    let dir = TestDir::new();
    std::fs::write(dir.path("precious"), "words").expect("a file");
    let flags = "--launch external --listen unix:precious --arch conv --data small --run-dir run";
    dir.fail("coordinator", flags, 69, &["cannot listen at unix:precious"]);
    assert_eq!(std::fs::read_to_string(dir.path("precious")).expect("a file"), "words");
    assert!(!dir.path("run").exists(), "a run that never began has no folder");
}
