//! The program as its users see it where there is no coordinator.

use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The program with flags separated by spaces, without the caller's own settings.
fn program(flags: &str) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("worker"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TELAR_") || name == "RUST_LOG") {
        command.env_remove(name);
    }
    command.args(flags.split_whitespace()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Ends with the exit code, and says every part on standard error.
fn check_end(output: &Output, exit_code: i32, parts: &[&str]) {
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(exit_code), "it said: {error}");
    for part in parts {
        assert!(error.contains(part), "`{error}` does not hold `{part}`");
    }
}

fn check(flags: &str, exit_code: i32, parts: &[&str]) {
    check_end(&program(flags).output().expect("the program starts"), exit_code, parts);
}

/// An address without a listener.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").to_string()
}

/// Waits until the program says that it is looking for a coordinator, so that its signals are in place.
fn wait_for_search(child: &mut Child) -> impl FnOnce(Child) -> Output + use<> {
    use std::io::{BufRead, BufReader, Read};

    let mut lines = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut said = String::new();
    while !said.contains("trying again") {
        assert!(lines.read_line(&mut said).expect("text") > 0, "it ended before it looked for anything: {said}");
    }
    move |child| {
        let mut output = child.wait_with_output().expect("its end");
        lines.read_to_string(&mut said).expect("text");
        output.stderr = said.into_bytes();
        output
    }
}

#[test]
fn help_lists_flags_defaults_and_example() {
    let output = program("--help").output().expect("the program starts");
    let help = text(&output.stdout);
    for part in ["Example:\n  worker --coordinator https://", "TELAR_COORDINATOR", "[default: 60]", "What computes:"] {
        assert!(help.contains(part), "`{help}` does not hold `{part}`");
    }
}

#[test]
fn invalid_address_is_refused_with_example() {
    for address in ["localhost", "https://localhost", "unix:"] {
        let found = format!("found `{address}`; write for example `--coordinator https://");
        check(
            &format!("--coordinator {address}"),
            64,
            &["expected --coordinator as https://HOST:PORT, http://HOST:PORT or unix:PATH", &found],
        );
    }
    check("--coordinator https://localhost:7187", 64, &["--tls-cert"]);
    check("", 2, &["--coordinator"]);
}

#[test]
fn unavailable_device_is_reported_before_connecting() {
    check("--coordinator localhost:7187 --backend flex --device mps", 64, &["error: the backend `flex`"]);
    check("--coordinator localhost:7187 --config /nowhere/telar.toml", 64, &["cannot read /nowhere/telar.toml"]);
}

#[test]
fn missing_coordinator_is_reported_after_connect_timeout() {
    let address = free_address();
    let begun = Instant::now();
    check(
        &format!("--coordinator {address} --connect-timeout 1"),
        69,
        &[&format!("no coordinator at http://{address}")],
    );
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    check(
        "--coordinator unix:/nowhere/socket --connect-timeout 1",
        69,
        &["no coordinator at unix:/nowhere/socket: No such"],
    );
}

/// The goal: something that takes connections and says nothing is no coordinator, and does not hold a worker for ever.
#[test]
fn silent_peer_is_given_up_after_connect_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    check(
        &format!("--coordinator {address} --connect-timeout 1"),
        69,
        &[&format!("no coordinator at http://{address}")],
    );
}

#[test]
fn supervised_worker_ends_when_stdin_closes() {
    let mut command = program(&format!("--coordinator {} --supervised", free_address()));
    let mut child = command.stdin(Stdio::piped()).spawn().expect("the program starts");
    let end = wait_for_search(&mut child);
    drop(child.stdin.take());
    check_end(&end(child), 0, &[]);
}

#[test]
fn signal_ends_worker_without_session() {
    for (signal, exit_code) in [("TERM", 143), ("INT", 0)] {
        let mut child = program(&format!("--coordinator {}", free_address())).spawn().expect("the program starts");
        let end = wait_for_search(&mut child);
        let sent = Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status();
        assert!(sent.expect("kill is there").success());
        check_end(&end(child), exit_code, &["asked to end"]);
    }
}
