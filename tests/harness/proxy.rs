//! A proxy between one worker and the coordinator that stops at an exact byte of what they say to one another, and then
//! breaks the connection in one of several ways. It follows HTTP/2 just as far as it takes to see where messages begin and
//! end. Connections after the first one pass through untouched.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::SockRef;

/// How long the byte may take to come.
const BYTE_WAIT_MAX: Duration = Duration::from_mins(1);
/// How long a peer may read nothing. Shorter than the wait for the byte, which cannot be given up meanwhile.
const WRITE_WAIT_MAX: Duration = Duration::from_secs(30);
/// What a client of HTTP/2 says first.
const PREFACE_BYTES: usize = 24;
/// What a frame of HTTP/2 begins with: length, type, flags, stream.
const FRAME_HEAD_BYTES: usize = 9;
/// The type of frames that hold messages.
const DATA: u8 = 0;
/// The flag of such a frame that it is padded, which ours are not.
const PADDED: u8 = 8;
/// The stream of the session: a client's first.
const SESSION: u32 = 1;
/// What a message of gRPC begins with: whether it is compressed, and its length. Then comes the tag of its kind.
const MESSAGE_HEAD_BYTES: usize = 5;

/// Messages at which the proxy can stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// All that a replica is, to the worker.
    State,
    /// An update and the next work, to the worker.
    Update,
    /// A shard's result, to the coordinator.
    ShardDone,
    /// A result of the validation, to the coordinator.
    BatchDone,
}

/// Bytes of a message at which the proxy can stop: what is before it, and itself, has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Byte {
    /// The one in the middle.
    Middle,
    /// The last one.
    Last,
}

/// What is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// The way that the message goes.
    OneWay,
    /// Both ways.
    BothWays,
}

/// A running proxy.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    upstream: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    armed: Option<Trigger>,
    flow: FlowState,
    /// Both ends of every connection, to wake the threads that wait for them.
    ends: Vec<Weak<TcpStream>>,
    n_connections: usize,
    is_over: bool,
}

/// A byte that is waited for.
struct Trigger {
    message: Message,
    /// Messages of its kind still to come, itself among them.
    nth: usize,
    byte: Byte,
    blocked: Blocked,
}

/// How the first connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlowState {
    Flowing,
    Held(Direction, Blocked),
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

impl Message {
    fn direction(self) -> Direction {
        match self {
            Self::State | Self::Update => Direction::Down,
            Self::ShardDone | Self::BatchDone => Direction::Up,
        }
    }

    /// The byte that it begins with: the number of its field, and that its length follows.
    fn tag(self) -> u8 {
        let field = match self {
            Self::State => 2,
            Self::Update | Self::ShardDone => 3,
            Self::BatchDone => 4,
        };
        field << 3 | 2
    }
}

impl Proxy {
    /// Starts a proxy before a coordinator's address.
    pub fn start(upstream: &str) -> Self {
        let upstream = upstream.strip_prefix("http://").expect("an address of the web").parse().expect("a socket");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let state = State { armed: None, flow: FlowState::Flowing, ends: Vec::new(), n_connections: 0, is_over: false };
        let shared = Arc::new(Shared { upstream, state: Mutex::new(state), changed: Condvar::new() });
        let accepting = Arc::clone(&shared);
        let thread = Some(thread::spawn(move || accepting.accept(&listener)));
        Self { address, shared, thread }
    }

