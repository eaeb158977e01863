//! What orchestrators ask and how programs answer: the client behind `--check`, and the port for probes.

use std::net::TcpListener;
use std::time::Duration;

use crate::harness::{SHORT_RUN, Stream, TestDir, wait_until};

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").to_string()
}

#[test]
fn coordinator_serves_health_on_both_ports_until_end() {
    let dir = TestDir::new();
    let health = free_address();
    let (coordinator, address) = dir.external(&format!("--arch denoising {SHORT_RUN} --run-dir run --health {health}"));
    for asked in [address.as_str(), &health] {
        let check = dir.start("check", dir.command("coordinator", &format!("--check {asked}")));
        check.succeed();
        assert!(!check.lines(Stream::Out, "serving").is_empty());
    }
    let json = dir.start("check", dir.command("coordinator", &format!("--check {health} --json")));
    assert_eq!(json.end()["status"], "serving");
    coordinator.terminate();
    dir.fail("coordinator", &format!("--check {health}"), 69, &["expected a coordinator", &health]);
}

/// A data set can take minutes to come: until it is there, workers cannot join, and the process is no dead one.
#[test]
fn coordinator_without_dataset_is_alive_but_not_ready() {
    let dir = TestDir::new();
    let health = free_address();
    // A proxy that takes connections and says nothing holds the download up.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let proxy = format!("http://{}", listener.local_addr().expect("an address"));
    let flags = format!("--arch denoising --data fashion-mnist --run-dir run --launch external --health {health}");
    let mut command = dir.command("coordinator", &flags);
    command.env("HTTPS_PROXY", &proxy).env("https_proxy", &proxy).env_remove("NO_PROXY").env_remove("no_proxy");
    let coordinator = dir.start("coordinator", command);
    wait_until("it answers probes", Duration::from_mins(1), || {
        let check = dir.start("check", dir.command("coordinator", &format!("--check {health}")));
        check.wait_exit();
        !check.lines(Stream::Err, "not ready yet").is_empty()
    });
    coordinator.terminate();
}

#[test]
fn check_without_coordinator_reports_reason() {
    let dir = TestDir::new();
    let check = |address: &str, exit_code, parts: &[&str]| {
        dir.fail("coordinator", &format!("--check {address}"), exit_code, parts);
    };
    check("7187", 64, &["expected --check as HOST:PORT or unix:PATH", "127.0.0.1:7187"]);
    check(&free_address(), 69, &["expected a coordinator", "refused"]);
    check("unix:nowhere", 69, &["unix:nowhere", "No such file"]);
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    check(&silent.local_addr().expect("an address").to_string(), 69, &["no answer within 5 s"]);
}
