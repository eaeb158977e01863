//! The thread that makes and sends spans. What it cannot keep up with is dropped and counted.

use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use events::{RecordedEvent, RunEvent, StepEvent};
use opentelemetry::{Key, KeyValue, Value};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanExporter as _;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::rustls::crypto::ring;
use tokio_util::sync::CancellationToken;
use tracing::{Span, info, warn};

use super::endpoint_variable;
use super::tracer::{StepTracer, n_spans};
use crate::metrics::RunInfo;
use crate::spans::ProcessStart;

/// Steps that wait for the thread. They take some 100 bytes a shard each.
const QUEUED_STEPS_MAX: usize = 1024;
/// Spans with which a request is sent at once; the last step's may be more.
const BATCH_SPANS: usize = 512;
/// How long a request waits for more spans.
const BATCH_WAIT: Duration = Duration::from_secs(1);
/// How long nothing is sent after a request that has failed.
const RETRY_WAIT: Duration = Duration::from_secs(1);
/// How long the last requests may take, when the run is over.
const END_WAIT: Duration = Duration::from_secs(2);

/// The variables that name the protocol. The first counts where both do.
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
/// The only one that is spoken here.
const PROTOCOL: &str = "http/protobuf";

/// Exports steps as traces, on a thread of its own. Never waits, but at the end.
pub struct Otlp {
    /// Until the run is over.
    steps: Option<Sender<QueuedStep>>,
    started: ProcessStart,
    /// Spans of steps for which there was no room.
    n_dropped: usize,
    /// The run is over.
    over: CancellationToken,
    /// Until its end was waited for.
    thread: Option<JoinHandle<Tally>>,
}

/// A step, with when its process started, in seconds since 1970.
struct QueuedStep {
    process_started: f64,
    event: StepEvent,
}

impl Otlp {
    /// An export to the collector that the environment names, if it names one and that can be: otherwise there is a warning.
    pub fn from_env(run: &RunInfo) -> Option<Self> {
        let variable = endpoint_variable()?;
        warn_of_other_protocol();
        match Self::start(run, variable) {
            Ok(otlp) => Some(otlp),
            Err(error) => {
                warn!(
                    %error,
                    "no traces, since {variable} or another variable of OpenTelemetry cannot be used; the run goes on"
                );
                None
            }
        }
    }

    fn start(run: &RunInfo, variable: &'static str) -> Result<Self, Box<dyn std::error::Error>> {
        // For a collector with https. Fails where a provider is installed already, which will do.
        let _ = ring::default_provider().install_default();
        let resource = resource(run);
        let mut exporter = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary).build()?;
        exporter.set_resource(&resource);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (steps, mut inbox) = mpsc::channel(QUEUED_STEPS_MAX);
        let (over, span) = (CancellationToken::new(), Span::current());
        let tracer = StepTracer::new(resource);
        let mut export = Export { tracer, exporter, variable, over: over.clone(), tally: Tally::default() };
        let run = move || {
            span.in_scope(|| runtime.block_on(export.run(&mut inbox)));
            // The name of a collector may still be looked up.
            runtime.shutdown_background();
            export.tally
        };
        let thread = Builder::new().name("otlp".to_owned()).spawn(run)?;
        Ok(Self { steps: Some(steps), started: ProcessStart::default(), n_dropped: 0, over, thread: Some(thread) })
    }

    /// Takes in what happened. With the run's end the last requests are sent.
    pub fn apply(&mut self, recorded: &RecordedEvent) {
        self.started.apply(recorded);
        match &recorded.event {
            RunEvent::Step(event) => self.apply_step(event),
            RunEvent::Ended { .. } => self.end(),
            _ => {}
        }
    }

    fn apply_step(&mut self, event: &StepEvent) {
        let (Some(steps), Some(process_started)) = (&self.steps, self.started.seconds()) else { return };
        match steps.try_reserve() {
            Ok(place) => place.send(QueuedStep { process_started, event: event.clone() }),
            Err(_) => self.n_dropped += n_spans(event),
        }
    }

    fn end(&mut self) {
        self.steps = None;
        self.over.cancel();
    }

    /// Waits for the last requests, for two seconds at most since the run's end, and logs how many spans were exported.
    pub fn finish(&mut self) {
        self.end();
        let Some(thread) = self.thread.take() else { return };
        let Ok(Tally { n_made, n_exported, has_failed }) = thread.join() else { return };
        let n_dropped = self.n_dropped + n_made - n_exported;
        // One warning is enough.
        if n_dropped == 0 || has_failed {
            info!(n_exported, n_dropped, "traces over OTLP end");
        } else {
            warn!(n_exported, n_dropped, "the collector of traces was too slow: spans were dropped");
        }
    }
}

