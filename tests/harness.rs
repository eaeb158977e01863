//! Programs as a user has them, started and watched. Each test has a folder of its own and the machine to itself; no
//! process outlives its test, and one that fails shows the last lines of every process.

mod bucket;
mod compose;
mod network;
mod process;
mod proxy;
mod run;
mod small_data;
mod small_disk;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

pub use bucket::{Bucket, Passage};
pub use compose::{Compose, docker, inspect};
pub use network::{COORDINATOR, Network};
pub use process::{Line, Process, Stream, TERMINATED, field};
pub use proxy::{Blocked, Byte, Message, Proxy};
pub use run::Run;
pub use small_data::SMALL_DATA;
pub use small_disk::SmallDisk;

use process::Watched;

/// Polling interval.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// Two epochs of 138 steps on the small data set, cut into four shards: what most tests train.
pub const SHORT_RUN: &str = "--shards 4 --batch-size 16 --epochs 2 --data small";
/// Its steps: 2 * 138.
pub const N_SHORT_STEPS: u64 = 276;

/// Thirty epochs: with `conv`, six seconds on a fast machine. A worker is missed after one, and back after two more.
pub const LONG_RUN: &str = "--shards 4 --batch-size 16 --epochs 30 --data small";

/// A test's folder, in which its programs are started, and the lock that has this machine run one cluster at a time.
pub struct TestDir {
    started: Mutex<Vec<Arc<Watched>>>,
    folder: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl TestDir {
    /// A folder with the small data set in `small`.
    pub fn new() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        // A test that failed has left nothing behind that the next one could stumble over.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let dir =
            Self { started: Mutex::default(), folder: tempfile::tempdir().expect("a temporary folder"), _turn: turn };
        SMALL_DATA.write(&dir.path("small"));
        dir
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A program with flags separated by spaces, in this folder, without the caller's own settings.
    pub fn command(&self, program: &str, flags: &str) -> Command {
        let mut command = Command::new(program_path(program));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TELAR_")) {
            command.env_remove(name);
        }
        command
            .args(flags.split_whitespace())
            .current_dir(self.folder.path())
            .env("RUST_LOG", "info")
            // What a killed program leaves behind goes with this folder, and nothing is found in the user's own.
            .env("TMPDIR", self.folder.path())
            .env("XDG_CACHE_HOME", self.path("cache"));
        command
    }

    /// Starts a program and watches it under a name.
    pub fn start(&self, name: &str, command: Command) -> Process {
        self.start_with_input(name, command, Stdio::null())
    }

    /// As [`TestDir::start`], with something as its standard input.
    pub fn start_with_input(&self, name: &str, command: Command, input: Stdio) -> Process {
        let process = Process::start(name, command, input);
        self.started.lock().unwrap_or_else(PoisonError::into_inner).push(process.watched());
        process
    }

    /// Starts a coordinator that prints JSON.
    pub fn coordinator(&self, flags: &str) -> Process {
        self.start("coordinator", self.command("coordinator", &format!("{flags} --json")))
    }

    /// Starts a coordinator that waits for workers on a free port, and gives the address for them.
    pub fn external(&self, flags: &str) -> (Process, String) {
        let coordinator = self.coordinator(&format!("{flags} --launch external --listen 127.0.0.1:0"));
        let address = coordinator.begin()["address"].as_str().expect("an address").to_owned();
        (coordinator, address)
    }

    /// Starts a worker.
    pub fn worker(&self, name: &str, address: &str) -> Process {
        self.start(name, self.worker_command(address))
    }

    /// What starts a worker.
    pub fn worker_command(&self, address: &str) -> Command {
        self.command("worker", &format!("--coordinator {address} --data small --threads 1"))
    }

    /// Runs a coordinator in a run folder to a good end.
    pub fn train(&self, flags: &str, run: &str) -> Run {
        let end = self.coordinator(&format!("{flags} --run-dir {run}")).end();
        assert_eq!(end["outcome"], "completed");
        self.run(run, &end)
    }

    /// What a run has left in its folder.
    pub fn run(&self, folder: &str, end: &Value) -> Run {
        Run::read(&self.path(folder), end)
    }

    /// What one process gives that computes all shards one after the other; once for all tests.
    pub fn reference(&self, flags: &str) -> Arc<Run> {
        static KNOWN: Mutex<BTreeMap<String, Arc<Run>>> = Mutex::new(BTreeMap::new());
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = known.get(flags) {
            return Arc::clone(run);
        }
        let folder = format!("reference-{}", known.len());
        let all_flags = format!("train {flags} --hash-steps --json --run-dir {folder}");
        let end = self.start("autoencoder", self.command("autoencoder", &all_flags)).end();
        let run = Arc::new(self.run(&folder, &end));
        known.insert(flags.to_owned(), Arc::clone(&run));
        run
    }

    /// Runs a program to a bad end, with the exit code and a sentence that holds every part.
    pub fn fail(&self, program: &str, flags: &str, exit_code: i32, parts: &[&str]) {
        let process = self.start(program, self.command(program, flags));
        process.check_end(exit_code, parts);
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        if thread::panicking() {
            let started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
            started.iter().for_each(|process| eprint!("{process}"));
        }
    }
}

/// A program beside this one.
fn program_path(name: &str) -> PathBuf {
    // From target/release/deps/cluster-…
    let test = std::env::current_exe().expect("a test is a program");
    let folder = test.parent().and_then(Path::parent).expect("a test lies in a folder of a folder");
    let path = folder.join(name);
    assert!(path.is_file(), "no program at {}; build with `cargo build --release`", path.display());
    path
}

/// Sends a signal to a process.
pub fn signal(name: &str, id: u32) {
    let status = Command::new("kill").args(["-s", name, &id.to_string()]).stderr(Stdio::null()).status();
    status.expect("`kill` is there");
}

/// Whether there is a process of this number that has not ended.
pub fn is_alive(id: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // After the name, which may hold anything, comes the state; a zombie has ended, and waits for its parent to reap it.
    status.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Polls until a condition holds.
pub fn wait_until(what: &str, wait_max: Duration, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + wait_max;
    while !is_so() {
        assert!(Instant::now() < deadline, "after {} ms it is not so: {what}", wait_max.as_millis());
        thread::sleep(LOOK_PAUSE);
    }
}
