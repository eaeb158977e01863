//! Messages as gRPC puts them into a stream of bytes, both ways: a flag, a length, the message. What is large in one goes
//! out as it lies, and comes in as it came, without a copy. Knows no connection.

use std::collections::VecDeque;
use std::marker::PhantomData;

use prost::bytes::buf::UninitSlice;
use prost::bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::{DecodeError, Message};
use tonic::Status;

/// Bytes that stand before each message.
const HEADER_BYTES: usize = 5;
/// The flag of a message that is not compressed.
const PLAIN: u8 = 0;
/// What is shorter is copied: it costs less than a frame of its own, and a handle to it could keep a buffer alive that is many
/// times its size.
const LARGE_BYTES_MIN: usize = 64 << 10;

/// A stream that holds no messages.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FrameError {
    /// A flag that asks for something else.
    #[error("expected a message that is not compressed, found the flag {found}")]
    Compressed {
        /// The flag.
        found: u8,
    },
    /// A message that is too long.
    #[error("expected a message of at most {n_bytes_max} bytes, found one of {found}")]
    Length {
        /// Bytes that it may have.
        n_bytes_max: usize,
        /// Bytes that it says it has.
        found: usize,
    },
    /// Not the message that should be there.
    #[error("expected a message, found none: {0}")]
    Message(#[from] DecodeError),
    /// A stream that ends within a message.
    #[error("expected the rest of a message, found the end of the stream")]
    Torn,
}

impl From<FrameError> for Status {
    fn from(error: FrameError) -> Self {
        let words = error.to_string();
        match error {
            FrameError::Compressed { .. } => Self::unimplemented(words),
            FrameError::Length { .. } => Self::out_of_range(words),
            FrameError::Message(_) | FrameError::Torn => Self::internal(words),
        }
    }
}

/// A message with its header, in pieces: what is large in it is a piece of its own, and a handle to where it lies.
pub fn encode(message: &impl Message) -> VecDeque<Bytes> {
    let n_bytes = message.encoded_len();
    let mut pieces = Pieces::default();
    pieces.put_u8(PLAIN);
    pieces.put_u32(u32::try_from(n_bytes).expect("messages are within the bounds of the wire"));
    message.encode(&mut pieces).expect("pieces have room for any message");
    pieces.close();
    pieces.closed
}

/// What takes a message's bytes when it is encoded.
#[derive(Debug, Default)]
struct Pieces {
    closed: VecDeque<Bytes>,
    /// The piece that is written to.
    open: BytesMut,
}

impl Pieces {
    fn close(&mut self) {
        if !self.open.is_empty() {
            self.closed.push_back(self.open.split().freeze());
        }
    }
}

#[expect(unsafe_code, reason = "a message is encoded into a `BufMut`, and none of those that there are takes a handle")]
// SAFETY: what the trait asks for is what it asks of the `BytesMut`, which all three functions give on to as they are; `put`
// writes to nothing else.
unsafe impl BufMut for Pieces {
    fn remaining_mut(&self) -> usize {
        self.open.remaining_mut()
    }

    unsafe fn advance_mut(&mut self, n_bytes: usize) {
        // SAFETY: the caller has written so many bytes to `chunk_mut`, which is the open piece's.
        unsafe { self.open.advance_mut(n_bytes) }
    }

    fn chunk_mut(&mut self) -> &mut UninitSlice {
        self.open.chunk_mut()
    }

    /// Of `Bytes`, which is what a message has for its large fields, `copy_to_bytes` copies nothing.
    fn put<T: Buf>(&mut self, mut source: T) {
        if source.remaining() < LARGE_BYTES_MIN {
            self.open.put(source);
        } else {
            self.close();
            self.closed.push_back(source.copy_to_bytes(source.remaining()));
        }
    }
}

/// Puts messages together again from a stream's pieces, however it was cut.
#[derive(Debug)]
pub struct Assembler<M> {
    pieces: Chain,
    /// Bytes of the message that is awaited, once its header is here.
    awaited: Option<usize>,
    n_bytes_max: usize,
    message: PhantomData<fn() -> M>,
}

impl<M: Message + Default> Assembler<M> {
    /// One for messages of at most so many bytes.
    pub fn new(n_bytes_max: usize) -> Self {
        Self { pieces: Chain::default(), awaited: None, n_bytes_max, message: PhantomData }
    }

    /// From now on each message may have so many bytes.
    pub fn set_message_bytes_max(&mut self, n_bytes_max: usize) {
        self.n_bytes_max = n_bytes_max;
    }

