//! Messages in a stream of bytes, however it is cut: the first byte says how.

use prost::Message;
use prost::bytes::{Bytes, BytesMut};
use proto::framing::{Assembler, FrameError, encode};
use proto::v1::WorkerMessage;

const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// The messages, and how the stream ended.
type Taken = (Vec<WorkerMessage>, Result<(), FrameError>);

fn assemble<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Taken {
    let (mut assembler, mut messages) = (Assembler::new(MESSAGE_BYTES_MAX), Vec::new());
    for piece in pieces {
        assembler.add(Bytes::copy_from_slice(piece));
        loop {
            match assembler.take() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Err(error)),
            }
        }
    }
    (messages, assembler.finish())
}

/// Whether a stream is messages and nothing else. How it is cut makes no difference, and what was read is written again as what
/// is read from that.
///
/// # Panics
/// If this is not so.
pub fn take(input: &[u8]) -> bool {
    let Some((&cut, stream)) = input.split_first() else { return false };
    // NaN is no equal of itself.
    let words = |taken: &Taken| format!("{taken:?}");
    let whole = assemble([stream].into_iter());
    let in_pieces = assemble(stream.chunks(1 + usize::from(cut)));
    assert_eq!(words(&in_pieces), words(&whole));
    let written: BytesMut = whole.0.iter().flat_map(encode).flatten().collect();
    let again = assemble([&written[..]].into_iter());
    assert_eq!(words(&again), words(&(whole.0.clone(), Ok(()))));
    for message in &whole.0 {
        assert_eq!(message.encode_to_vec().len(), message.encoded_len());
    }
    whole.1.is_ok() && !whole.0.is_empty()
}
