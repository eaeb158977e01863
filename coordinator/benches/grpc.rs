//! What it costs to bring a gradient of the denoising network from each worker to the coordinator and an update back, over
//! gRPC between processes of this machine: with the streams that tonic generates, and with ours. Nothing is computed.
//!
//! `--sweep` tries sizes of frames and windows instead.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::bytes::Bytes;
use proto::buffers::Buffers;
use proto::call::{self, Messages, answer, call};
use proto::limits::{CONNECTION_WINDOW_BYTES, FRAME_BYTES, PARAMS_MAX, STREAM_WINDOW_BYTES, message_bytes_max};
use proto::v1::training_client::TrainingClient;
use proto::v1::training_server::{SERVICE_NAME, Training, TrainingServer};
use proto::v1::{
    CoordinatorMessage, DatasetPiece, Encoding, Fence, FetchDatasetRequest, Heartbeat, ShardDone, Update, Work,
    WorkerMessage, coordinator_message, worker_message,
};
use proto::values;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Values of the denoising network's gradient.
const N_VALUES: usize = 163_814;
const N_BYTES_MAX: usize = message_bytes_max(PARAMS_MAX);
/// Steps before the measured ones.
const WARM_UP: usize = 30;
const STEPS: usize = 200;
/// How often each setting is measured, in turn with the others.
const ROUNDS: usize = 7;

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Socket {
    Tcp,
    Unix,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Streams {
    /// What tonic generates.
    Stock,
    Own,
}

/// What is measured.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Setting {
    socket: Socket,
    n_workers: usize,
    streams: Streams,
    /// Whether numbers become bytes and bytes numbers, or the same bytes are sent again and again.
    has_numbers: bool,
    frame_bytes: u32,
    window_bytes: u32,
}

impl Setting {
    const USUAL: Self = Self {
        socket: Socket::Tcp,
        n_workers: 4,
        streams: Streams::Own,
        has_numbers: false,
        frame_bytes: FRAME_BYTES,
        window_bytes: STREAM_WINDOW_BYTES,
    };

    fn connection_window_bytes(self) -> u32 {
        self.window_bytes.max(CONNECTION_WINDOW_BYTES)
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("coordinator") => coordinator(serde_json::from_str(&args[2]).expect("a setting")),
        Some("worker") => worker(serde_json::from_str(&args[2]).expect("a setting"), &args[3]),
        _ if args.iter().any(|arg| arg == "--sweep") => sweep(),
        _ => compare(),
    }
}

/// Both kinds of streams, for each socket and number of workers.
fn compare() {
    println!("| socket | workers | numbers | tonic's streams | ours | ratio |");
    println!("|---|---|---|---|---|---|");
    for has_numbers in [false, true] {
        for (socket, n_workers) in [(Socket::Tcp, 1), (Socket::Tcp, 4), (Socket::Unix, 1), (Socket::Unix, 4)] {
            let setting = Setting { socket, n_workers, has_numbers, ..Setting::USUAL };
            let [stock, own] = medians([Streams::Stock, Streams::Own].map(|streams| Setting { streams, ..setting }));
            let ratio = own / stock;
            println!("| {socket:?} | {n_workers} | {has_numbers} | {stock:.2} ms | {own:.2} ms | {ratio:.2} |");
        }
    }
}

/// Our streams over TCP with other frames and windows, and tonic's with other frames.
fn sweep() {
    let usual = Setting::USUAL;
    println!("| streams | frame | window | ms per worker and step |");
    println!("|---|---|---|---|");
    let frames = [14, 16, 18, 20, 22].map(|power| 1 << power);
    let print = |settings: &[Setting], medians: &[f64]| {
        for (Setting { streams, frame_bytes, window_bytes, .. }, median) in settings.iter().zip(medians) {
            println!("| {streams:?} | {} KiB | {} KiB | {median:.2} |", frame_bytes >> 10, window_bytes >> 10);
        }
    };
    for streams in [Streams::Stock, Streams::Own] {
        let settings = frames.map(|frame_bytes| Setting { streams, frame_bytes, ..usual });
        print(&settings, &medians(settings));
    }
    let settings = [18, 20, 21, 23, 25].map(|power| Setting { window_bytes: 1 << power, ..usual });
    print(&settings, &medians(settings));
}

