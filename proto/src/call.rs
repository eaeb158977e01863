//! A call of the service as HTTP/2 carries it, on either end: messages one after the other, and a status at the end. What
//! tonic's own streams do, without their copies of each message.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http_body::{Body as _, Frame};
use prost::Message;
use prost::bytes::Bytes;
use tonic::body::Body;
use tonic::codegen::http::header::{CONTENT_TYPE, TE};
use tonic::codegen::http::{HeaderMap, Request, Response, StatusCode, Version};
use tonic::codegen::tokio_stream::{Stream, StreamExt};
use tonic::codegen::{Service, StdError};
use tonic::metadata::GRPC_CONTENT_TYPE;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::framing::{Assembler, FrameError, encode};
use crate::token::Token;

/// Path of the method `Session`.
pub const SESSION: &str = "/telar.v1.Training/Session";
/// Path of the method `FetchDataset`.
pub const FETCH_DATASET: &str = "/telar.v1.Training/FetchDataset";

/// Calls a method: sends the token, if there is one, and any number of messages, and returns the replies, each of at most
/// `n_bytes_max` bytes.
///
/// # Errors
/// If the call does not get through, or is answered with nothing but a status.
pub async fn call<Sent, Heard>(
    mut channel: Channel,
    path: &'static str,
    token: Option<&Token>,
    messages: impl Stream<Item = Sent> + Send + Unpin + 'static,
    n_bytes_max: usize,
) -> Result<Messages<Heard>, Status>
where
    Sent: Message + 'static,
    Heard: Message + Default,
{
    let mut request = Request::post(path)
        .version(Version::HTTP_2)
        .header(TE, "trailers")
        .header(CONTENT_TYPE, GRPC_CONTENT_TYPE)
        .body(Body::new(Outbound::new(messages.map(Ok), StreamEnd::Request)))
        .expect("a method's path is one");
    if let Some(token) = token {
        token.add_to(request.headers_mut());
    }
    let failed = |error: tonic::transport::Error| Status::from_error(StdError::from(error));
    poll_fn(|context| channel.poll_ready(context)).await.map_err(failed)?;
    let response = channel.call(request).await.map_err(failed)?;

    if response.status() != StatusCode::OK {
        return Err(Status::unknown(format!("expected the HTTP status 200, found {}", response.status())));
    }
    let early = Status::from_header_map(response.headers());
    if let Some(status) = early.as_ref().filter(|status| status.code() != Code::Ok) {
        return Err(status.clone());
    }
    let inbound = Messages::new(response.into_body(), n_bytes_max, StreamEnd::Response);
    Ok(Messages { has_ended: early.is_some(), ..inbound })
}

/// The answer to a call: messages with a status after them, or nothing but a status.
pub fn answer<M: Message + 'static>(
    answered: Result<impl Stream<Item = Result<M, Status>> + Send + Unpin + 'static, Status>,
) -> Response<Body> {
    let messages = match answered {
        Ok(messages) => messages,
        Err(status) => return status.into_http(),
    };
    let mut response = Response::new(Body::new(Outbound::new(messages, StreamEnd::Response)));
    response.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
    response
}

/// What ends messages that go one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamEnd {
    /// Nothing but their end.
    Request,
    /// A status.
    Response,
}

/// Messages that come in.
#[derive(Debug)]
pub struct Messages<M> {
    body: Body,
    assembler: Assembler<M>,
    end: StreamEnd,
    has_ended: bool,
}

impl<M: Message + Default> Messages<M> {
    /// Those of a call that came in, each of at most so many bytes.
    pub fn of_request(body: Body, n_bytes_max: usize) -> Self {
        Self::new(body, n_bytes_max, StreamEnd::Request)
    }

    /// From now on each message may have so many bytes.
    pub fn set_message_bytes_max(&mut self, n_bytes_max: usize) {
        self.assembler.set_message_bytes_max(n_bytes_max);
    }

    fn new(body: Body, n_bytes_max: usize, end: StreamEnd) -> Self {
        Self { body, assembler: Assembler::new(n_bytes_max), end, has_ended: false }
    }

    /// The next message; none when the other end has no more. A wait for it may be broken off and begun again.
    ///
    /// # Errors
    /// If something else came, the other end says so, or it is gone. No message comes after that.
    pub async fn message(&mut self) -> Result<Option<M>, Status> {
        // Ends with the stream, whose pieces are asked for one by one.
        while !self.has_ended {
            let next = match self.assembler.take() {
                Ok(None) => poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await,
                Ok(message) => return Ok(message),
                Err(error) => Some(Err(error.into())),
            };
            let ended = match next {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(piece) => {
                        self.assembler.add(piece);
                        continue;
                    }
                    Err(frame) => self.close(frame.into_trailers().ok().as_ref()),
                },
                Some(Err(status)) => Err(status),
                None => self.close(None),
            };
            self.has_ended = true;
            return match ended {
                // Who calls and goes away has said all that it had to say.
                Err(status) if self.end == StreamEnd::Request && status.code() == Code::Cancelled => Ok(None),
                ended => ended.map(|()| None),
            };
        }
        Ok(None)
    }

    /// Whether the messages have ended as they should.
    fn close(&self, trailers: Option<&HeaderMap>) -> Result<(), Status> {
        if self.end == StreamEnd::Response {
            let status = trailers.and_then(Status::from_header_map);
            let status =
                status.unwrap_or_else(|| Status::unknown("expected a status after the last message, found none"));
            if status.code() != Code::Ok {
                return Err(status);
            }
        }
        self.assembler.finish().map_err(FrameError::into)
    }
}

/// Messages that go out.
struct Outbound<S> {
    messages: S,
    /// What is left of the message that was begun.
    pieces: VecDeque<Bytes>,
    end: StreamEnd,
    has_ended: bool,
}

impl<S> Outbound<S> {
    fn new(messages: S, end: StreamEnd) -> Self {
        Self { messages, pieces: VecDeque::new(), end, has_ended: false }
    }
}

impl<M: Message, S: Stream<Item = Result<M, Status>> + Unpin> http_body::Body for Outbound<S> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.pieces.is_empty() && !self.has_ended {
            let status = match ready!(Pin::new(&mut self.messages).poll_next(context)) {
                Some(Ok(message)) => {
                    self.pieces = encode(&message);
                    None
                }
                Some(Err(status)) => Some(status),
                None => Some(Status::ok("")),
            };
            if let Some(status) = status {
                self.has_ended = true;
                if self.end == StreamEnd::Response {
                    let mut trailers = HeaderMap::new();
                    let added = status.add_header(&mut trailers);
                    return Poll::Ready(Some(added.map(|()| Frame::trailers(trailers))));
                }
            }
        }
        Poll::Ready(self.pieces.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended
    }
}
