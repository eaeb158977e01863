//! The coordinator in a `TrainJob` of Kubeflow Trainer: what it posts, to a server that speaks TLS with a certificate
//! authority of its own; and that no server, whatever it does, changes a run.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::{LONG_RUN, N_SHORT_STEPS, Process, SHORT_RUN, Stream, TestDir};

/// As Kubeflow Trainer writes it.
const PATH: &str = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/team/trainjobs/garments/status";
const FIRST_TOKEN: &str = "first.token-of_a.pod";
const SECOND_TOKEN: &str = "second.token-of_a.pod";
/// The least pause between two posts, in seconds.
const PAUSE_MIN: f64 = 5.0;
/// What the coordinator says when it cannot post.
const NOT_POSTED: &str = "progress is not posted to Kubeflow Trainer; training goes on";
/// Steps of `LONG_RUN`: 30 * 138.
const N_LONG_STEPS: u64 = 4140;

/// A server that plays Kubeflow Trainer's, and the files that a pod finds.
struct Trainer {
    process: Process,
    port: u64,
    ca_cert: PathBuf,
    token: PathBuf,
}

/// A request as the server has read it.
struct Post {
    /// When, in seconds of the server's clock.
    at: f64,
    authorization: String,
    status: Value,
}

impl Trainer {
    /// Starts a server that gives these answers, which `server.py` describes.
    fn start(dir: &TestDir, answers: &str) -> Self {
        make_certificates(dir);
        fs::write(dir.path("server.py"), include_str!("trainjob/server.py")).expect("a file");
        let python = std::env::var("TELAR_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let mut command = Command::new(python);
        command.args(["server.py", "server.crt", "server.key"]).args(answers.split_whitespace());
        command.current_dir(dir.path(""));
        let process = dir.start("Kubeflow Trainer", command);
        let port = parse(&process.wait_for_line(Stream::Out, "port"))["port"].as_u64().expect("a port");
        let trainer = Self { process, port, ca_cert: dir.path("ca.crt"), token: dir.path("token") };
        trainer.rotate(FIRST_TOKEN);
        trainer
    }

    /// Replaces the token as Kubernetes does: whole, under the same path.
    fn rotate(&self, token: &str) {
        let new = self.token.with_extension("new");
        fs::write(&new, format!("{token}\n")).expect("a file");
        fs::rename(new, &self.token).expect("a file");
    }

    /// Starts a coordinator in the `TrainJob`.
    fn coordinator(&self, dir: &TestDir, flags: &str) -> Process {
        self.logged_coordinator(dir, "info", flags)
    }

    /// Starts a coordinator in the `TrainJob` that logs at some level.
    fn logged_coordinator(&self, dir: &TestDir, log: &str, flags: &str) -> Process {
        let url = format!("https://127.0.0.1:{}{PATH}", self.port);
        let (ca_cert, token) = (self.ca_cert.display().to_string(), self.token.display().to_string());
        coordinator(dir, log, flags, &[("URL", &url), ("CA_CERT", &ca_cert), ("TOKEN", &token)])
    }

    /// All posts so far, each of which is as the protocol wants it.
    fn posts(&self) -> Vec<Post> {
        let posts: Vec<Post> =
            self.process.lines(Stream::Out, "method").iter().map(|line| checked_post(line)).collect();
        // Only a run's last post comes when there is something to say.
        for (post, next) in posts.iter().zip(posts.iter().skip(1)).take(posts.len().saturating_sub(2)) {
            assert!(
                next.at - post.at >= PAUSE_MIN,
                "{} s between {} and {}",
                next.at - post.at,
                post.status,
                next.status
            );
        }
        posts
    }
}

impl Post {
    fn percentage(&self) -> u64 {
        self.status["progressPercentage"].as_u64().expect("a percentage")
    }

    fn metric(&self, name: &str) -> Option<&str> {
        let metrics = self.status["metrics"].as_array().expect("a list");
        metrics.iter().find(|metric| metric["name"] == name).and_then(|metric| metric["value"].as_str())
    }

