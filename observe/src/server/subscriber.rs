//! One page's stream of events. It holds no events: it asks the board for the next one when the connection has room.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Bytes;
use futures_util::stream::{Stream, unfold};
use tokio::select;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::server::runs::RunHandle;

/// After so long without an event a comment is sent, which keeps the connection open on its way.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long the last rendering is waited for at the shutdown.
const LAST_WAIT_MAX: Duration = Duration::from_secs(1);

struct Subscriber {
    run: RunHandle,
    /// The version of the newest part that the page has.
    version: u64,
    rendered: watch::Receiver<()>,
    sent: Instant,
    shutdown: CancellationToken,
    /// After the shutdown: how long it still takes at most.
    deadline: Option<Instant>,
}

/// The events of a run, for a page that has those up to `version`, until `shutdown`.
pub fn events(
    run: RunHandle,
    version: u64,
    shutdown: CancellationToken,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let subscriber = Subscriber::new(run, version, shutdown);
    unfold(subscriber, async |mut subscriber| {
        let bytes = subscriber.next().await?;
        Some((Ok(bytes), subscriber))
    })
}

impl Subscriber {
    fn new(run: RunHandle, version: u64, shutdown: CancellationToken) -> Self {
        let rendered = run.board().subscribe();
        let version = run.board().resume_from(version);
        Self { run, version, rendered, sent: Instant::now(), shutdown, deadline: None }
    }

    /// Ends with the shutdown, after the newest state.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            // Asked before the events, so that none comes in between.
            let is_complete = self.deadline.is_some() && self.run.refresh_last();
            if let Some((version, event)) = self.run.board().next_after(self.version) {
                (self.version, self.sent) = (version, Instant::now());
                return Some(event);
            }
            let now = Instant::now();
            if self.sent + KEEP_ALIVE <= now {
                self.sent = now;
                return Some(Bytes::from_static(b":\n\n"));
            }
            let again = match self.deadline {
                None => self.run.refresh(),
                Some(deadline) if is_complete || deadline <= now => return None,
                Some(deadline) => deadline,
            };
            select! {
                _ = self.rendered.changed() => {}
                () = sleep_until(again.min(self.sent + KEEP_ALIVE)) => {}
                () = self.shutdown.cancelled(), if self.deadline.is_none() => {
                    self.deadline = Some(Instant::now() + LAST_WAIT_MAX);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Runs;

    #[tokio::test]
    async fn comment_is_sent_after_ten_quiet_seconds() {
        let run = Runs::default().add_rendered("one", None, |_, _| Vec::new());
        let mut subscriber = Subscriber::new(run, 0, CancellationToken::new());
        subscriber.sent = Instant::now().checked_sub(KEEP_ALIVE).expect("the machine runs for longer");
        assert_eq!(subscriber.next().await.as_deref(), Some(&b":\n\n"[..]));
    }
}
