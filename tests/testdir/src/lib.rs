//! A program as its users run it, in a folder of its own, for tests of programs that are made with telar.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Nothing that is waited for takes longer.
const WAIT_MAX: Duration = Duration::from_mins(2);

/// An empty folder in which a program runs.
#[derive(Debug)]
pub struct TestDir {
    folder: TempDir,
    program: PathBuf,
}

impl TestDir {
    /// For the program of this path, such as `env!("CARGO_BIN_EXE_…")`.
    ///
    /// # Panics
    /// If there can be no folder.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder"), program: program.into() }
    }

    /// A file in the folder.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The program in the folder with these flags, separated by white space, and without variables of the tests' own.
    pub fn command(&self, line: &str) -> Command {
        self.command_of(&self.program, line)
    }

    /// Another program in the folder.
    pub fn command_of(&self, program: &Path, line: &str) -> Command {
        let mut command = Command::new(program);
        command.args(line.split_whitespace()).current_dir(self.folder.path());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TELAR_")) {
            command.env_remove(name);
        }
        command
    }

    /// Runs the program to its end.
    ///
    /// # Panics
    /// If it does not start.
    pub fn run(&self, line: &str) -> Output {
        self.command(line).output().expect("the program starts")
    }

    /// Starts the program, which is killed when it is dropped. Its standard output can be read.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(&self, line: &str) -> Killed {
        let mut command = self.command(line);
        Killed(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the program starts"))
    }

    /// The standard output of a run that succeeds.
    ///
    /// # Panics
    /// If it does not.
    pub fn output(&self, line: &str) -> String {
        let output = self.run(line);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "`{line}`: {out}{err}");
        out.into_owned()
    }

    /// The last line of JSON of a run that succeeds.
    ///
    /// # Panics
    /// If it does not.
    pub fn end(&self, line: &str) -> Value {
        last_json(&self.output(&format!("{line} --json")))
    }

    /// Runs a command that fails with a message.
    ///
    /// # Panics
    /// If it does not, or has another exit code or message.
    pub fn fail(&self, line: &str, exit_code: i32, part: &str) {
        let output = self.run(line);
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(exit_code), "`{line}`: {err}");
        assert!(err.contains(part), "`{line}` does not say `{part}`: {err}");
    }

    /// The JSON value in a file in the folder.
    ///
    /// # Panics
    /// If there is none.
    pub fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(name)).expect("a file")).expect("JSON")
    }

    /// The JSON values in the lines of a file in the folder.
    ///
    /// # Panics
    /// If there is no such file, or a line is not JSON.
    pub fn lines(&self, name: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(name)).expect("a file");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

/// The value in the last line.
///
/// # Panics
/// If there is none.
pub fn last_json(text: &str) -> Value {
    serde_json::from_str(text.lines().last().expect("a line")).expect("JSON")
}

/// Waits until something is so.
///
/// # Panics
/// If it is not within two minutes.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < WAIT_MAX, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A process that is killed when it is dropped.
#[derive(Debug)]
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