/// The medians of the settings' medians, all measured in turn so that what else the machine does is shared.
fn medians<const N: usize>(settings: [Setting; N]) -> [f64; N] {
    let mut rounds: [Vec<f64>; N] = std::array::from_fn(|_| Vec::new());
    for _ in 0..ROUNDS {
        for (setting, rounds) in settings.iter().zip(&mut rounds) {
            rounds.push(measure(*setting));
        }
    }
    let medians = rounds.map(|mut times| median(&mut times));
    for (setting, median) in settings.iter().zip(medians) {
        let mut line = serde_json::to_value(setting).expect("a setting");
        line["milliseconds"] = median.into();
        eprintln!("{line}");
    }
    medians
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}

fn this_program() -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program's path"));
    command.stdin(Stdio::null());
    command
}

/// Milliseconds per worker and step, of processes that are new.
fn measure(setting: Setting) -> f64 {
    let setting = serde_json::to_string(&setting).expect("a setting");
    let output = this_program().args(["coordinator", &setting]).stderr(Stdio::inherit()).output().expect("a process");
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number")
}

/// A session, on the coordinator's side.
struct Session {
    inbound: Inbound<WorkerMessage>,
    outbound: mpsc::Sender<Result<CoordinatorMessage, Status>>,
}

enum Inbound<M> {
    Stock(Streaming<M>),
    Own(Messages<M>),
}

impl<M: prost::Message + Default> Inbound<M> {
    async fn message(&mut self) -> Result<Option<M>, Status> {
        match self {
            Self::Stock(messages) => messages.message().await,
            Self::Own(messages) => messages.message().await,
        }
    }
}

/// A coordinator that takes sessions in, with either kind of streams.
#[derive(Clone)]
struct BenchService {
    sessions: mpsc::Sender<Session>,
}

#[tonic::async_trait]
impl Training for BenchService {
    type SessionStream = ReceiverStream<Result<CoordinatorMessage, Status>>;
    type FetchDatasetStream = ReceiverStream<Result<DatasetPiece, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (outbound, messages) = mpsc::channel(4);
        let inbound = Inbound::Stock(request.into_inner());
        self.sessions.try_send(Session { inbound, outbound }).expect("there is room");
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn fetch_dataset(
        &self,
        _: Request<FetchDatasetRequest>,
    ) -> Result<Response<Self::FetchDatasetStream>, Status> {
        Err(Status::not_found("there is no data set"))
    }
}

impl NamedService for BenchService {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<http::Request<Body>> for BenchService {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (outbound, messages) = mpsc::channel(4);
        let inbound = Inbound::Own(Messages::of_request(request.into_body(), N_BYTES_MAX));
        self.sessions.try_send(Session { inbound, outbound }).expect("there is room");
        Box::pin(async { Ok(answer(Ok(ReceiverStream::new(messages)))) })
    }
}

