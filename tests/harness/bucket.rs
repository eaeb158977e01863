//! A server that speaks S3's protocol, `moto` from the Python package index, with one bucket; and a gate before it, which can
//! be shut as an outage does, or hold what passes in the middle of a file.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use super::{Process, Stream, TestDir};

/// How long the gate may take to hold what it was asked to.
const HOLD_WAIT_MAX: Duration = Duration::from_mins(1);
/// Its server looks at the shape of a signature, and at nothing else.
const AUTHORIZATION: &str =
    "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";

/// A server with a bucket of the name `bucket`.
pub struct Bucket {
    address: SocketAddr,
    gate: Gate,
    _server: Process,
}

impl Bucket {
    /// Starts the server; None, with a message, where there is no Python that has it.
    pub fn start(dir: &TestDir) -> Option<Self> {
        let python = std::env::var_os("TELAR_PYTHON")?;
        let mut look = Command::new(&python);
        let is_there = look.args(["-c", "import moto.server"]).output().is_ok_and(|output| output.status.success());
        if !is_there {
            return None;
        }
        let mut command = Command::new(&python);
        command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]).env("PYTHONUNBUFFERED", "1");
        let server = dir.start("moto", command);
        let line = server.wait_for_line_with_any(Stream::Err, &["Running on http://"]);
        let address = line.split("http://").nth(1).and_then(|rest| rest.trim().parse().ok()).expect("an address");
        let bucket = Self { address, gate: Gate::start(address), _server: server };
        let (status, _) = bucket.request("PUT", "/bucket", &[]);
        assert_eq!(status, 200);
        Some(bucket)
    }

    /// What is before the server.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Tells a program where the server is, and who asks.
    pub fn introduce(&self, command: &mut Command) {
        for name in ["ALL_PROXY", "HTTP_PROXY", "all_proxy", "http_proxy"] {
            command.env_remove(name);
        }
        command
            .env("AWS_ENDPOINT_URL", format!("http://{}", self.gate.address))
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .env("AWS_REGION", "us-east-1");
    }

    /// The objects below a prefix, by the rest of their names. Asks the server itself, past the gate.
    pub fn objects(&self, prefix: &str) -> BTreeMap<String, Vec<u8>> {
        let (status, listed) = self.request("GET", &format!("/bucket?list-type=2&prefix={prefix}/"), &[]);
        assert_eq!(status, 200);
        let listed = String::from_utf8(listed).expect("text");
        let keys = listed.split("<Key>").skip(1).map(|rest| rest.split("</Key>").next().expect("an end"));
        let object = |key: &str| {
            let (status, content) = self.request("GET", &format!("/bucket/{key}"), &[]);
            let name = key.strip_prefix(prefix).and_then(|name| name.strip_prefix('/')).expect("the prefix");
            // What was removed after the list was made is not there.
            (status == 200).then(|| (name.to_owned(), content))
        };
        keys.filter_map(object).collect()
    }

    /// Writes an object.
    pub fn put(&self, key: &str, content: &[u8]) {
        assert_eq!(self.request("PUT", &format!("/bucket/{key}"), content).0, 200);
    }

    fn request(&self, method: &str, target: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let mut stream = TcpStream::connect(self.address).expect("the server is there");
        let (host, length) = (self.address, body.len());
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {AUTHORIZATION}\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n"
        );
        stream.write_all(&[head.as_bytes(), body].concat()).expect("it reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("it answers");
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a head and a body");
        let status = String::from_utf8_lossy(&answer[..end]).split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.expect("a status"), answer.split_off(end + 4))
    }
}

/// A proxy that passes everything on, nothing, or all up to a place.
pub struct Gate {
    address: SocketAddr,
    shared: Arc<GateShared>,
}

struct GateShared {
    upstream: SocketAddr,
    state: Mutex<GateState>,
    changed: Condvar,
}

struct GateState {
    passage: Passage,
    /// The text to hold at, and how many bytes pass after it.
    armed: Option<(Vec<u8>, usize)>,
    ends: Vec<Weak<TcpStream>>,
}

/// What passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// Everything.
    Open,
    /// Nothing: connections are closed as they come.
    Shut,
    /// What is sent waits.
    Held,
}

impl Gate {
    fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let state = GateState { passage: Passage::Open, armed: None, ends: Vec::new() };
        let shared = Arc::new(GateShared { upstream, state: Mutex::new(state), changed: Condvar::new() });
        let accepting = Arc::clone(&shared);
        // Ends with this process, as its connections do.
        thread::spawn(move || accepting.accept(&listener));
        Self { address, shared }
    }

    /// Lets pass, shuts or holds. A gate that is shut closes the connections that there are.
    pub fn set(&self, passage: Passage) {
        let mut state = self.shared.state();
        (state.passage, state.armed) = (passage, None);
        if passage == Passage::Shut {
            for end in state.ends.drain(..).filter_map(|end| end.upgrade()) {
                let _ = end.shutdown(Shutdown::Both);
            }
        }
        self.shared.changed.notify_all();
    }

    /// Holds everything so many bytes after a text that a client sends.
    pub fn hold_after(&self, text: &str, n_bytes: usize) {
        self.shared.state().armed = Some((text.as_bytes().to_vec(), n_bytes));
    }

    /// Waits until it holds.
    pub fn wait_until_held(&self) {
        let is_not_held = |state: &mut GateState| state.passage != Passage::Held;
        let waited = self.shared.changed.wait_timeout_while(self.shared.state(), HOLD_WAIT_MAX, is_not_held);
        let (_state, result) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(!result.timed_out(), "the gate held nothing in {} s", HOLD_WAIT_MAX.as_secs());
    }
}

impl GateShared {
    fn state(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for down in listener.incoming() {
            let Ok(down) = down else { continue };
            if self.state().passage == Passage::Shut {
                continue;
            }
            let Ok(up) = TcpStream::connect(self.upstream) else { continue };
            let [down, up] = [down, up].map(Arc::new);
            self.state().ends.extend([&down, &up].map(Arc::downgrade));
            for (from, to, is_up) in [(&down, &up, true), (&up, &down, false)] {
                let (shared, from, to) = (Arc::clone(self), Arc::clone(from), Arc::clone(to));
                thread::spawn(move || shared.pass_on(&from, &to, is_up));
            }
        }
    }

    fn pass_on(&self, from: &TcpStream, to: &TcpStream, is_up: bool) {
        let mut buffer = vec![0; 16 << 10];
        // Bytes that still pass after the text.
        let mut n_left = None;
        while let Ok(n_bytes @ 1..) = (&*from).read(&mut buffer) {
            let mut bytes = &buffer[..n_bytes];
            if is_up && n_left.is_none() {
                n_left = self.state().armed.take_if(|(text, _)| holds(bytes, text)).map(|(_, n_bytes)| n_bytes);
            }
            if let Some(n_left) = &mut n_left {
                let n_now = bytes.len().min(*n_left);
                if (&*to).write_all(&bytes[..n_now]).is_err() {
                    break;
                }
                bytes = &bytes[n_now..];
                *n_left -= n_now;
            }
            if n_left.take_if(|n_left| *n_left == 0).is_some() {
                self.state().passage = Passage::Held;
                self.changed.notify_all();
            }
            let is_held = |state: &mut GateState| state.passage == Passage::Held;
            drop(self.changed.wait_while(self.state(), is_held).unwrap_or_else(PoisonError::into_inner));
            if (&*to).write_all(bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    }
}

fn holds(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}
