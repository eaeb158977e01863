//! What a collector gets over OTLP. Each run is a process of its own, for its environment variables: this program once more, with
//! the test that the others ignore.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use events::{Figures, RecordedEvent, RunEvent, StepCosts, StepEvent, StepRecord, TaskSpan};
use observe::metrics::RunInfo;
use observe::otlp::Otlp;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;
use tokio::process::Command;

/// When the made-up coordinator started, in seconds since 1970.
const STARTED: u64 = 1_790_000_000;
/// From the beginning of a step to that of the next, and how long a step takes.
const STEP: Duration = Duration::from_micros(10_250);
/// Itself, six phases of the coordinator that take time, and two spans for each of four shards.
const SPANS_PER_STEP: usize = 1 + 6 + 2 * 4;
/// An unanswered request times out after ten minutes: a run that waited for it would take longer than any busy machine does.
const LONG_TIMEOUT: [(&str, &str); 1] = [("OTEL_EXPORTER_OTLP_TIMEOUT", "600000")];
const WAIT_MAX: Duration = Duration::from_mins(1);

/// The time is the one at which each step is over.
fn made_up_step(step: u32) -> RecordedEvent {
    let begun = STEP * (step - 1);
    let record = StepRecord {
        step: step.into(),
        epoch: 1 + step / 200,
        loss: 1.0 / f64::from(step),
        metrics: Figures::default(),
        n_samples: 32,
        milliseconds: 1e3 * STEP.as_secs_f64(),
        params_blake3: None,
    };
    let task = |shard: u32, worker: u64, started: f64| TaskSpan {
        shard,
        worker,
        assigned: 0.1,
        started,
        finished: started + 3.125,
        arrived: started + 3.5,
    };
    let tasks = vec![task(0, 1, 0.25), task(1, 2, 0.5), task(2, 1, 3.5), task(3, 2, 4.0)];
    let costs = StepCosts {
        compute: Duration::from_micros(6250),
        wait: Duration::from_micros(7400),
        decode: Duration::from_micros(500),
        reduce: Duration::from_micros(400),
        update: Duration::from_micros(900),
        encode: Duration::from_micros(300),
        send: Duration::from_micros(200),
        journal: Duration::ZERO,
    };
    let event = StepEvent { record, workers: vec![1, 2, 1, 2], n_active: 2, costs, begun, tasks };
    let time = Duration::from_secs(STARTED) + begun + STEP;
    RecordedEvent { time: time.as_secs_f64(), event: RunEvent::Step(event) }
}

/// A run of as many steps as the variable says, which come as fast as they can; the last line says how long they and the end took.
#[test]
#[ignore = "the other tests run it, in a process of its own"]
fn run_in_own_process() {
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    let n_steps = std::env::var("TELAR_TEST_STEPS").expect("the other tests set it").parse().expect("a number");
    let run = RunInfo {
        task: "denoising".to_owned(),
        version: "1.2.3".to_owned(),
        run_id: "denoising-001".to_owned(),
        n_workers_expected: 2,
        process_started: 1_790_000_000.0,
    };
    let mut otlp = Otlp::from_env(&run).expect("an endpoint is set");
    let steps: Vec<RecordedEvent> = (1..=n_steps).map(made_up_step).collect();
    let begun = Instant::now();
    for step in &steps {
        otlp.apply(step);
    }
    let applied = begun.elapsed();
    let begun = Instant::now();
    otlp.finish();
    eprintln!("took {} {}", applied.as_millis(), begun.elapsed().as_millis());
}

/// What [`run_in_own_process`] came to.
struct Run {
    /// What it logged.
    log: String,
    /// How long the steps took.
    steps: Duration,
    /// How long the end took.
    end: Duration,
}

impl Run {
    async fn new(n_steps: u32, endpoint: &str, variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "run_in_own_process", "--ignored", "--nocapture"]);
        command.env("TELAR_TEST_STEPS", n_steps.to_string()).env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
        let Output { status, stderr, .. } =
            command.envs(variables.iter().copied()).output().await.expect("it can be started");
        let log = String::from_utf8(stderr).expect("text");
        assert!(status.success(), "{log}");
        let took = log.lines().find_map(|line| line.strip_prefix("took ")).expect("it says how long it took");
        let took: Vec<Duration> =
            took.split(' ').map(|number| Duration::from_millis(number.parse().expect("a number"))).collect();
        Self { steps: took[0], end: took[1], log }
    }

    fn n_warnings(&self) -> usize {
        self.log.lines().filter(|line| line.contains(" WARN ")).count()
    }

    /// A number that the last line of the log has.
    fn count(&self, name: &str) -> usize {
        let (_, rest) = self.log.split_once(&format!(" {name}=")).unwrap_or_else(|| panic!("{name}: {}", self.log));
        rest.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
    }
}