/// What the traces are of, where the environment says nothing else.
fn resource(run: &RunInfo) -> Resource {
    let of_run = [
        ("service.name", "telar"),
        ("service.version", &run.version),
        ("telar.run.id", &run.run_id),
        ("telar.task", &run.task),
    ];
    let of_run = of_run.map(|(name, value)| KeyValue::new(name, value.to_owned()));
    let environment = Resource::builder().build();
    let is_known =
        |name: &Key, value: &Value| name.as_str() != "service.name" || !value.as_str().starts_with("unknown_service");
    let known = environment.iter().filter(|(name, value)| is_known(name, value));
    let known = known.map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
    Resource::builder_empty().with_attributes(of_run).with_attributes(known).build()
}

/// How many spans there were.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    n_made: usize,
    n_exported: usize,
    /// Whether a request has failed.
    has_failed: bool,
}

/// The state of the thread.
struct Export {
    tracer: StepTracer,
    exporter: SpanExporter,
    /// Names the collector.
    variable: &'static str,
    over: CancellationToken,
    tally: Tally,
}

impl Export {
    /// Until the run is over and all is exported, or the time for that is.
    async fn run(&mut self, inbox: &mut Receiver<QueuedStep>) {
        let over = self.over.clone();
        let is_late = async {
            over.cancelled().await;
            sleep(END_WAIT).await;
        };
        tokio::select! {
            () = self.export_all(inbox) => {}
            () = is_late => {}
        }
        self.tally.n_made += self.tracer.n_ended();
        while let Ok(step) = inbox.try_recv() {
            self.tally.n_made += n_spans(&step.event);
        }
    }

    async fn export_all(&mut self, inbox: &mut Receiver<QueuedStep>) {
        // Ends with the run: nothing is queued then.
        while let Some(step) = inbox.recv().await {
            self.add(step);
            let due = Instant::now() + BATCH_WAIT;
            while self.tracer.n_ended() < BATCH_SPANS
                && let Ok(Some(step)) = timeout_at(due, inbox.recv()).await
            {
                self.add(step);
            }
            let is_exported = self.export().await;
            if !is_exported && self.over.is_cancelled() {
                return;
            }
            if !is_exported {
                tokio::select! {
                    () = sleep(RETRY_WAIT) => {}
                    () = self.over.cancelled() => {}
                }
            }
        }
    }

    fn add(&mut self, step: QueuedStep) {
        self.tracer.add(step.process_started, &step.event);
    }

    /// Sends the spans that there are; whether the collector took them.
    async fn export(&mut self) -> bool {
        let spans = self.tracer.take();
        let n_spans = spans.len();
        if n_spans == 0 {
            return true;
        }
        self.tally.n_made += n_spans;
        match self.exporter.export(spans).await {
            Ok(()) => {
                self.tally.n_exported += n_spans;
                true
            }
            Err(error) => {
                if !self.tally.has_failed {
                    warn!(%error, "the collector of {variable} takes no traces: spans are dropped; the run goes on", variable = self.variable);
                }
                self.tally.has_failed = true;
                false
            }
        }
    }
}

/// Warns if the environment asks for another protocol.
fn warn_of_other_protocol() {
    let set = PROTOCOLS
        .into_iter()
        .find_map(|name| Some((name, std::env::var(name).ok().filter(|found| !found.is_empty())?)));
    if let Some((variable, found)) = set.filter(|(_, found)| found != PROTOCOL) {
        warn!(
            "expected {variable} to be {PROTOCOL}, found `{found}`: traces are sent as {PROTOCOL}; name the collector's port for that, \
             usually 4318"
        );
    }
}
