//! A process: what it prints, line by line as it comes, and how it ends. Every wait has a deadline.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::signal;

/// How long a line may take.
const LINE_WAIT_MAX: Duration = Duration::from_mins(3);
/// How long a process may take to end.
const END_WAIT_MAX: Duration = Duration::from_mins(5);
/// The exit code after SIGTERM before the work is done: 128 + 15.
pub const TERMINATED: i32 = 143;
/// Lines of each process that a test that fails shows.
const N_LAST_LINES: usize = 30;

/// Where a program prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// A process, killed at the latest when it goes out of scope.
pub struct Process {
    id: u32,
    watched: Arc<Watched>,
    /// Its standard input, where that is a pipe.
    input: Mutex<Option<ChildStdin>>,
}

/// What is known of a process.
pub struct Watched {
    name: String,
    seen: Mutex<Seen>,
    changed: Condvar,
}

/// A line, and when it came.
#[derive(Clone, Debug)]
pub struct Line {
    /// Where it was printed.
    pub stream: Stream,
    /// What it says.
    pub text: String,
    /// When it was read, which is at once unless this process is held up.
    pub at: Instant,
}

#[derive(Default)]
struct Seen {
    lines: Vec<Line>,
    /// Streams that may bring more.
    n_open: usize,
    status: Option<ExitStatus>,
}