/// Prints the median over the steps.
fn coordinator(setting: Setting) {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let folder = tempfile::tempdir().expect("a folder");
    let (sessions, accepted) = mpsc::channel(setting.n_workers);
    let address = serve(setting, &runtime, &folder, BenchService { sessions });
    let text = serde_json::to_string(&setting).expect("a setting");
    let start = |_| this_program().args(["worker", &text, &address]).stdout(Stdio::piped()).spawn().expect("a process");
    let mut workers: Vec<Child> = (0..setting.n_workers).map(start).collect();

    // As in a run, what has come is dealt with on a thread of its own.
    let handle = runtime.handle().clone();
    let driver = std::thread::spawn(move || handle.block_on(drive(setting, accepted)));
    let mut times = driver.join().expect("a measurement");
    for worker in &mut workers {
        // It says so when it has connected, and until then nothing is to be killed.
        let mut line = String::new();
        BufReader::new(worker.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        worker.kill().expect("it runs");
        worker.wait().expect("it ends");
    }
    println!("{}", median(&mut times));
    runtime.shutdown_background();
}

/// Listens; gives the address.
fn serve(setting: Setting, runtime: &Runtime, folder: &TempDir, service: BenchService) -> String {
    let _entered = runtime.enter();
    let mut server = Server::builder()
        .initial_stream_window_size(setting.window_bytes)
        .initial_connection_window_size(setting.connection_window_bytes())
        .max_frame_size(setting.frame_bytes);
    let router = match setting.streams {
        Streams::Stock => server.add_service(
            TrainingServer::new(service).max_decoding_message_size(N_BYTES_MAX).max_encoding_message_size(N_BYTES_MAX),
        ),
        Streams::Own => server.add_service(service),
    };
    match setting.socket {
        Socket::Tcp => {
            let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a socket");
            let address = format!("http://{}", listener.local_addr().expect("an address"));
            let (accepted, connections) = mpsc::channel(4);
            runtime.spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    stream.set_nodelay(true).expect("a socket");
                    accepted.send(Ok::<_, std::io::Error>(stream)).await.expect("a server");
                }
            });
            runtime.spawn(router.serve_with_incoming(ReceiverStream::new(connections)));
            address
        }
        Socket::Unix => {
            let path = folder.path().join("socket");
            let listener = UnixListener::bind(&path).expect("a socket");
            let (accepted, connections) = mpsc::channel(4);
            runtime.spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    accepted.send(Ok::<_, std::io::Error>(stream)).await.expect("a server");
                }
            });
            runtime.spawn(router.serve_with_incoming(ReceiverStream::new(connections)));
            format!("unix:{}", path.display())
        }
    }
}

/// Milliseconds of each step, divided by the workers.
async fn drive(setting: Setting, mut accepted: mpsc::Receiver<Session>) -> Vec<f64> {
    let (results, mut inputs) = mpsc::channel::<Option<Vec<f32>>>(64);
    let buffers = Arc::new(Buffers::new(N_VALUES, 2 * setting.n_workers + 1));
    let mut outboxes = Vec::new();
    for _ in 0..setting.n_workers {
        let Session { inbound, outbound } = accepted.recv().await.expect("a session");
        outboxes.push(outbound);
        tokio::spawn(listen(setting, inbound, Arc::clone(&buffers), results.clone()));
    }
    for _ in 0..setting.n_workers {
        inputs.recv().await.expect("a first message");
    }
    let mut averaged = vec![0.5; N_VALUES];
    let always = values::encode(Encoding::F32, &averaged);
    let mut times = Vec::new();
    for step in 1..=(WARM_UP + STEPS) as u64 {
        let begun = Instant::now();
        let gradient = if setting.has_numbers {
            values::encode_owned(Encoding::F32, buffers.lend(averaged))
        } else {
            always.clone()
        };
        for outbox in &outboxes {
            let work = Work { step, epoch: 1, step_of_epoch: 7, shards: vec![3], batches: Vec::new() };
            let update = Update { step, gradient: gradient.clone(), work: Some(work), slot: None };
            let kind = Some(coordinator_message::Kind::Update(update));
            outbox.send(Ok(CoordinatorMessage { kind })).await.expect("a session");
        }
        drop(gradient);
        averaged = buffers.take();
        for _ in 0..setting.n_workers {
            buffers.give_back(inputs.recv().await.expect("a result"));
        }
        times.push(begun.elapsed());
    }
    let n_workers = f64::from(u32::try_from(setting.n_workers).expect("a few workers"));
    let milliseconds = |time: Duration| 1e3 * time.as_secs_f64() / n_workers;
    times.split_off(WARM_UP).into_iter().map(milliseconds).collect()
}

