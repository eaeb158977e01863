//! What two machines must agree on: the messages, their bounds, how they lie in a stream, and how numbers lie in bytes and in
//! memory that two processes have. Knows bytes, not meaning: no policy, no clock, no networks.

pub mod buffers;
pub mod busy_poll;
pub mod call;
pub mod framing;
pub mod limits;
pub mod shared;
pub mod tls;
pub mod token;
pub mod values;

/// The messages and the service, as in `telar/v1/training.proto`.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::pedantic,
    clippy::allow_attributes,
    reason = "generated; the .proto file has the documentation"
)]
pub mod v1 {
    tonic::include_proto!("telar.v1");
}

/// The messages' description, for the reflection service.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Version of the programs that talk to one another: both ends have to have the same.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

impl v1::Fence {
    /// Whether a message belongs to this run and this process of its coordinator.
    pub fn is(&self, found: Option<&Self>) -> bool {
        found == Some(self)
    }
}