impl Watched {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the lines of a stream, on a thread that ends with it.
    fn read(self: &Arc<Self>, stream: Stream, pipe: impl Read + Send + 'static) {
        let watched = Arc::clone(self);
        thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                let text = String::from_utf8_lossy(&line).into_owned();
                watched.seen().lines.push(Line { stream, text, at: Instant::now() });
                watched.changed.notify_all();
            }
            watched.seen().n_open -= 1;
            watched.changed.notify_all();
        });
    }

    /// Waits until a look gives something; none if it does not within the time given.
    fn wait<T>(&self, wait_max: Duration, mut look: impl FnMut(&Seen) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + wait_max;
        let mut seen = self.seen();
        loop {
            if let Some(found) = look(&seen) {
                return Some(found);
            }
            let time_left = deadline.checked_duration_since(Instant::now())?;
            seen = self.changed.wait_timeout(seen, time_left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The last lines.
impl fmt::Display for Watched {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Seen { lines, status, .. } = &*self.seen();
        let end = status.map_or("still running".to_owned(), |status| status.to_string());
        writeln!(out, "-- {}, {end}; its last lines:", self.name)?;
        lines[lines.len().saturating_sub(N_LAST_LINES)..].iter().try_for_each(|line| writeln!(out, "   {}", line.text))
    }
}

impl Process {
    /// Starts a program.
    pub fn start(name: &str, mut command: Command, input: Stdio) -> Self {
        let watched = Arc::new(Watched { name: name.to_owned(), seen: Mutex::default(), changed: Condvar::new() });
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        let id = child.id();
        watched.seen().n_open = 2;
        watched.read(Stream::Out, child.stdout.take().expect("a pipe"));
        watched.read(Stream::Err, child.stderr.take().expect("a pipe"));
        // Taken before the wait, which would close it.
        let input = Mutex::new(child.stdin.take());
        let waiting = Arc::clone(&watched);
        thread::spawn(move || {
            let status = child.wait().expect("a child's end can be waited for");
            waiting.seen().status = Some(status);
            waiting.changed.notify_all();
        });
        Self { id, watched, input }
    }

    /// What will be known of it, also when it is gone.
    pub fn watched(&self) -> Arc<Watched> {
        Arc::clone(&self.watched)
    }

    /// All lines so far that hold a part.
    pub fn lines(&self, stream: Stream, part: &str) -> Vec<String> {
        let seen = self.watched.seen();
        seen.lines
            .iter()
            .filter(|line| line.stream == stream && line.text.contains(part))
            .map(|line| line.text.clone())
            .collect()
    }

    /// The process' number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// All that it has said so far.
    pub fn said(&self) -> Vec<Line> {
        self.watched.seen().lines.clone()
    }

    /// Waits for the first line that holds a part, whenever it came.
    pub fn wait_for_line(&self, stream: Stream, part: &str) -> String {
        self.wait_for_nth_line(stream, part, 1)
    }

    /// Waits for the nth line that holds a part, counted from 1.
    pub fn wait_for_nth_line(&self, stream: Stream, part: &str, nth: usize) -> String {
        let line = self.line_if_any(stream, part, nth);
        line.unwrap_or_else(|| panic!("{} ended without {nth} lines with `{part}`", self.watched.name))
    }

    /// The nth line that holds a part, counted from 1, whenever it came; none if the process ends without.
    pub fn line_if_any(&self, stream: Stream, part: &str, nth: usize) -> Option<String> {
        self.find(stream, &format!("{nth} lines with `{part}`"), |lines| {
            lines.filter(|line| line.contains(part)).nth(nth - 1).map(str::to_owned)
        })
    }

    /// Waits for the first line that holds one of several parts.
    pub fn wait_for_line_with_any(&self, stream: Stream, parts: &[&str]) -> String {
        let holds_one = |line: &&str| parts.iter().any(|part| line.contains(part));
        let found = self.find(stream, &format!("any of {parts:?}"), |mut lines| {
            Iterator::find(&mut lines, holds_one).map(str::to_owned)
        });
        found.unwrap_or_else(|| panic!("{} ended without any of {parts:?}", self.watched.name))
    }

    /// Waits for a coordinator's first checkpoint at a step or after it, and gives its step.
    pub fn wait_for_checkpoint(&self, step_min: u64) -> u64 {
        let step = self.checkpoint_if_any(step_min);
        step.unwrap_or_else(|| panic!("{} ended without a checkpoint at step {step_min} or later", self.watched.name))
    }

    /// The step of a coordinator's first checkpoint at a step or after it; none if it ends without.
    pub fn checkpoint_if_any(&self, step_min: u64) -> Option<u64> {
        let step = |line: &str| field(line, "step").parse::<u64>().expect("a step");
        self.find(Stream::Err, &format!("a checkpoint at step {step_min} or later"), |lines| {
            lines.filter(|line| line.contains("checkpoint saved")).map(step).find(|&step| step >= step_min)
        })
    }

    /// Waits until a coordinator's mirror has a checkpoint of a step or of a later one.
    pub fn wait_for_mirrored(&self, step_min: u64) {
        let step = |line: &str| field(line, "step").parse::<u64>().expect("a step");
        let found = self.find(Stream::Err, &format!("a mirrored checkpoint at step {step_min} or later"), |lines| {
            lines.filter(|line| line.contains("checkpoint mirrored")).map(step).find(|&step| step >= step_min)
        });
        assert!(found.is_some(), "{} ended without a mirrored checkpoint at step {step_min}", self.watched.name);
    }

    /// Waits until a look at the lines of a stream gives something; none if the process ends before it does.
    fn find<T>(
        &self,
        stream: Stream,
        what: &str,
        look: impl Fn(&mut dyn Iterator<Item = &str>) -> Option<T>,
    ) -> Option<T> {
        let found = self.watched.wait(LINE_WAIT_MAX, |seen| {
            let lines = seen.lines.iter().filter(|line| line.stream == stream);
            match look(&mut lines.map(|line| line.text.as_str())) {
                None if seen.n_open > 0 => None,
                found => Some(found),
            }
        });
        let waited = LINE_WAIT_MAX.as_secs();
        found.unwrap_or_else(|| panic!("{} did not print {what} in {waited} s", self.watched.name))
    }

    /// Waits for the end and all that was printed before.
    pub fn wait_exit(&self) -> ExitStatus {
        let ended = self.watched.wait(END_WAIT_MAX, |seen| seen.status.filter(|_| seen.n_open == 0));
        ended.unwrap_or_else(|| panic!("{} did not end in {} s", self.watched.name, END_WAIT_MAX.as_secs()))
    }

    /// Whether it ends within a time, and all that was printed before is there.
    pub fn ends_within(&self, wait_max: Duration) -> bool {
        self.watched.wait(wait_max, |seen| (seen.status.is_some() && seen.n_open == 0).then_some(())).is_some()
    }

    /// Waits for a good end.
    pub fn succeed(&self) {
        let status = self.wait_exit();
        assert!(status.success(), "{} ended with {status}", self.watched.name);
    }

    /// Waits for the end, with the exit code and every part on standard error.
    pub fn check_end(&self, exit_code: i32, parts: &[&str]) {
        let status = self.wait_exit();
        assert_eq!(status.code(), Some(exit_code), "{} ended with {status}", self.watched.name);
        for part in parts {
            assert!(!self.lines(Stream::Err, part).is_empty(), "{} did not say `{part}`", self.watched.name);
        }
    }

    /// Whether it has not ended yet.
    pub fn is_running(&self) -> bool {
        self.watched.seen().status.is_none()
    }

    /// The first line of a coordinator that prints JSON.
    pub fn begin(&self) -> Value {
        let line = self.wait_for_line(Stream::Out, r#""event":"begin""#);
        serde_json::from_str(&line).expect("JSON")
    }

    /// The numbers by which a coordinator knew a worker, one each time that it joined.
    pub fn numbers_of(&self, worker: &Self) -> Vec<String> {
        let joined = self.lines(Stream::Err, "worker joined");
        let its = joined.iter().filter(|line| field(line, "process") == worker.id.to_string());
        its.map(|line| field(line, "worker")).collect()
    }

    /// Waits for a good end of a program that prints JSON; its last line.
    pub fn end(&self) -> Value {
        self.succeed();
        self.last_json()
    }

    /// Sends SIGTERM, and waits for an end with the exit code of unfinished work.
    pub fn terminate(&self) {
        self.signal("TERM");
        self.check_end(TERMINATED, &[]);
    }

    /// As [`Process::terminate`], of a program that prints JSON; its last line.
    pub fn terminated(&self) -> Value {
        self.terminate();
        self.last_json()
    }

    /// The last line of a program that prints JSON.
    pub fn last_json(&self) -> Value {
        let line = self.lines(Stream::Out, "").pop().expect("a last line");
        serde_json::from_str(&line).expect("JSON")
    }

    /// Sends a signal, such as `TERM`.
    pub fn signal(&self, name: &str) {
        assert!(self.signal_if_running(name), "{} has ended already", self.watched.name);
    }

    /// Sends a signal, unless it has ended already; whether it was sent.
    pub fn signal_if_running(&self, name: &str) -> bool {
        // Under the lock, so that the number is not another process' by now.
        let seen = self.watched.seen();
        let is_running = seen.status.is_none();
        if is_running {
            signal(name, self.id);
        }
        is_running
    }

    /// Ends its standard input.
    pub fn end_input(&self) {
        let input = self.input.lock().unwrap_or_else(PoisonError::into_inner).take();
        assert!(input.is_some(), "{} was started without an input", self.watched.name);
    }

    /// Ends it at once.
    pub fn kill(&self) {
        self.signal("KILL");
        assert_eq!(self.wait_exit().signal(), Some(9));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            signal("KILL", self.id);
            self.watched.wait(END_WAIT_MAX, |seen| seen.status);
        }
    }
}

/// The value of a field in a line of the log.
pub fn field(line: &str, name: &str) -> String {
    let found = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    found.unwrap_or_else(|| panic!("no {name} in `{line}`")).trim_matches('"').to_owned()
}
