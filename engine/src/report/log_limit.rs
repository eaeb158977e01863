//! A bound on log lines that peers can cause: of each kind so many a second, with a count of those left out. A disk that a peer
//! can fill is as good as one that it can write to.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tracing::callsite::{Callsite, DefaultCallsite, Identifier};
use tracing::field::{FieldSet, Value};
use tracing::metadata::Kind;
use tracing::{Event, Level, Metadata, Subscriber, metadata};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::bucket::{Bucket, BucketRate};

/// Lines of a kind: at once, as when many workers join, and each second from then on.
const RATE: BucketRate = BucketRate { n_max: 100, per_second: 10 };
/// A line with one of these fields is about a peer, which can cause it as often as it likes.
const PEER_FIELDS: [&str; 2] = ["peer", "worker"];

/// The line that counts those left out.
static LEFT_OUT: DefaultCallsite = {
    static METADATA: Metadata<'static> = metadata! {
        name: "lines left out",
        target: "log",
        level: Level::WARN,
        fields: &["message", "n_left_out"],
        callsite: &LEFT_OUT,
        kind: Kind::EVENT
    };
    DefaultCallsite::new(&METADATA)
};

/// Formats lines, and leaves out what goes beyond the bound. Not a layer or filter: where an event is refused before it is
/// written, tracing-subscriber keeps what each layer made of it, and takes it for the next event's.
#[derive(Debug)]
pub(super) struct Limited<F> {
    format: F,
    limit: LogLimit,
}

#[derive(Debug, Default)]
struct LogLimit {
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

impl<F> Limited<F> {
    /// Nothing was left out so far.
    pub fn new(format: F) -> Self {
        Self { format, limit: LogLimit::default() }
    }
}

impl<S, N, F> FormatEvent<S, N> for Limited<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> std::fmt::Result {
        let metadata = event.metadata();
        if is_about_peer(metadata.fields()) {
            match self.limit.line(metadata.callsite(), Instant::now()) {
                Line::LeftOut => return Ok(()),
                Line::Written { n_left_out: 0 } => {}
                Line::Written { n_left_out } => {
                    with_count(n_left_out, |event| self.format.format_event(context, out.by_ref(), event))?;
                }
            }
        }
        self.format.format_event(context, out, event)
    }
}

/// Calls `format` with an event that says how many lines were left out.
fn with_count(n_left_out: u64, format: impl FnOnce(&Event<'_>) -> std::fmt::Result) -> std::fmt::Result {
    let metadata = LEFT_OUT.metadata();
    let fields = metadata.fields();
    let [message, count] = ["message", "n_left_out"].map(|name| fields.field(name).expect("it is named above"));
    let text = format_args!("lines like the next one were left out: there were too many");
    let values = [(&message, Some(&text as &dyn Value)), (&count, Some(&n_left_out as &dyn Value))];
    format(&Event::new(metadata, &fields.value_set(&values)))
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn suppressed_log_lines_are_counted() {
        let limit = LogLimit::default();
        let begun = Instant::now();
        let kind = LEFT_OUT.metadata().callsite();
        let found: Vec<Line> = (0..150).map(|_| limit.line(kind.clone(), begun)).collect();
        let written = Line::Written { n_left_out: 0 };
        assert_eq!(found, [vec![written; 100], vec![Line::LeftOut; 50]].concat());
        let later = begun + Duration::from_secs(1);
        assert_eq!(limit.line(kind, later), Line::Written { n_left_out: 50 });
    }
}
