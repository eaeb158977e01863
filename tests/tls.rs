//! Who may connect: certificates and tokens that are good, and all that are not. Each refusal is said in one sentence, at both
//! ends.

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::json;

use crate::harness::{Process, SHORT_RUN, Stream, TestDir, field, wait_until};

/// A run that waits for workers until its test is over.
const WAITING_RUN: &str = "--arch denoising --shards 2 --batch-size 16 --data small --resume auto --run-dir waiting";
const NO_PERMISSION: i32 = 77;
const CONFIGURATION: i32 = 64;

/// The files of a CA, of a coordinator at 127.0.0.1 and of two workers, in a folder.
fn make_certificates(dir: &TestDir, out: &str, flags: &str) {
    let command = dir.command("coordinator", &format!("certificates --out {out} {flags}"));
    dir.start("certificates", command).succeed();
}

/// The flags for a program with the certificate, the key and the CA of a folder.
fn tls(folder: &str) -> String {
    format!("--tls-cert {folder}/tls.crt --tls-key {folder}/tls.key --tls-ca {folder}/ca.crt")
}

fn token(folder: &str) -> String {
    format!("--token-file {folder}/token")
}

fn worker(dir: &TestDir, name: &str, address: &str, flags: &str) -> Process {
    let flags = format!("--coordinator {address} --data small --threads 1 {flags}");
    dir.start(name, dir.command("worker", &flags))
}

fn port(address: &str) -> &str {
    address.rsplit_once('/').expect("an address of the web").1
}

/// A worker with certificates of one folder that a coordinator with those of another refuses, as both say.
fn check_refused(dir: &TestDir, coordinator: &str, worker_folder: &str, at_worker: &[&str], at_coordinator: &str) {
    let (coordinator, address) = dir.external(&format!("{WAITING_RUN} {}", tls(coordinator)));
    let worker = worker(dir, "worker", &address, &tls(worker_folder));
    worker.check_end(NO_PERMISSION, &[at_worker, &[&address]].concat());
    let said = coordinator.wait_for_line(Stream::Err, "connection refused");
    assert!(said.contains(at_coordinator) && said.contains("peer=127.0.0.1:"), "{said}");
}

#[test]
fn run_with_tls_and_token_has_bits_of_one_process() {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {SHORT_RUN}");
    let expected = dir.reference(&flags);
    make_certificates(&dir, "tls", "--host 127.0.0.1 --workers 2");
    let own = "tls/coordinator";
    let (coordinator, address) = dir.external(&format!("{flags} --run-dir run {} {}", tls(own), token(own)));
    assert!(address.starts_with("https://127.0.0.1:"), "{address}");
    let workers = ["tls/worker-1", "tls/worker-2"];
    let workers = workers.map(|own| worker(&dir, own, &address, &format!("{} {}", tls(own), token(own))));
    coordinator.wait_for_nth_line(Stream::Err, "worker joined", 2);

    // While they run: what every user of the machine sees of them.
    let secret = fs::read_to_string(dir.path("tls/worker-1/token")).expect("a file");
    let mut seen = String::new();
    for process in [&coordinator, &workers[0], &workers[1]] {
        for file in ["cmdline", "environ"] {
            // It may have ended.
            let read = fs::read(format!("/proc/{}/{file}", process.id())).unwrap_or_default();
            seen.push_str(&String::from_utf8_lossy(&read));
        }
    }
    let run = dir.run("run", &coordinator.end());
    run.assert_same_bits(&expected);
    workers.iter().for_each(Process::succeed);
    assert_eq!(
        run.description["security"],
        json!({ "tls": true, "token": true, "insecure": false, "reflection": true })
    );

    for process in [&coordinator, &workers[0], &workers[1]] {
        process.said().iter().for_each(|line| writeln!(seen, "{}", line.text).expect("a string takes all"));
    }
    seen.push_str(&run.description.to_string());
    assert!(seen.contains("--token-file") && seen.contains("worker joined"), "{seen}");
    assert!(!seen.contains(secret.trim()), "the token is told");
}