    fn step(&self) -> u64 {
        self.metric("current_step").expect("a step").parse().expect("a number")
    }
}

/// Starts a coordinator with some of Kubeflow Trainer's variables.
fn coordinator(dir: &TestDir, log: &str, flags: &str, variables: &[(&str, &str)]) -> Process {
    let mut command = dir.command("coordinator", &format!("{flags} --json"));
    command.env("RUST_LOG", log);
    for (name, value) in variables {
        command.env(format!("KUBEFLOW_TRAINER_SERVER_{name}"), value);
    }
    dir.start("coordinator", command)
}

fn parse(line: &str) -> Value {
    serde_json::from_str(line).expect("a line of JSON")
}

/// A request that is as the protocol wants it: method, path, headers, names and ranges.
fn checked_post(line: &str) -> Post {
    let request = parse(line);
    assert_eq!((&request["method"], &request["path"]), (&"POST".into(), &PATH.into()), "{request}");
    assert_eq!(request["headers"]["content-type"], "application/json", "{request}");
    let body = parse(request["body"].as_str().expect("a body"));
    let body = body.as_object().expect("an object");
    assert_eq!(body.keys().collect::<Vec<_>>(), ["trainerStatus"]);
    let status = body["trainerStatus"].clone();

    let known = ["progressPercentage", "estimatedRemainingSeconds", "metrics", "lastUpdatedTime"];
    assert!(status.as_object().expect("an object").keys().all(|key| known.contains(&key.as_str())), "{status}");
    assert!(status["progressPercentage"].as_u64().is_some_and(|percentage| percentage <= 100), "{status}");
    let remaining = status.get("estimatedRemainingSeconds").map(Value::as_u64);
    assert!(remaining.is_none_or(|seconds| seconds.is_some_and(|seconds| i32::try_from(seconds).is_ok())), "{status}");
    for metric in status["metrics"].as_array().expect("a list") {
        assert_eq!(metric.as_object().expect("an object").len(), 2, "{status}");
        let is_filled = |key: &str| metric[key].as_str().is_some_and(|text| !text.is_empty());
        assert!(is_filled("name") && is_filled("value"), "{status}");
        assert!(metric["value"].as_str().and_then(|value| value.parse::<f64>().ok()).is_some(), "{status}");
    }
    let time = status["lastUpdatedTime"].as_str().expect("a time");
    let form: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(form, "0000-00-00T00:00:00Z", "{time}");

    let authorization = request["headers"]["authorization"].as_str().expect("a header").to_owned();
    Post { at: request["at"].as_f64().expect("a time"), authorization, status }
}

/// A certificate authority's certificate in `ca.crt`, and one of 127.0.0.1 that it has signed in `server.crt`.
fn make_certificates(dir: &TestDir) {
    let settings = "[req]\ndistinguished_name = name\n[name]\n\
                    [ca]\nbasicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign\n\
                    [server]\nbasicConstraints = critical, CA:FALSE\nsubjectAltName = IP:127.0.0.1\n";
    fs::write(dir.path("openssl.cnf"), settings).expect("a file");
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    for line in [
        format!("req -x509 -config openssl.cnf -extensions ca -subj /CN=ca {key} -keyout ca.key -out ca.crt -days 2"),
        format!("req -new -config openssl.cnf -subj /CN=server {key} -keyout server.key -out server.csr"),
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile openssl.cnf -extensions server -out \
         server.crt -days 2"
            .to_owned(),
    ] {
        let mut command = Command::new("openssl");
        command.args(line.split_whitespace()).current_dir(dir.path("")).stdin(Stdio::null());
        let output = command.output().expect("`openssl` is installed");
        assert!(output.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn completed_run_posts_start_and_end_status() {
    let dir = TestDir::new();
    let trainer = Trainer::start(&dir, "ok");
    let flags = format!("--arch denoising {SHORT_RUN}");
    let expected = dir.reference(&flags);
    let coordinator = trainer.coordinator(&dir, &format!("{flags} --workers 2 --run-dir run"));
    let run = dir.run("run", &coordinator.end());
    run.assert_same_bits(&expected);
    assert_eq!(coordinator.lines(Stream::Err, "progress is posted to Kubeflow Trainer").len(), 1);

    let posts = trainer.posts();
    let [first, .., last] = posts.as_slice() else { panic!("{} posts", posts.len()) };
    assert!(posts.iter().all(|post| post.authorization == format!("Bearer {FIRST_TOKEN}")));
    assert_eq!((first.percentage(), first.step(), first.metric("loss")), (0, 0, None));
    assert!(first.status.get("estimatedRemainingSeconds").is_none(), "{}", first.status);

    assert_eq!((last.percentage(), last.step()), (100, N_SHORT_STEPS));
    assert_eq!(last.status["estimatedRemainingSeconds"], 0);
    let (step, epoch) = (run.steps.last().expect("a step"), run.history.last().expect("an epoch"));
    for (name, value) in [
        ("loss", &step["loss"]),
        ("rounded_accuracy", &step["rounded_accuracy"]),
        ("val_loss", &epoch["val_loss"]),
        ("val_rounded_accuracy", &epoch["val_rounded_accuracy"]),
        ("total_steps", &N_SHORT_STEPS.into()),
        ("current_epoch", &2.into()),
        ("total_epochs", &2.into()),
    ] {
        let found: f64 = last.metric(name).expect("a metric").parse().expect("a number");
        // The reader of JSON takes the last digit for another one now and then.
        let expected = value.as_f64().expect("a number");
        assert!((found - expected).abs() <= 1e-15 * expected.abs(), "{name}: {found}, {expected} expected");
    }
}

#[test]
fn active_run_posts_periodically_with_rotated_token() {
    let dir = TestDir::new();
    let trainer = Trainer::start(&dir, "ok");
    let flags = "--arch denoising --batch-size 16 --epochs 100000 --workers 2 --data small --run-dir run";
    let coordinator = trainer.coordinator(&dir, flags);
    trainer.process.wait_for_line(Stream::Out, FIRST_TOKEN);
    trainer.rotate(SECOND_TOKEN);
    trainer.process.wait_for_nth_line(Stream::Out, SECOND_TOKEN, 2);
    for part in ["estimatedRemainingSeconds", "images_per_second"] {
        trainer.process.wait_for_line(Stream::Out, part);
    }
    coordinator.terminate();
    let end = coordinator.last_json();
    assert_eq!(end["outcome"], "stopped");

    let posts = trainer.posts();
    let n_first = posts.iter().take_while(|post| post.authorization == format!("Bearer {FIRST_TOKEN}")).count();
    assert!(posts[n_first..].iter().all(|post| post.authorization == format!("Bearer {SECOND_TOKEN}")));
    assert!(posts.is_sorted_by_key(Post::step), "progress goes back");
    let last = posts.last().expect("a post");
    assert_eq!(last.step(), end["step"].as_u64().expect("a step"));
    assert!(last.percentage() < 100 && last.status.get("estimatedRemainingSeconds").is_none(), "{}", last.status);
}

#[test]
fn resumed_run_posts_progress_from_resume_step() {
    let dir = TestDir::new();
    let flags = format!("--arch conv {LONG_RUN} --workers 2 --checkpoint-every 500 --run-dir run");
    let coordinator = dir.coordinator(&flags);
    coordinator.wait_for_checkpoint(500);
    coordinator.terminate();
    let step = coordinator.last_json()["step"].as_u64().expect("a step");

    let trainer = Trainer::start(&dir, "ok");
    let end = trainer.coordinator(&dir, "--resume run --data small --workers 2").end();
    assert_eq!(end["outcome"], "completed");
    let posts = trainer.posts();
    let [first, .., last] = posts.as_slice() else { panic!("{} posts", posts.len()) };
    assert_eq!((first.step(), first.percentage()), (step, 100 * step / N_LONG_STEPS));
    assert_eq!((last.step(), last.percentage()), (N_LONG_STEPS, 100));
}

#[test]
fn recovered_server_is_posted_to_again() {
    let dir = TestDir::new();
    let trainer = Trainer::start(&dir, "503 ok");
    let coordinator = trainer.coordinator(&dir, &format!("--arch denoising {SHORT_RUN} --workers 2 --run-dir run"));
    coordinator.succeed();
    assert_eq!(coordinator.lines(Stream::Err, NOT_POSTED).len(), 1);
    assert_eq!(coordinator.lines(Stream::Err, "progress is posted to Kubeflow Trainer again").len(), 1);
    assert_eq!(trainer.posts().last().expect("a post").percentage(), 100);
}

/// The goal: the run ends as without a server, with the same bits, and its log names the reason once. Gives the number of
/// requests that the server has read.
fn check_no_harm(reason: &str, trainer: impl FnOnce(&TestDir) -> Trainer) -> usize {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {SHORT_RUN}");
    let expected = dir.reference(&flags);
    let trainer = trainer(&dir);
    let coordinator = trainer.coordinator(&dir, &format!("{flags} --workers 2 --run-dir run"));
    dir.run("run", &coordinator.end()).assert_same_bits(&expected);
    let warnings = coordinator.lines(Stream::Err, NOT_POSTED);
    assert!(warnings.len() == 1 && warnings[0].contains(reason), "{warnings:?}");
    // As the protocol wants them, and none anywhere else.
    trainer.posts().len()
}

#[test]
fn refusing_server_does_not_affect_run() {
    let n_posts = check_no_harm("found 404: no such TrainJob", |dir| Trainer::start(dir, "404"));
    assert!(n_posts > 0, "nothing was posted");
}

#[test]
fn hanging_server_does_not_affect_run() {
    let n_posts = check_no_harm("expected an answer within 5 s, found none", |dir| Trainer::start(dir, "hang"));
    assert!(n_posts > 0, "nothing was posted");
}

#[test]
fn redirect_is_not_followed() {
    let n_posts = check_no_harm("found 302", |dir| Trainer::start(dir, "redirect"));
    assert!(n_posts > 0, "nothing was posted");
}

#[test]
fn unreachable_server_does_not_affect_run() {
    check_no_harm("found none", |dir| {
        let trainer = Trainer::start(dir, "ok");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        Trainer { port: listener.local_addr().expect("an address").port().into(), ..trainer }
    });
}

#[test]
fn server_of_untrusted_ca_is_not_sent_token() {
    let n_posts = check_no_harm("invalid peer certificate", |dir| {
        let trainer = Trainer::start(dir, "ok");
        // The server has loaded its own certificate by now.
        make_certificates(dir);
        trainer
    });
    assert_eq!(n_posts, 0);
}

#[test]
fn missing_token_file_does_not_affect_run() {
    let n_posts = check_no_harm("which KUBEFLOW_TRAINER_SERVER_TOKEN names", |dir| {
        let trainer = Trainer::start(dir, "ok");
        fs::remove_file(&trainer.token).expect("a file");
        trainer
    });
    assert_eq!(n_posts, 0);
}

/// The goal: who reads a log, at whatever level, does not learn the token. Libraries log what they send.
#[test]
fn token_is_not_logged() {
    let dir = TestDir::new();
    let trainer = Trainer::start(&dir, "404");
    // Whatever part of it a line of a dump shows.
    trainer.rotate(&"QZ".repeat(40));
    let flags = "--arch denoising --data small --max-steps 3 --workers 1 --run-dir run";
    let coordinator = trainer.logged_coordinator(&dir, "trace", flags);
    coordinator.succeed();
    assert!(!trainer.posts().is_empty() && !coordinator.lines(Stream::Err, "TRACE").is_empty());
    let lines = coordinator.lines(Stream::Err, "QZQZ");
    assert!(lines.is_empty(), "{lines:?}");
}

#[test]
fn invalid_variables_are_named_and_run_continues() {
    let dir = TestDir::new();
    let flags = "--arch denoising --data small --max-steps 3 --workers 1";
    let check = |run: &str, variables: &[(&str, &str)], part: &str| {
        let coordinator = coordinator(&dir, "info", &format!("{flags} --run-dir {run}"), variables);
        assert_eq!(coordinator.end()["outcome"], "completed");
        let warnings = coordinator.lines(Stream::Err, "nothing is posted to Kubeflow Trainer; training goes on");
        assert!(warnings.len() == 1 && warnings[0].contains(part), "{warnings:?}");
    };
    let (url, ca_cert, token) = (("URL", "https://127.0.0.1:1/status"), ("CA_CERT", "ca.crt"), ("TOKEN", "token"));
    check("no-token", &[url, ca_cert], "expected KUBEFLOW_TRAINER_SERVER_TOKEN");
    check("no-authority", &[url, token], "expected KUBEFLOW_TRAINER_SERVER_CA_CERT");
    let plain = ("URL", "http://127.0.0.1:1/status");
    check("no-tls", &[plain, ca_cert, token], "expected an https:// URL in KUBEFLOW_TRAINER_SERVER_URL");
}