/// What a collector was sent.
type Requests = Arc<Mutex<Vec<(HeaderMap, ExportTraceServiceRequest)>>>;

/// A collector that takes everything.
async fn collector() -> (SocketAddr, Requests) {
    async fn take(State(requests): State<Requests>, headers: HeaderMap, body: Bytes) -> Bytes {
        let request = ExportTraceServiceRequest::decode(body).expect("a request of the protocol");
        requests.lock().expect("no panic").push((headers, request));
        Bytes::new()
    }
    let requests = Requests::default();
    let router = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&requests));
    (serve(router).await, requests)
}

async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// The spans of each trace.
fn traces(requests: &Requests) -> Vec<Vec<Span>> {
    let mut traces: BTreeMap<Vec<u8>, Vec<Span>> = BTreeMap::new();
    for (_, request) in requests.lock().expect("no panic").iter() {
        let scopes = request.resource_spans.iter().flat_map(|spans| &spans.scope_spans);
        for span in scopes.flat_map(|scope| &scope.spans) {
            traces.entry(span.trace_id.clone()).or_default().push(span.clone());
        }
    }
    traces.into_values().collect()
}

fn attribute<'a>(attributes: &'a [KeyValue], name: &str) -> Option<&'a Value> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    found.value.as_ref()?.value.as_ref()
}

fn number(span: &Span, name: &str) -> i64 {
    match attribute(&span.attributes, name) {
        Some(Value::IntValue(number)) => *number,
        other => panic!("expected a whole number for {name}, found {other:?}: {span:?}"),
    }
}

/// Microseconds from the beginning of a step to the beginning and the end of a span, to the nearest 5: a second since 1970 is a number
/// of double precision, to some 0.2 µs.
fn microseconds(span: &Span, step: i64) -> (u64, u64) {
    let begun = Duration::from_secs(STARTED) + STEP * (u32::try_from(step).expect("few steps") - 1);
    let from_begin = |time: u64| {
        // Half of the 5 is added, so that what is early by the rounding is not below 0.
        let duration = Duration::from_nanos(time) + Duration::from_nanos(2500);
        u64::try_from(duration.checked_sub(begun).expect("not before the step").as_micros()).expect("short") / 5 * 5
    };
    (from_begin(span.start_time_unix_nano), from_begin(span.end_time_unix_nano))
}

/// Checks the spans of a step; which it is.
fn check_trace(spans: &[Span]) -> i64 {
    assert_eq!(spans.len(), SPANS_PER_STEP, "{spans:?}");
    let by_id: HashMap<&[u8], &Span> = spans.iter().map(|span| (span.span_id.as_slice(), span)).collect();
    assert_eq!(by_id.len(), spans.len(), "a span's number is there twice");
    let parent = |span: &Span| by_id.get(span.parent_span_id.as_slice()).copied();
    let roots: Vec<&Span> = spans.iter().filter(|span| span.parent_span_id.is_empty()).collect();
    let [root] = roots[..] else { panic!("expected one root: {roots:?}") };
    let step = number(root, "telar.step");
    assert_eq!((root.name.as_str(), number(root, "telar.samples"), number(root, "telar.workers")), ("step", 32, 2));
    assert_eq!(number(root, "telar.epoch"), 1 + step / 200);
    #[expect(clippy::cast_precision_loss, reason = "few steps")]
    let loss = 1.0 / step as f64;
    assert_eq!(attribute(&root.attributes, "telar.loss"), Some(&Value::DoubleValue(loss)));

    let mut found = BTreeSet::new();
    for span in spans {
        let (start, end) = microseconds(span, step);
        let expected_parent = match span.name.as_str() {
            "step" => None,
            "compute" => Some("shard"),
            _ => Some("step"),
        };
        assert_eq!(parent(span).map(|parent| parent.name.as_str()), expected_parent, "{span:?}");
        if let Some(parent) = parent(span) {
            assert!(parent.start_time_unix_nano <= span.start_time_unix_nano, "{span:?}");
            assert!(span.end_time_unix_nano <= parent.end_time_unix_nano, "{span:?}");
        }
        let mut name = span.name.clone();
        if name == "shard" || name == "compute" {
            let [shard, worker] = ["telar.shard", "telar.worker"].map(|name| number(span, name));
            assert_eq!(worker, 1 + shard % 2);
            name = format!("{name} {shard}");
        }
        if span.name == "compute" {
            assert_eq!(number(parent(span).expect("a shard"), "telar.shard"), number(span, "telar.shard"));
        }
        found.insert((name, start, end));
    }
    let expected = [
        ("step", 0, 10_250),
        ("wait", 0, 7500),
        ("decode", 7000, 7500),
        ("reduce", 7500, 7900),
        ("update", 7900, 8800),
        ("encode", 8800, 9100),
        ("send", 9100, 9300),
        ("shard 0", 100, 3750),
        ("compute 0", 250, 3375),
        ("shard 1", 100, 4000),
        ("compute 1", 500, 3625),
        ("shard 2", 100, 7000),
        ("compute 2", 3500, 6625),
        ("shard 3", 100, 7500),
        ("compute 3", 4000, 7125),
    ];
    assert_eq!(found, expected.map(|(name, start, end)| (name.to_owned(), start, end)).into());
    step
}