#[test]
fn certificate_of_other_ca_is_refused_at_both_ends() {
    let dir = TestDir::new();
    make_certificates(&dir, "tls", "--host 127.0.0.1");
    make_certificates(&dir, "other", "--host 127.0.0.1");
    // Of another CA is its certificate; it looks for the coordinator's with the right one.
    fs::copy(dir.path("tls/ca/ca.crt"), dir.path("other/worker-1/ca.crt")).expect("a file");
    let parts = ["does not accept this worker's certificate: it is of none of the CAs", "`coordinator certificates`"];
    check_refused(&dir, "tls/coordinator", "other/worker-1", &parts, "the peer's certificate is of none of the CAs");
    // The other way round: it does not even look at a coordinator of another CA.
    let parts =
        ["certificate of the coordinator at", "it is of none of the CAs in --tls-ca", "or name its CA with --tls-ca"];
    let at_coordinator = "the peer does not accept this coordinator's certificate: it is of none of the CAs";
    check_refused(&dir, "other/coordinator", "tls/worker-1", &parts, at_coordinator);
}

#[test]
fn expired_certificate_is_refused_at_both_ends() {
    let dir = TestDir::new();
    make_certificates(&dir, "tls", "--host 127.0.0.1");
    expire(&dir, "tls/worker-1");
    let parts = ["does not accept this worker's certificate: it expired on 2020-02-01", "`coordinator certificates`"];
    check_refused(&dir, "tls/coordinator", "tls/worker-1", &parts, "the peer's certificate expired on 2020-02-01");

    expire(&dir, "tls/coordinator");
    let flags = format!("--launch external {WAITING_RUN} {}", tls("tls/coordinator"));
    let parts = ["expected a certificate that is valid now in tls/coordinator/tls.crt", "until 2020-02-01"];
    dir.fail("coordinator", &flags, CONFIGURATION, &parts);
}

/// Makes the certificate of a folder anew, by the same CA, good for January 2020.
fn expire(dir: &TestDir, folder: &str) {
    let read = |name: &str| fs::read_to_string(dir.path(name)).expect("a file");
    let ca_key = KeyPair::from_pem(&read("tls/ca/ca.key")).expect("a key");
    let issuer = Issuer::from_ca_cert_pem(&read("tls/ca/ca.crt"), ca_key).expect("a CA");
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
    params.distinguished_name.push(DnType::CommonName, "late");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2020, 2, 1);
    let key = KeyPair::from_pem(&read(&format!("{folder}/tls.key"))).expect("a key");
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    fs::write(dir.path(folder).join("tls.crt"), certificate.pem()).expect("a file");
}

#[test]
fn certificate_for_other_host_is_refused_at_both_ends() {
    let dir = TestDir::new();
    make_certificates(&dir, "tls", "--host other.example --host 10.0.0.1");
    let parts = ["expected one for 127.0.0.1, found one for", "other.example", "make one with `--host 127.0.0.1`"];
    check_refused(&dir, "tls/coordinator", "tls/worker-1", &parts, "it may not name the host");
}

#[test]
fn peer_without_certificate_is_refused_at_both_ends() {
    let dir = TestDir::new();
    make_certificates(&dir, "tls", "--host 127.0.0.1");
    let (coordinator, address) = dir.external(&format!("{WAITING_RUN} {}", tls("tls/coordinator")));
    let mut stream = tls_client(&dir, port(&address));
    let error = stream.read(&mut [0]).expect_err("no certificate was shown").to_string();
    assert!(error.contains("CertificateRequired"), "{error}");
    coordinator.wait_for_line(Stream::Err, "expected a certificate of the peer, found none");
    // And a worker does not start without one.
    let parts = ["expected --tls-cert, --tls-key and --tls-ca with `--coordinator https://", "found none of them"];
    dir.fail("worker", &format!("--coordinator {address}"), CONFIGURATION, &parts);
}

/// A client that proves nothing.
fn tls_client(dir: &TestDir, port: &str) -> StreamOwned<ClientConnection, TcpStream> {
    let ca = CertificateDer::from_pem_file(dir.path("tls/ca/ca.crt")).expect("a certificate");
    let mut roots = RootCertStore::empty();
    roots.add(ca).expect("a CA");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from("127.0.0.1").expect("an address");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
    StreamOwned::new(connection, TcpStream::connect(port).expect("somebody listens"))
}