    /// Where the worker finds it.
    pub fn address(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Asks it to stop in the nth message of a kind from now on, counted from 1.
    pub fn stop_at(&self, message: Message, nth: usize, byte: Byte, blocked: Blocked) {
        self.shared.state().armed = Some(Trigger { message, nth, byte, blocked });
    }

    /// Waits until it has stopped.
    pub fn wait_until_stopped(&self) {
        let is_flowing = |state: &mut State| state.flow == FlowState::Flowing;
        let waited = self.shared.changed.wait_timeout_while(self.shared.state(), BYTE_WAIT_MAX, is_flowing);
        let (state, result) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(!result.timed_out(), "the byte did not come in {} s", BYTE_WAIT_MAX.as_secs());
        assert!(matches!(state.flow, FlowState::Held(..)), "{:?}", state.flow);
    }

    /// Lets pass what it held.
    pub fn go_on(&self) {
        self.shared.state().flow = FlowState::Flowing;
        self.shared.changed.notify_all();
    }

    /// Closes the connection as a system does for a process that ended, without what has not passed yet.
    pub fn close(&self) {
        self.shared.close();
    }

    /// Closes the connection in the way that tells both ends of an error.
    pub fn reset(&self) {
        for end in self.shared.state().ends.iter().filter_map(Weak::upgrade) {
            SockRef::from(&*end).set_linger(Some(Duration::ZERO)).expect("an open socket");
        }
        self.shared.close();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.state().is_over = true;
        self.shared.close();
        // Wakes the thread that accepts; fails if it has ended already.
        let _ = TcpStream::connect(self.address);
        let ended = self.thread.take().expect("it is joined once").join();
        assert!(ended.is_ok() || thread::panicking(), "the proxy had a fault");
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for down in listener.incoming() {
            if self.state().is_over {
                return;
            }
            let down = down.expect("a connection");
            // A coordinator that is gone refuses connections.
            let Ok(up) = TcpStream::connect(self.upstream) else { continue };
            let ends = [down, up].map(|end| {
                end.set_nodelay(true).expect("an open socket");
                // A peer that reads nothing ends its connection, and not the test's patience.
                end.set_write_timeout(Some(WRITE_WAIT_MAX)).expect("a time above 0");
                Arc::new(end)
            });
            let mut state = self.state();
            state.n_connections += 1;
            let is_first = state.n_connections == 1;
            state.ends.extend(ends.iter().map(Arc::downgrade));
            let [down, up] = ends;
            for (direction, from, to) in [(Direction::Up, &down, &up), (Direction::Down, &up, &down)] {
                let (shared, from, to) = (Arc::clone(self), Arc::clone(from), Arc::clone(to));
                let reading = is_first.then(|| Reading::new(direction));
                thread::spawn(move || shared.pass_on(&from, &to, reading));
            }
        }
    }

    /// Passes on what comes, until it ends or this is closed. The ends close with the last thread that has them.
    fn pass_on(&self, from: &TcpStream, to: &TcpStream, mut reading: Option<Reading>) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(n_bytes @ 1..) = (&*from).read(&mut buffer) {
            let mut bytes = &buffer[..n_bytes];
            while !bytes.is_empty() {
                let (now, stop) = match &mut reading {
                    None => (bytes.len(), None),
                    Some(reading) => {
                        if self.wait_until_flowing(reading.direction) == FlowState::Closed {
                            return;
                        }
                        reading.advance(bytes, &mut self.state().armed)
                    }
                };
                // Locked until the bytes are out: an answer to them finds it stopped, however soon it comes.
                let stopping = stop.map(|flow| {
                    let mut state = self.state();
                    state.flow = flow;
                    state
                });
                if (&*to).write_all(&bytes[..now]).is_err() {
                    return;
                }
                bytes = &bytes[now..];
                if stopping.is_some() {
                    self.changed.notify_all();
                }
            }
        }
        let is_closed = reading.is_some() && self.state().flow == FlowState::Closed;
        if !is_closed {
            // The other end may be gone too.
            let _ = to.shutdown(Shutdown::Write);
        }
    }

    fn wait_until_flowing(&self, direction: Direction) -> FlowState {
        let is_held = |state: &mut State| match state.flow {
            FlowState::Held(held, Blocked::OneWay) => held == direction,
            FlowState::Held(_, Blocked::BothWays) => true,
            FlowState::Flowing | FlowState::Closed => false,
        };
        self.changed.wait_while(self.state(), is_held).unwrap_or_else(PoisonError::into_inner).flow
    }

    fn close(&self) {
        let mut state = self.state();
        state.flow = FlowState::Closed;
        for end in state.ends.drain(..).filter_map(|end| end.upgrade()) {
            // Sends the peer nothing, but ends the wait of a thread that reads here.
            let _ = end.shutdown(Shutdown::Read);
        }
        self.changed.notify_all();
    }
}