    /// Adds what came next. Who adds no more than [`take`](Self::take) asks for bounds what is held here: to a message and a
    /// piece.
    pub fn add(&mut self, piece: Bytes) {
        self.pieces.add(piece);
    }

    /// The next message, if all of it is here.
    ///
    /// # Errors
    /// If what is here begins no message; nothing that follows is of use then.
    pub fn take(&mut self) -> Result<Option<M>, FrameError> {
        if self.awaited.is_none() && self.pieces.remaining() >= HEADER_BYTES {
            self.awaited = Some(self.take_header()?);
        }
        let Some(n_bytes) = self.awaited.take_if(|n_bytes| self.pieces.remaining() >= *n_bytes) else {
            return Ok(None);
        };
        Ok(Some(M::decode((&mut self.pieces).take(n_bytes))?))
    }

    fn take_header(&mut self) -> Result<usize, FrameError> {
        let flag = self.pieces.get_u8();
        if flag != PLAIN {
            return Err(FrameError::Compressed { found: flag });
        }
        let (found, n_bytes_max) = (self.pieces.get_u32() as usize, self.n_bytes_max);
        if found > n_bytes_max { Err(FrameError::Length { n_bytes_max, found }) } else { Ok(found) }
    }

    /// Whether the stream may end here.
    ///
    /// # Errors
    /// If it may not.
    pub fn finish(&self) -> Result<(), FrameError> {
        let is_between = self.awaited.is_none() && !self.pieces.has_remaining();
        if is_between { Ok(()) } else { Err(FrameError::Torn) }
    }
}

/// Pieces one after the other, of which what lies in one piece is taken without a copy.
#[derive(Debug, Default)]
struct Chain {
    pieces: VecDeque<Bytes>,
    /// Short pieces that came after these.
    last: BytesMut,
    n_bytes: usize,
}

impl Chain {
    fn add(&mut self, piece: Bytes) {
        self.n_bytes += piece.len();
        if piece.len() < LARGE_BYTES_MIN {
            self.last.extend_from_slice(&piece);
        } else {
            self.close();
            self.pieces.push_back(piece);
        }
    }

    fn close(&mut self) {
        if !self.last.is_empty() {
            self.pieces.push_back(self.last.split().freeze());
        }
    }
}

