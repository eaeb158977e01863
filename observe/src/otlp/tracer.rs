//! The spans of a step, as OpenTelemetry's SDK makes them: its sampler decides which steps are exported.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use events::StepEvent;
use opentelemetry::trace::{Span as _, SpanBuilder, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span, SpanData, SpanProcessor};

use crate::spans::{PhaseSpan, StepSpans};

/// Makes spans, and holds the ones that wait to be exported.
#[derive(Debug)]
pub struct StepTracer {
    /// Whose settings the tracer goes by.
    _provider: SdkTracerProvider,
    tracer: SdkTracer,
    ended: EndedSpans,
}

impl StepTracer {
    /// Settings are those of the environment, such as `OTEL_TRACES_SAMPLER`.
    pub fn new(resource: Resource) -> Self {
        let ended = EndedSpans::default();
        let provider = SdkTracerProvider::builder().with_span_processor(ended.clone()).with_resource(resource).build();
        let scope = InstrumentationScope::builder("telar").with_version(env!("CARGO_PKG_VERSION")).build();
        Self { tracer: provider.tracer_with_scope(scope), _provider: provider, ended }
    }

    /// Makes the spans of a step of a process that started so many seconds after 1970.
    pub fn add(&self, process_started: f64, event: &StepEvent) {
        let process_started = UNIX_EPOCH + Duration::try_from_secs_f64(process_started).unwrap_or_default();
        let start = |name: &'static str, at: Duration, attributes: Vec<KeyValue>, parent: &Context| {
            let builder =
                SpanBuilder::from_name(name).with_start_time(process_started + at).with_attributes(attributes);
            self.tracer.build_with_context(builder, parent)
        };
        let time = |at: Duration| -> SystemTime { process_started + at };
        let spans = StepSpans::new(event);
        let step = start("step", spans.step.start, attributes_of(event), &Context::new());
        if !step.span_context().is_sampled() {
            return;
        }
        let step = Context::new().with_span(step);
        for PhaseSpan { name, span, .. } in phases(&spans) {
            start(name, span.start, Vec::new(), &step).end_with_timestamp(time(span.end));
        }
        for task in &spans.tasks {
            let [shard, worker] = [("telar.shard", task.shard.into()), ("telar.worker", number(task.worker))];
            let attributes = || [shard, worker].map(|(name, number): (_, i64)| KeyValue::new(name, number)).to_vec();
            let shard = Context::new().with_span(start("shard", task.assigned, attributes(), &step));
            start("compute", task.started, attributes(), &shard).end_with_timestamp(time(task.finished));
            shard.span().end_with_timestamp(time(task.arrived));
        }
        step.span().end_with_timestamp(time(spans.step.end));
    }

    /// The spans since the last call.
    pub fn take(&self) -> Vec<SpanData> {
        std::mem::take(&mut self.ended.lock())
    }

    /// How many spans there are since then.
    pub fn n_ended(&self) -> usize {
        self.ended.lock().len()
    }
}

/// How many spans a step has: itself, what the coordinator did, and two for each shard.
pub fn n_spans(event: &StepEvent) -> usize {
    1 + phases(&StepSpans::new(event)).count() + 2 * event.tasks.len()
}

/// Those that took any time.
fn phases(spans: &StepSpans) -> impl Iterator<Item = &PhaseSpan> {
    spans.phases.iter().filter(|phase| phase.span.start < phase.span.end)
}

fn attributes_of(event: &StepEvent) -> Vec<KeyValue> {
    let record = &event.record;
    let mut attributes = vec![
        KeyValue::new("telar.step", number(record.step)),
        KeyValue::new("telar.epoch", i64::from(record.epoch)),
        KeyValue::new("telar.samples", number(record.n_samples)),
        KeyValue::new("telar.workers", number(event.n_active as u64)),
    ];
    attributes.extend(Some(record.loss).filter(|loss| loss.is_finite()).map(|loss| KeyValue::new("telar.loss", loss)));
    attributes
}

/// As OTLP has whole numbers.
fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Where the SDK puts spans that have ended.
#[derive(Clone, Debug, Default)]
struct EndedSpans(Arc<Mutex<Vec<SpanData>>>);

impl EndedSpans {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<SpanData>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SpanProcessor for EndedSpans {
    fn on_start(&self, _span: &mut Span, _parent: &Context) {}

    fn on_end(&self, span: SpanData) {
        self.lock().push(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}
