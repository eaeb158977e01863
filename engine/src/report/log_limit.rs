//! A bound on log lines that peers can cause: of each kind so many a second, with a count of those left out. A disk that a peer
//! can fill is as good as one that it can write to.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tracing::callsite::Identifier;
use tracing::field::FieldSet;
use tracing::{Event, Subscriber, warn};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::bucket::{Bucket, BucketRate};

/// Lines of a kind: at once, as when many workers join, and each second from then on.
const RATE: BucketRate = BucketRate { n_max: 100, per_second: 10 };
/// A line with one of these fields is about a peer, which can cause it as often as it likes.
const PEER_FIELDS: [&str; 2] = ["peer", "worker"];

/// Leaves out what goes beyond the bound.
#[derive(Debug, Default)]
pub(super) struct LogLimit {
    /// By the place in the code; there are as many as the program has.
    kinds: Mutex<HashMap<Identifier, LineKind>>,
}

#[derive(Debug)]
struct LineKind {
    bucket: Bucket,
    n_left_out: u64,
}

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    LeftOut,
    /// It is written, after so many that were not.
    Written {
        n_left_out: u64,
    },
}

impl LogLimit {
    fn line(&self, kind: Identifier, now: Instant) -> Line {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = kinds.entry(kind).or_insert_with(|| LineKind { bucket: Bucket::new(RATE, now), n_left_out: 0 });
        if kind.bucket.take(now) {
            return Line::Written { n_left_out: std::mem::take(&mut kind.n_left_out) };
        }
        kind.n_left_out += 1;
        Line::LeftOut
    }
}

fn is_about_peer(fields: &FieldSet) -> bool {
    PEER_FIELDS.iter().any(|name| fields.field(name).is_some())
}

impl<S: Subscriber> Layer<S> for LogLimit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if !is_about_peer(metadata.fields()) {
            return true;
        }
        match self.line(metadata.callsite(), Instant::now()) {
            Line::LeftOut => false,
            Line::Written { n_left_out: 0 } => true,
            Line::Written { n_left_out } => {
                // Of no peer, so that it is not counted itself.
                warn!(n_left_out, "lines like the next one were left out: there were too many");
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use tracing::callsite::{Callsite, DefaultCallsite};
    use tracing::metadata::Kind;
    use tracing::{Level, Metadata, info, metadata};
    use tracing_subscriber::layer::SubscriberExt;

    use super::{Line, LogLimit, Mutex, PoisonError};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// The goal: a peer cannot fill the log, and lines that name no peer are never left out.
    #[test]
    fn log_lines_about_peers_are_limited_by_kind() {
        let lines = Lines::default();
        let writer = lines.clone();
        let log = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
        tracing::subscriber::with_default(log.with(LogLimit::default()), || {
            for number in 0..10_000 {
                info!(peer = "somebody", number, "refused");
                if number < 1000 {
                    info!(number, "checkpoint");
                }
            }
            info!(worker = 1, "joined");
        });
        let text = String::from_utf8(lines.0.lock().expect("no panic").clone()).expect("text");
        let n_with = |part: &str| text.lines().filter(|line| line.contains(part)).count();
        assert!((100..1000).contains(&n_with("refused")), "{}", n_with("refused"));
        assert_eq!([n_with("checkpoint"), n_with("joined")], [1000, 1]);
    }

    #[test]
    fn suppressed_log_lines_are_counted() {
        static CALLSITE: DefaultCallsite = {
            static METADATA: Metadata<'static> = metadata! {
                name: "a kind", target: "test", level: Level::INFO, fields: &[], callsite: &CALLSITE, kind: Kind::EVENT
            };
            DefaultCallsite::new(&METADATA)
        };
        let limit = LogLimit::default();
        let begun = Instant::now();
        let kind = CALLSITE.metadata().callsite();
        let found: Vec<Line> = (0..150).map(|_| limit.line(kind.clone(), begun)).collect();
        let written = Line::Written { n_left_out: 0 };
        assert_eq!(found, [vec![written; 100], vec![Line::LeftOut; 50]].concat());
        let later = begun + Duration::from_secs(1);
        assert_eq!(limit.line(kind, later), Line::Written { n_left_out: 50 });
    }
}