#[test]
fn tls_worker_and_plain_coordinator_both_report_mismatch() {
    let dir = TestDir::new();
    make_certificates(&dir, "tls", "--host 127.0.0.1");
    let (coordinator, address) = dir.external(WAITING_RUN);
    let with_tls = address.replace("http://", "https://");
    let lost = worker(&dir, "worker", &with_tls, &tls("tls/worker-1"));
    lost.check_end(CONFIGURATION, &["expected TLS at https://127.0.0.1", "this worker with http:// and without them"]);
    let said = coordinator.wait_for_line(Stream::Err, "connection refused");
    assert!(said.contains("expected no TLS, found a peer that begins with it; start this coordinator with"), "{said}");
}

#[test]
fn plain_worker_and_tls_coordinator_both_report_mismatch() {
    let dir = TestDir::new();
    make_certificates(&dir, "tls", "--host 127.0.0.1");
    let (coordinator, address) = dir.external(&format!("{WAITING_RUN} {}", tls("tls/coordinator")));
    let lost = worker(&dir, "worker", &address.replace("https://", "http://"), "");
    lost.check_end(CONFIGURATION, &["speaks TLS only; write https:// and give this worker --tls-cert"]);
    let said = coordinator.wait_for_line(Stream::Err, "connection refused");
    assert!(said.contains("expected TLS, found a peer that speaks without"), "{said}");
}

#[test]
fn worker_without_matching_token_is_refused_at_both_ends() {
    let dir = TestDir::new();
    fs::write(dir.path("token"), "0123456789abcdef0123456789abcdef\n").expect("a file");
    fs::write(dir.path("other"), "fedcba9876543210fedcba9876543210").expect("a file");
    let (coordinator, address) = dir.external(&format!("{WAITING_RUN} --token-file token"));
    for (flags, found) in [("", "found none"), ("--token-file other", "found another one")] {
        let lost = worker(&dir, "worker", &address, flags);
        let parts =
            [&format!("the coordinator at {address} refused this worker"), found, "--token-file of the coordinator"];
        lost.check_end(NO_PERMISSION, &parts);
    }
    let said = coordinator.wait_for_nth_line(Stream::Err, "call refused: expected the token", 2);
    assert!(field(&said, "peer").starts_with("127.0.0.1:") && field(&said, "identity") == "127.0.0.1", "{said}");
    assert!(coordinator.lines(Stream::Err, "worker joined").is_empty());
    let welcome = worker(&dir, "worker", &address, "--token-file token");
    coordinator.wait_for_line(Stream::Err, "worker joined");
    drop(welcome);
}

#[test]
fn short_token_file_is_refused_by_both_programs() {
    let dir = TestDir::new();
    fs::write(dir.path("short"), "0123456789abcdef0123456789abcde\n").expect("a file");
    let parts = ["expected a token of 32 to 4096 bytes in short, found 31", "openssl rand -hex 32"];
    let flags = "--launch external --data small --arch conv --token-file short";
    dir.fail("coordinator", flags, CONFIGURATION, &parts);
    dir.fail("worker", "--coordinator 127.0.0.1:1 --token-file short", CONFIGURATION, &parts);
}

#[test]
fn non_local_listen_address_needs_tls_or_insecure() {
    let dir = TestDir::new();
    let flags = "--arch denoising --data small --launch external --listen 0.0.0.0:0 --join-timeout 1 --run-dir run";
    let parts =
        ["`--listen 0.0.0.0:0`, which other machines can reach", "--tls-cert, --tls-key and --tls-ca", "--insecure"];
    dir.fail("coordinator", flags, CONFIGURATION, &parts);
    dir.fail("coordinator", &format!("{flags} --insecure"), 69, &["INSECURE: everyone in the network can read"]);
    let description = fs::read_to_string(dir.path("run/run.json")).expect("a file");
    let description: serde_json::Value = serde_json::from_str(&description).expect("JSON");
    let expected = json!({ "tls": false, "token": false, "insecure": true, "reflection": false });
    assert_eq!(description["security"], expected);
}