#[tokio::test]
async fn collector_gets_trace_of_each_step() {
    let (address, requests) = collector().await;
    let variables = [
        ("OTEL_SERVICE_NAME", "night run"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,telar.task=other"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20secret"),
    ];
    let run = Run::new(300, &format!("http://{address}"), &variables).await;
    let mut steps: Vec<i64> = traces(&requests).iter().map(|spans| check_trace(spans)).collect();
    steps.sort_unstable();
    assert_eq!(steps, (1..=300).collect::<Vec<i64>>());
    assert_eq!((run.count("n_exported"), run.count("n_dropped")), (300 * SPANS_PER_STEP, 0), "{}", run.log);
    assert_eq!(run.n_warnings(), 0, "{}", run.log);

    let requests = requests.lock().expect("no panic");
    assert!((2..=20).contains(&requests.len()), "{} requests", requests.len());
    for (headers, request) in requests.iter() {
        assert_eq!(headers["authorization"], "Bearer secret");
        let [spans] = &request.resource_spans[..] else { panic!("expected one resource: {request:?}") };
        let resource = &spans.resource.as_ref().expect("a resource").attributes;
        let expected = [
            ("service.name", "night run"),
            ("service.version", "1.2.3"),
            ("telar.run.id", "denoising-001"),
            ("telar.task", "other"),
            ("deployment.environment.name", "test"),
        ];
        for (name, value) in expected {
            assert_eq!(attribute(resource, name), Some(&Value::StringValue(value.to_owned())), "{name}");
        }
    }
}

#[tokio::test]
async fn sampler_of_environment_chooses_whole_traces() {
    let (address, requests) = collector().await;
    let variables = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.25")];
    let run = Run::new(400, &format!("http://{address}/"), &variables).await;
    let steps: BTreeSet<i64> = traces(&requests).iter().map(|spans| check_trace(spans)).collect();
    // 100 on average; what is beyond five standard deviations of 8.7 comes once in a million runs.
    assert!((56..=144).contains(&steps.len()), "{} steps", steps.len());
    assert_eq!((run.count("n_exported"), run.count("n_dropped")), (steps.len() * SPANS_PER_STEP, 0), "{}", run.log);
    let request = &requests.lock().expect("no panic")[0].1;
    let resource = &request.resource_spans[0].resource.as_ref().expect("a resource").attributes;
    assert_eq!(attribute(resource, "service.name"), Some(&Value::StringValue("telar".to_owned())));
}

#[tokio::test]
async fn absent_collector_is_one_warning_and_does_not_delay_the_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let run = Run::new(300, &format!("http://{address}"), &LONG_TIMEOUT).await;
    assert_eq!(run.n_warnings(), 1, "{}", run.log);
    assert_eq!((run.count("n_exported"), run.count("n_dropped")), (0, 300 * SPANS_PER_STEP), "{}", run.log);
    assert!(run.end < WAIT_MAX, "{:?}", run.end);
}

#[tokio::test]
async fn hanging_collector_is_one_warning_and_delays_no_step_and_the_end_by_two_seconds() {
    let hanging = Router::new().route("/v1/traces", post(std::future::pending::<()>));
    let address = serve(hanging).await;
    let run = Run::new(3000, &format!("http://{address}"), &LONG_TIMEOUT).await;
    assert_eq!(run.n_warnings(), 1, "{}", run.log);
    assert_eq!((run.count("n_exported"), run.count("n_dropped")), (0, 3000 * SPANS_PER_STEP), "{}", run.log);
    assert!(run.steps < WAIT_MAX, "{:?}", run.steps);
    assert!((Duration::from_millis(1900)..WAIT_MAX).contains(&run.end), "{:?}", run.end);
}

#[tokio::test]
async fn protocol_that_is_not_spoken_is_one_warning() {
    let (address, _requests) = collector().await;
    let run = Run::new(3, &format!("http://{address}"), &[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).await;
    assert_eq!(run.n_warnings(), 1, "{}", run.log);
    assert!(run.log.contains("OTEL_EXPORTER_OTLP_PROTOCOL to be http/protobuf, found `grpc`"), "{}", run.log);
    assert_eq!((run.count("n_exported"), run.count("n_dropped")), (3 * SPANS_PER_STEP, 0), "{}", run.log);
}