async fn listen(
    setting: Setting,
    mut inbound: Inbound<WorkerMessage>,
    buffers: Arc<Buffers>,
    results: mpsc::Sender<Option<Vec<f32>>>,
) {
    while let Ok(Some(message)) = inbound.message().await {
        let result = match message.kind {
            Some(worker_message::Kind::ShardDone(done)) if setting.has_numbers => {
                let mut values = buffers.take();
                values::decode(Encoding::F32, &done.gradient_sum, &mut values).expect("finite values");
                Some(values)
            }
            _ => None,
        };
        if results.send(result).await.is_err() {
            return;
        }
    }
}

/// Answers each update with a result, until it is killed.
fn worker(setting: Setting, address: &str) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (outbound, messages) = mpsc::channel(4);
    let hello = worker_message::Kind::Heartbeat(Heartbeat { step: 0 });
    outbound.try_send(WorkerMessage { kind: Some(hello) }).expect("a new queue has room");
    let (updates, mut orders) = mpsc::channel::<Update>(4);
    let compute = std::thread::spawn(move || {
        let buffers = Arc::new(Buffers::new(N_VALUES, 4));
        let mut params = vec![0.25; N_VALUES];
        let always = values::encode(Encoding::F32, &params);
        while let Some(update) = orders.blocking_recv() {
            let gradient_sum = if setting.has_numbers { turn(&update, &mut params, &buffers) } else { always.clone() };
            let done = ShardDone {
                fence: Some(Fence { run_id: "0123456789abcdef".to_owned(), coordinator_id: 1 }),
                step: update.step,
                shard: 1,
                n_samples: 32,
                loss_sum: 1.5,
                counts: vec![77],
                gradient_sum,
                params_fingerprint: 12_345,
                compute_nanoseconds: 678,
                ..ShardDone::default()
            };
            let kind = Some(worker_message::Kind::ShardDone(done));
            if outbound.blocking_send(WorkerMessage { kind }).is_err() {
                return;
            }
        }
    });
    runtime.block_on(async {
        let endpoint = Endpoint::from_shared(address.to_owned()).expect("an address");
        let endpoint = endpoint
            .initial_stream_window_size(setting.window_bytes)
            .initial_connection_window_size(setting.connection_window_bytes())
            .max_frame_size(setting.frame_bytes)
            .tcp_nodelay(true);
        let channel = endpoint.connect().await.expect("a connection");
        let messages = ReceiverStream::new(messages);
        let mut inbound = match setting.streams {
            Streams::Stock => {
                let client = TrainingClient::new(channel);
                let mut client = client.max_decoding_message_size(N_BYTES_MAX).max_encoding_message_size(N_BYTES_MAX);
                Inbound::Stock(client.session(messages).await.expect("a session").into_inner())
            }
            Streams::Own => {
                Inbound::Own(call(channel, call::SESSION, None, messages, N_BYTES_MAX).await.expect("a session"))
            }
        };
        println!("connected");
        while let Ok(Some(CoordinatorMessage { kind: Some(coordinator_message::Kind::Update(update)) })) =
            inbound.message().await
        {
            updates.send(update).await.expect("a thread that answers");
        }
    });
    drop(updates);
    compute.join().expect("an end");
}

/// Takes an update in as a worker does, with an addition in place of what it computes, and lets a gradient out.
fn turn(update: &Update, params: &mut [f32], buffers: &Arc<Buffers>) -> Bytes {
    let add = |start: usize, block: &[f32]| {
        for (param, value) in params[start..].iter_mut().zip(block) {
            *param += value;
        }
    };
    values::decode_blocks(Encoding::F32, &update.gradient, N_VALUES, add).expect("finite values");
    let mut gradient = buffers.take();
    gradient.fill(0.25);
    values::encode_owned(Encoding::F32, buffers.lend(gradient))
}