impl Buf for Chain {
    fn remaining(&self) -> usize {
        self.n_bytes
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&self.last[..], |piece| &piece[..])
    }

    fn advance(&mut self, n_bytes: usize) {
        let mut left = n_bytes;
        while let Some(piece) = self.pieces.front_mut().filter(|_| left > 0) {
            let n_here = left.min(piece.len());
            piece.advance(n_here);
            left -= n_here;
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
        self.last.advance(left);
        self.n_bytes -= n_bytes;
    }

    fn copy_to_bytes(&mut self, n_bytes: usize) -> Bytes {
        self.close();
        match self.pieces.front_mut() {
            Some(piece) if piece.len() >= n_bytes => {
                let taken = piece.slice(..n_bytes);
                self.advance(n_bytes);
                taken
            }
            _ => {
                let mut taken = BytesMut::with_capacity(n_bytes);
                taken.put(self.take(n_bytes));
                taken.freeze()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;
    use crate::limits::{PARAMS_MAX, message_bytes_max};
    use crate::v1::worker_message::Kind;
    use crate::v1::{Fence, Heartbeat, Leaving, ShardDone, WorkerMessage};

    const N_BYTES_MAX: usize = message_bytes_max(PARAMS_MAX);

    fn result(gradient_sum: Vec<u8>) -> WorkerMessage {
        let fence = Some(Fence { run_id: "0123456789abcdef".to_owned(), coordinator_id: 1 });
        let gradient_sum = gradient_sum.into();
        let done = ShardDone { fence, step: 7, loss_sum: 0.5, gradient_sum, slot: Some(1), ..ShardDone::default() };
        WorkerMessage { kind: Some(Kind::ShardDone(done)) }
    }

    /// Messages of all sizes: short ones, gradients that are copied, and gradients that are not.
    fn any_message() -> impl Strategy<Value = WorkerMessage> {
        let gradient = (any::<u8>(), 0..3 * LARGE_BYTES_MIN).prop_map(|(first, n_bytes)| {
            result((0..251_u8).cycle().take(n_bytes).map(|place| first.wrapping_add(place)).collect())
        });
        let heartbeat = any::<u64>().prop_map(|step| Kind::Heartbeat(Heartbeat { step }));
        let leaving = any::<String>().prop_map(|reason| Kind::Leaving(Leaving { reason }));
        let short = prop_oneof![heartbeat, leaving].prop_map(|kind| WorkerMessage { kind: Some(kind) });
        prop_oneof![gradient, short, Just(WorkerMessage::default())]
    }

    /// As any other program writes it: the flag, the length, and what prost makes of the message.
    fn stock(messages: &[WorkerMessage]) -> Vec<u8> {
        let stock = |message: &WorkerMessage| {
            let encoded = message.encode_to_vec();
            let n_bytes = u32::try_from(encoded.len()).expect("a short message");
            [&[0], &n_bytes.to_be_bytes()[..], &encoded].concat()
        };
        messages.iter().flat_map(stock).collect()
    }

    /// All messages in a stream that comes in pieces, and how it ended.
    fn assemble<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<WorkerMessage>, Result<(), FrameError>) {
        let (mut assembler, mut messages) = (Assembler::new(N_BYTES_MAX), Vec::new());
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

    #[test]
    fn gradient_is_encoded_and_decoded_without_copy() {
        let message = result(vec![3; LARGE_BYTES_MIN]);
        let place = |message: &WorkerMessage| match &message.kind {
            Some(Kind::ShardDone(done)) => done.gradient_sum.as_ptr(),
            other => panic!("a shard's result, not {other:?}"),
        };
        let mut assembler = Assembler::new(N_BYTES_MAX);
        let mut pieces = encode(&message);
        assert_eq!(pieces.iter().filter(|piece| piece.as_ptr() == place(&message)).count(), 1);
        pieces.drain(..).for_each(|piece| assembler.add(piece));
        let found = assembler.take().expect("a message").expect("a whole one");
        assert_eq!(place(&found), place(&message));

        // From a program that writes it in one piece, and the one after it too.
        let stream = Bytes::from(stock(&[message.clone(), message]));
        let ends = stream.as_ptr_range();
        assembler.add(stream);
        for _ in 0..2 {
            let found: WorkerMessage = assembler.take().expect("a message").expect("a whole one");
            assert!(ends.contains(&place(&found)));
        }
        assert_eq!(assembler.finish(), Ok(()));
    }

    #[test]
    fn invalid_frame_is_reported_with_reason() {
        let check = |stream: &[u8], part: &str| {
            let error = assemble([stream]).1.expect_err(part);
            assert!(error.to_string().contains(part), "`{error}` does not say `{part}`");
        };
        check(&[1, 0, 0, 0, 0], "not compressed, found the flag 1");
        check(&[0, 0, 0, 0, 2, 0xff, 0xff], "expected a message, found none");
        check(&[0, 0, 0, 0], "found the end of the stream");
        check(&[0, 0, 0, 0, 2, 0x32], "found the end of the stream");
        // Before anything of it is awaited.
        check(&[&[0][..], &u32::MAX.to_be_bytes()].concat(), "at most 50397184 bytes, found one of 4294967295");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn framing_matches_grpc_and_reads_any_chunking(
            messages in prop::collection::vec(any_message(), 1..4),
            cuts in prop::collection::vec(any::<Index>(), 0..8),
        ) {
            let stream = stock(&messages);
            prop_assert_eq!(messages.iter().flat_map(encode).flatten().collect::<Vec<u8>>(), stream.clone());
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let (found, ended) = assemble(cuts.windows(2).map(|ends| &stream[ends[0]..ends[1]]));
            prop_assert_eq!(ended, Ok(()));
            prop_assert_eq!(found, messages);
        }

        #[test]
        fn truncated_stream_ends_with_error(
            messages in prop::collection::vec(any_message(), 1..3),
            cut in any::<Index>(),
        ) {
            let stream = stock(&messages);
            let (found, ended) = assemble([&stream[..cut.index(stream.len())]]);
            let n_bytes_found = stock(&found).len();
            prop_assert_eq!(&found[..], &messages[..found.len()]);
            prop_assert_eq!(ended.is_ok(), n_bytes_found == cut.index(stream.len()));
        }

        #[test]
        fn damaged_stream_never_panics(
            messages in prop::collection::vec(any_message(), 1..3),
            changes in prop::collection::vec((any::<Index>(), any::<u8>()), 1..16),
            piece_bytes in 1_usize..100_000,
        ) {
            let mut stream = stock(&messages);
            for (place, byte) in changes {
                let place = place.index(stream.len());
                stream[place] = byte;
            }
            let (found, _) = assemble(stream.chunks(piece_bytes));
            prop_assert!(found.len() <= stream.len() / HEADER_BYTES);
        }
    }
}