/// How far one direction of an HTTP/2 connection is understood.
struct Reading {
    direction: Direction,
    /// Bytes of the preface or of a frame without messages still to come.
    to_skip: usize,
    frame_head: Vec<u8>,
    /// Bytes of a frame with messages still to come.
    frame_rest: usize,
    message_head: Vec<u8>,
    message_rest: usize,
    /// Bytes of the message at hand up to the one waited for, and what then holds.
    until_stop: Option<(usize, FlowState)>,
}

impl Reading {
    fn new(direction: Direction) -> Self {
        let to_skip = if direction == Direction::Up { PREFACE_BYTES } else { 0 };
        Self {
            direction,
            to_skip,
            frame_head: Vec::new(),
            frame_rest: 0,
            message_head: Vec::new(),
            message_rest: 0,
            until_stop: None,
        }
    }

    /// Reads on; how many of the bytes may pass now, and whether this stops after them.
    fn advance(&mut self, bytes: &[u8], armed: &mut Option<Trigger>) -> (usize, Option<FlowState>) {
        let mut place = 0;
        while place < bytes.len() {
            let rest = &bytes[place..];
            if self.to_skip > 0 {
                let n_bytes = self.to_skip.min(rest.len());
                self.to_skip -= n_bytes;
                place += n_bytes;
            } else if self.frame_rest > 0 {
                let n_bytes = self.advance_message(&rest[..self.frame_rest.min(rest.len())], armed);
                self.frame_rest -= n_bytes;
                place += n_bytes;
                if let Some((_, flow)) = self.until_stop.take_if(|(n_bytes, _)| *n_bytes == 0) {
                    return (place, Some(flow));
                }
            } else {
                self.frame_head.push(rest[0]);
                place += 1;
                self.begin_frame();
            }
        }
        (bytes.len(), None)
    }

    fn begin_frame(&mut self) {
        let Ok([a, b, c, kind, flags, stream @ ..]) = <[u8; FRAME_HEAD_BYTES]>::try_from(self.frame_head.as_slice())
        else {
            return;
        };
        self.frame_head.clear();
        let n_bytes = u32::from_be_bytes([0, a, b, c]) as usize;
        if kind == DATA && u32::from_be_bytes(stream) == SESSION {
            assert_eq!(flags & PADDED, 0, "a frame is padded");
            self.frame_rest = n_bytes;
        } else {
            self.to_skip = n_bytes;
        }
    }

    /// Reads on in a message; how many of the bytes, at least one.
    fn advance_message(&mut self, bytes: &[u8], armed: &mut Option<Trigger>) -> usize {
        if self.message_rest == 0 {
            self.message_head.push(bytes[0]);
            self.begin_message(armed);
            return 1;
        }
        let until_stop = self.until_stop.as_ref().map_or(usize::MAX, |(n_bytes, _)| *n_bytes);
        let n_bytes = self.message_rest.min(bytes.len()).min(until_stop);
        self.message_rest -= n_bytes;
        if let Some((until_stop, _)) = &mut self.until_stop {
            *until_stop -= n_bytes;
        }
        n_bytes
    }

    fn begin_message(&mut self, armed: &mut Option<Trigger>) {
        let Ok([_, length @ .., tag]) = <[u8; MESSAGE_HEAD_BYTES + 1]>::try_from(self.message_head.as_slice()) else {
            return;
        };
        self.message_head.clear();
        // The tag is its first byte, and none of ours is as short as that.
        self.message_rest = u32::from_be_bytes(length) as usize - 1;
        let is_waited_for = |trigger: &mut Trigger| {
            if trigger.message.direction() != self.direction || trigger.message.tag() != tag {
                return false;
            }
            trigger.nth -= 1;
            trigger.nth == 0
        };
        if let Some(Trigger { byte, blocked, .. }) = armed.take_if(is_waited_for) {
            let n_bytes = match byte {
                Byte::Middle => self.message_rest / 2,
                Byte::Last => self.message_rest,
            };
            self.until_stop = Some((n_bytes, FlowState::Held(self.direction, blocked)));
        }
    }
}
