//! Every bound that the wire has.

use std::time::Duration;

/// Values of the largest layout: 4 Mi, a hundred times the largest network's.
pub const PARAMS_MAX: usize = 4 << 20;
/// What a message holds besides its numbers, at most.
pub const MESSAGE_OVERHEAD_BYTES_MAX: usize = 64 << 10;
/// Bytes of one piece of a data set.
pub const PIECE_BYTES: usize = 256 << 10;
/// Bytes of one file of a data set: ten times Fashion-MNIST's largest.
pub const DATASET_FILE_BYTES_MAX: u64 = 10 * (16 + 60_000 * 784);
/// Bytes of a text for people, such as a host's name or a reason.
pub const TEXT_BYTES_MAX: usize = 256;
/// Workers at once: connections, sessions, members.
pub const WORKERS_MAX: usize = 1024;
/// Bytes that a peer may send before it has joined: many times what a join, a health check or a reflection takes.
pub const UNADMITTED_BYTES_MAX: usize = 64 << 10;
/// HTTP/2 streams of one connection: a session, a data set, health, reflection, and some to spare.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 8;
/// HTTP/2 window of a stream: some messages of the largest network.
pub const STREAM_WINDOW_BYTES: u32 = 8 << 20;
/// HTTP/2 window of a connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
/// HTTP/2 frame: a gradient of any network fits into one, and is then not put together at the other end.
pub const FRAME_BYTES: u32 = 1 << 20;
/// Messages that wait for a worker before it is taken for one that does not keep up.
pub const OUTBOX_MESSAGES_MAX: usize = 64;
/// Slots of a worker's shared memory for results: with fewer, a worker of four short shards sends some of them through the socket,
/// which makes a step of 1.4 ms longer by a tenth.
pub const RESULT_SLOTS: u32 = 4;
/// Slots of the shared memory for averaged gradients: a worker that is so many steps behind has lost one.
pub const UPDATE_SLOTS: u32 = 4;
/// How often a worker sends a heartbeat at least.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);
/// Messages of a worker that carry no result, heartbeats for the most part: at once, and each second.
pub const SMALL_MESSAGES_AT_ONCE_MAX: u32 = 100;
/// As [`SMALL_MESSAGES_AT_ONCE_MAX`]: ten times what a worker sends.
pub const SMALL_MESSAGES_PER_SECOND_MAX: u32 = 20;
/// Time that a peer has from its connection to its first bytes, and from its stream to its first message.
pub const FIRST_MESSAGE_WAIT_MAX: Duration = Duration::from_secs(10);

/// Vectors of the parameters' length that an optimizer keeps, at most.
pub const OPTIMIZER_SLOTS_MAX: usize = 2;

/// Bytes of the largest message of a layout of `n_params` values: a state, with parameters and what the optimizer keeps.
pub const fn message_bytes_max(n_params: usize) -> usize {
    (1 + OPTIMIZER_SLOTS_MAX) * 4 * n_params + MESSAGE_OVERHEAD_BYTES_MAX
}

/// Bytes of the largest message of a worker: a result, with a gradient.
pub const fn result_bytes_max(n_params: usize) -> usize {
    4 * n_params + MESSAGE_OVERHEAD_BYTES_MAX
}

/// Bytes of gradients and parameters that wait for a worker of a layout of `n_params` values: twice what HTTP/2 holds of them on
/// its way, and two of the largest messages at least.
pub const fn outbox_bytes_max(n_params: usize) -> usize {
    let (n_usual, n_least) = (2 * STREAM_WINDOW_BYTES as usize, 2 * message_bytes_max(n_params));
    if n_least > n_usual { n_least } else { n_usual }
}

const _: () = assert!(PIECE_BYTES + MESSAGE_OVERHEAD_BYTES_MAX <= message_bytes_max(PARAMS_MAX));
const _: () = assert!(8 * TEXT_BYTES_MAX < MESSAGE_OVERHEAD_BYTES_MAX, "the texts of a message fit beside its numbers");
const _: () = assert!(STREAM_WINDOW_BYTES <= CONNECTION_WINDOW_BYTES);
const _: () = assert!(FRAME_BYTES >= 16 << 10 && FRAME_BYTES < 1 << 24, "HTTP/2's own bounds of a frame");