#[test]
fn renewed_certificates_are_used_without_restart() {
    let dir = TestDir::new();
    make_certificates(&dir, "tls", "--host 127.0.0.1");
    make_certificates(&dir, "new", "--host 127.0.0.1 --workers 2");
    let (coordinator, address) = dir.external(&format!("{WAITING_RUN} --epochs 500 {}", tls("tls/coordinator")));
    let first = worker(&dir, "first", &address, &tls("tls/worker-1"));
    coordinator.wait_for_line(Stream::Err, "worker joined");
    let replace = |from: &str, name: &str| {
        let (from, to) = (dir.path(from), dir.path("tls/coordinator"));
        fs::copy(from.join(name), to.join("next")).expect("a file");
        fs::rename(to.join("next"), to.join(name)).expect("a file");
    };
    for name in ["tls.crt", "tls.key", "ca.crt"] {
        replace("new/coordinator", name);
    }
    let second = worker(&dir, "second", &address, &tls("new/worker-1"));
    coordinator.wait_for_nth_line(Stream::Err, "worker joined", 2);
    coordinator.wait_for_line(Stream::Err, "certificate read anew");
    // What is half written is not used, and changes nothing.
    fs::write(dir.path("tls/coordinator/tls.crt"), "-----BEGIN CERTIFICATE-----\nMII").expect("a file");
    let third = worker(&dir, "third", &address, &tls("new/worker-2"));
    coordinator.wait_for_nth_line(Stream::Err, "worker joined", 3);
    coordinator.wait_for_line(Stream::Err, "new certificate not used; the one before it stays");
    replace("new/coordinator", "tls.crt");
    coordinator.signal("HUP");
    coordinator.wait_for_line(Stream::Err, "SIGHUP: certificates are read anew");
    wait_until("the certificate is read on SIGHUP", std::time::Duration::from_secs(30), || {
        coordinator.lines(Stream::Err, "certificate read anew").len() >= 2
    });
    for process in [&coordinator, &first, &second, &third] {
        assert!(process.is_running());
    }
}

#[test]
fn check_flag_works_over_tls_with_worker_certificate() {
    let dir = TestDir::new();
    make_certificates(&dir, "tls", "--host 127.0.0.1");
    let (_coordinator, address) = dir.external(&format!("{WAITING_RUN} {}", tls("tls/coordinator")));
    let check = |address: &str, flags: &str| dir.command("coordinator", &format!("--check {address} {flags}"));
    dir.start("check", check(&address, &tls("tls/worker-1"))).succeed();
    dir.start("check", check(&address, "")).check_end(CONFIGURATION, &["of a worker with `--check https://"]);
    let own = check(&address, &tls("tls/coordinator"));
    dir.start("check", own).check_end(69, &["does not accept this certificate"]);
    dir.start("check", check(port(&address), "")).check_end(69, &["speaks TLS only"]);
}

#[test]
fn certificates_are_never_overwritten() {
    let dir = TestDir::new();
    make_certificates(&dir, "tls", "--host localhost 127.0.0.1 --workers 2");
    let key = || fs::read(dir.path("tls/worker-1/tls.key")).expect("a file");
    let before = key();
    let again = "certificates --out tls --host localhost";
    dir.fail("coordinator", again, 73, &["tls/coordinator/tls.crt is there already, and is not overwritten"]);
    make_certificates(&dir, "tls", "--host localhost --workers 2 --keep-existing");
    make_certificates(&dir, "tls", "--workers 1");
    assert!(key() == before && Path::new(&dir.path("tls/worker-3/tls.crt")).is_file());
}

/// The goal: who finds the socket of a run, and may write to it, is still let in only if the run is the same user's.
#[test]
fn peer_of_other_user_is_refused_at_unix_socket() {
    const NOBODY: &str = "65534";
    let dir = TestDir::new();
    let as_nobody = |program: &std::ffi::OsStr| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", NOBODY, "--clear-groups"]).arg(program);
        command
    };
    let is_possible = as_nobody("true".as_ref()).status().is_ok_and(|status| status.success());
    if !is_possible {
        eprintln!("skipped: no other user can be had here");
        return;
    }
    let coordinator = dir.coordinator(&format!("{WAITING_RUN} --launch external --listen unix:socket"));
    coordinator.begin();
    for (path, mode) in [("", 0o755), ("socket", 0o666)] {
        fs::set_permissions(dir.path(path), fs::Permissions::from_mode(mode)).expect("they are this process'");
    }
    let own = dir.command("worker", "--coordinator unix:socket --data small --connect-timeout 1");
    let mut command = as_nobody(own.get_program());
    command.args(own.get_args()).current_dir(dir.path(""));
    dir.start("worker", command).check_end(69, &["no coordinator at unix:socket"]);
    let said = coordinator.wait_for_line(Stream::Err, "connection refused");
    assert!(said.contains("expected a peer of this process' user") && said.contains("of user 65534"), "{said}");
    let _own = dir.worker("own", "unix:socket");
    coordinator.wait_for_line(Stream::Err, "worker joined");
}
