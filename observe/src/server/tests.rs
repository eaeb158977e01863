//! The server over real sockets. Deadlines are long: a machine may be busy.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use events::{PictureFile, PictureName, RecordedEvent, RunEvent};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::folder::FolderReader;
use crate::metrics::{Metrics, RunInfo};
use crate::page::Fragment;
use crate::summary::Summary;

const DEADLINE: Duration = Duration::from_mins(1);

/// A server, until it is dropped.
struct Server {
    address: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn start_with(runs: Runs, access: Access, extras: Extras, limits: Limits, tls: Option<TlsAcceptor>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let shutdown = CancellationToken::new();
    let tls = tls.map(|tls| move || tls.clone());
    let task = tokio::spawn(serve(listener, tls, router(runs, access, extras), limits, shutdown.clone()));
    Server { address, shutdown, task }
}

async fn start(runs: Runs) -> Server {
    start_with(runs, Access::loopback(), Extras::default(), Limits::default(), None).await
}

/// What came back.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn new(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Self { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }
}

/// Sends a request and gives what came back until the end.
async fn send(server: &Server, text: &str) -> Answer {
    let exchange = async {
        let mut socket = TcpStream::connect(server.address).await?;
        socket.write_all(text.as_bytes()).await?;
        let mut bytes = Vec::new();
        socket.read_to_end(&mut bytes).await?;
        std::io::Result::Ok(bytes)
    };
    // A connection that is refused may end in a reset.
    let bytes = timeout(DEADLINE, exchange).await.expect("an answer in time").unwrap_or_default();
    Answer::new(&String::from_utf8_lossy(&bytes))
}

/// A request with headers, each with its end.
fn request(method: &str, path: &str, headers: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n")
}

async fn get(server: &Server, path: &str) -> Answer {
    send(server, &request("GET", path, "Host: localhost\r\n")).await
}

/// A page's stream of events.
struct Events {
    reader: BufReader<TcpStream>,
}

impl Events {
    async fn open(server: &Server, path: &str, headers: &str) -> Self {
        let mut socket = TcpStream::connect(server.address).await.expect("a connection");
        socket.write_all(request("GET", path, headers).as_bytes()).await.expect("a request");
        Self { reader: BufReader::new(socket) }
    }

    async fn of(server: &Server, last: Option<u64>) -> Self {
        let last = last.map_or(String::new(), |last| format!("Last-Event-ID: {last}\r\n"));
        Self::open(server, "/runs/one/events", &format!("Host: localhost\r\n{last}")).await
    }

    /// The next event's version, its part's name and what is in that; nothing at the end.
    async fn next(&mut self) -> Option<(u64, String, String)> {
        timeout(DEADLINE, self.read()).await.expect("an event in time")
    }

    async fn read(&mut self) -> Option<(u64, String, String)> {
        let mut version = None;
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line).await.unwrap_or(0) == 0 {
                return None;
            }
            if let Some(id) = line.strip_prefix("id: ") {
                version = id.trim().parse().ok();
            } else if let Some(data) = line.strip_prefix("data: ") {
                let data: Value = serde_json::from_str(data).expect("JSON in one line");
                let text = |key: &str| data[key].as_str().expect("text").to_owned();
                return Some((version.expect("an id before the data"), text("id"), text("html")));
            }
        }
    }

    /// The next event of a part.
    async fn next_of(&mut self, part: &str) -> (u64, String) {
        loop {
            let (version, id, html) = self.next().await.expect("an event");
            if id == part {
                return (version, html);
            }
        }
    }
}

/// Two parts: one that never changes, and one with the run's newest time.
fn two_parts(summary: &Summary, _now: f64) -> Vec<Fragment> {
    let part = |id, html| Fragment { id, html };
    vec![part("fixed", "line\nof <b>\"text\"</b>".to_owned()), part("time", summary.time.to_string())]
}

fn runs_of(render: runs::Render) -> (Runs, RunHandle) {
    let mut runs = Runs::default();
    let run = runs.add_rendered("one", None, render);
    (runs, run)
}

fn happen(run: &RunHandle, time: f64) {
    run.apply(&RecordedEvent { time, event: RunEvent::Waiting });
}

#[tokio::test]
async fn pages_assets_and_probes_are_served() {
    let mut runs = Runs::default();
    runs.add("one", None);
    let server = start(runs.clone()).await;
    for path in ["/", "/runs/one", "/compare", "/compare?run=one"] {
        let answer = get(&server, path).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        assert!(
            answer.head.contains("content-type: text/html; charset=utf-8") && answer.body.contains('<'),
            "{answer:?}"
        );
        for header in [
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
             connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
            "cross-origin-resource-policy: same-origin",
            "cache-control: no-store",
        ] {
            assert!(answer.head.contains(header), "{path}: {header}");
        }
    }
    assert_eq!(get(&server, "/healthz").await.body, "ok\n");
    assert_eq!(get(&server, "/readyz").await.status, 200);
    for path in ["/runs/two", "/runs/two/events", "/compare?run=one&run=two", "/assets/none", "/metrics", "/nothing"] {
        let answer = get(&server, path).await;
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.body.ends_with(".\n") && answer.head.contains("nosniff"), "{answer:?}");
    }
    let head = send(&server, &request("HEAD", "/", "Host: localhost\r\n")).await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));

    assert_eq!(runs.add("one", None).name(), "one~2");
    let server = start(runs).await;
    assert_eq!(get(&server, "/").await.status, 200);
    assert_eq!(get(&server, "/runs/one~2").await.status, 200);
    assert_eq!(get(&start(Runs::default()).await, "/").await.status, 404);
}

#[tokio::test]
async fn readiness_and_metrics_come_from_program() {
    let extras = Extras { is_ready: Box::new(|| false), metrics: Some(Arc::new(Metrics::new(RunInfo::default()))) };
    let (runs, _) = runs_of(two_parts);
    let server = start_with(runs, Access::loopback(), extras, Limits::default(), None).await;
    assert_eq!(get(&server, "/readyz").await.status, 503);
    let metrics = get(&server, "/metrics").await;
    assert!(metrics.body.contains("telar_step ") && metrics.head.contains("content-type: text/plain; version=0.0.4"));
}

#[tokio::test]
async fn other_names_and_origins_are_refused() {
    let (runs, _) = runs_of(two_parts);
    let server = start(runs).await;
    let port = server.address.port();
    let status = async |headers: &str| send(&server, &request("GET", "/", headers)).await.status;
    assert_eq!(status(&format!("Host: 127.0.0.1:{port}\r\n")).await, 200);
    assert_eq!(status(&format!("Host: localhost:{port}\r\nOrigin: http://localhost:{port}\r\n")).await, 200);
    for headers in ["Host: evil.example\r\n", "", "Host: localhost\r\nHost: evil.example\r\n", "Host: 10.0.0.1\r\n"] {
        assert!(matches!(status(headers).await, 400 | 421), "{headers}");
    }
    for origin in ["http://evil.example", "null", "http://localhost:1", "localhost"] {
        assert_eq!(status(&format!("Host: localhost:{port}\r\nOrigin: {origin}\r\n")).await, 403, "{origin}");
    }
    let absolute = request("GET", "http://evil.example/", "Host: localhost\r\n");
    assert_eq!(send(&server, &absolute).await.status, 421);
    // A probe calls by an address.
    assert_eq!(send(&server, &request("GET", "/healthz", "Host: 10.0.0.1\r\n")).await.status, 200);
}

#[tokio::test]
async fn token_is_asked_for_except_by_probes() {
    let (runs, _) = runs_of(two_parts);
    let access = Access::named(["train.example".to_owned()]).with_token("secret").expect("a token");
    let server = start_with(runs, access, Extras::default(), Limits::default(), None).await;
    let ask = async |path: &str, more: &str| {
        send(&server, &request("GET", path, &format!("Host: train.example\r\n{more}"))).await
    };
    for path in ["/", "/runs/one", "/runs/one/events", "/metrics", "/assets/page.css", "/nothing"] {
        let refused = ask(path, "").await;
        assert_eq!(refused.status, 401, "{path}");
        assert!(refused.head.contains("www-authenticate: basic realm=\"telar\""), "{refused:?}");
    }
    assert_eq!(ask("/", "Authorization: Bearer wrong\r\n").await.status, 401);
    assert_eq!(ask("/", "Authorization: Bearer secret\r\n").await.status, 200);
    assert_eq!(ask("/", "Authorization: Basic bWU6c2VjcmV0\r\n").await.status, 200); // me:secret
    // By any name, where there is the token; pages of other sites may not even then.
    let named = async |more: &str| {
        send(&server, &request("GET", "/metrics", &format!("Host: run.telar.svc.cluster.local:7188\r\n{more}")))
            .await
            .status
    };
    assert_eq!(named("").await, 401);
    assert_ne!(named("Authorization: Bearer secret\r\n").await, 421);
    let own = "Authorization: Bearer secret\r\nOrigin: http://run.telar.svc.cluster.local:7188\r\n";
    assert!(!matches!(named(own).await, 403 | 421));
    assert_eq!(named("Authorization: Bearer secret\r\nOrigin: http://train.example\r\n").await, 403);
    let twice = "Authorization: Bearer secret\r\nHost: train.example\r\n";
    assert!(matches!(named(twice).await, 400 | 421));
    for path in ["/healthz", "/readyz"] {
        assert_eq!(ask(path, "").await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn only_requests_that_read_are_answered() {
    let (runs, _) = runs_of(two_parts);
    let server = start(runs).await;
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "BREW"] {
        let target = if method == "CONNECT" { "localhost:80" } else { "/" };
        let refused = send(&server, &request(method, target, "Host: localhost\r\n")).await;
        assert_eq!(refused.status, 405, "{method}");
        assert!(refused.head.contains("allow: get, head"), "{refused:?}");
    }
    for body in ["Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"] {
        let refused = send(&server, &request("GET", "/", &format!("Host: localhost\r\n{body}"))).await;
        assert_eq!(refused.status, 413, "{body}");
    }
    let long = format!("Host: localhost\r\nCookie: {}\r\n", "a".repeat(64 << 10));
    assert!(
        matches!(send(&server, &request("GET", "/", &long)).await.status, 0 | 431),
        "closed, perhaps before it is read"
    );
}

#[tokio::test]
async fn only_pictures_of_run_are_served() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, text) in [
        ("run.json", "{}".to_owned()),
        ("epoch-01.png", "beside the folders".to_owned()),
        ("reconstructions/epoch-01.png", "png".repeat(100_000)),
        ("reconstructions/other.png", String::new()),
        ("codes/epoch-01.png", "codes".to_owned()),
        ("journal/epoch-01.png", "no picture".to_owned()),
        ("Notes/epoch-01.png", "no picture".to_owned()),
    ] {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    }
    let large = std::fs::File::create(folder.path().join("reconstructions/epoch-02.png")).expect("a file");
    large.set_len(events::PICTURE_BYTES_MAX + 1).expect("a sparse file");
    std::fs::create_dir(folder.path().join("reconstructions/epoch-03.png")).expect("a folder");
    let mut runs = Runs::default();
    let run = runs.add("one", Some(folder.path()));
    let mut summary = Summary::default();
    FolderReader::open(folder.path()).expect("a run").poll(&mut summary);
    run.replace(summary);
    let name = PictureName::new("reconstructions").expect("a name");
    assert!(run.summary().has_picture(PictureFile { name, epoch: 3 }));
    // Known, and not there any more.
    run.add_picture(PictureFile { name, epoch: 4 });
    let server = start(runs).await;
    let picture = get(&server, "/runs/one/pictures/reconstructions/epoch-01.png").await;
    assert_eq!(picture.body, "png".repeat(100_000));
    assert!(picture.head.contains("content-type: image/png") && picture.head.contains("content-length: 300000"));
    assert_eq!(get(&server, "/runs/one/pictures/codes/epoch-01.png").await.body, "codes");
    for address in [
        "reconstructions/other.png",
        "reconstructions/epoch-02.png",
        "reconstructions/epoch-03.png",
        "reconstructions/epoch-04.png",
        "reconstructions/epoch-1.png",
        "reconstructions/epoch-+1.png",
        "reconstructions/epoch-01.png%00",
        "reconstructions%2Fepoch-01.png",
        "reconstructions/..%2Frun.json",
        "reconstructions/../run.json",
        "reconstructions/..%2Fepoch-01.png",
        "%2e%2e/run.json",
        "%2e%2e/epoch-01.png",
        "./epoch-01.png",
        "/epoch-01.png",
        "%00/epoch-01.png",
        "codes/..",
        "codes/epoch-02.png",
        "journal/epoch-01.png",
        "Notes/epoch-01.png",
        "..",
        ".",
        "epoch-01.png",
    ] {
        assert_eq!(get(&server, &format!("/runs/one/pictures/{address}")).await.status, 404, "{address}");
    }
}

/// The goal: a page that was cut off misses nothing, and gets nothing that it has.
#[tokio::test]
async fn events_go_on_after_last_one_that_was_seen() {
    let (runs, run) = runs_of(two_parts);
    happen(&run, 1.0);
    let server = start(runs).await;
    let mut page = Events::of(&server, None).await;
    assert_eq!(page.next_of("fixed").await.1, "line\nof <b>\"text\"</b>");
    let (first, html) = page.next_of("time").await;
    assert_eq!(html, "1");
    drop(page);
    happen(&run, 2.0);
    happen(&run, 3.0);
    let mut page = Events::of(&server, Some(first)).await;
    let (second, id, html) = page.next().await.expect("an event");
    assert_eq!((id.as_str(), html.as_str()), ("time", "3"), "the fixed part was seen, and 2 is no news");
    assert!(second > first);
    happen(&run, 4.0);
    assert_eq!(page.next_of("time").await.1, "4");

    // What another process of the coordinator has sent says nothing here.
    for last in [1, second + 1_000_000] {
        assert_eq!(Events::of(&server, Some(last)).await.next_of("fixed").await.1, "line\nof <b>\"text\"</b>");
    }
    let answer = send(&server, &request("HEAD", "/runs/one/events", "Host: localhost\r\n")).await;
    assert!(answer.head.contains("content-type: text/event-stream"), "{answer:?}");
}

#[tokio::test]
async fn page_is_rendered_once_for_all_and_only_while_one_is_open() {
    static N_RENDERED: AtomicU64 = AtomicU64::new(0);
    const N_PAGES: usize = 50;
    let (runs, run) = runs_of(|_, _| {
        let n = N_RENDERED.fetch_add(1, Ordering::Relaxed);
        vec![Fragment { id: "n", html: n.to_string() }]
    });
    let server = start(runs).await;
    happen(&run, 1.0);
    assert_eq!(get(&server, "/runs/one").await.status, 200);
    assert_eq!(N_RENDERED.load(Ordering::Relaxed), 0, "no page is open");

    let begun = Instant::now();
    let mut pages = JoinSet::new();
    for _ in 0..N_PAGES {
        let mut events = Events::of(&server, None).await;
        pages.spawn(async move {
            let mut seen = Vec::new();
            for _ in 0..3 {
                seen.push(events.next_of("n").await);
            }
            seen
        });
    }
    let mut htmls = BTreeMap::new();
    let mut n_seen = 0;
    while let Some(seen) = pages.join_next().await {
        for (version, html) in seen.expect("a page") {
            assert_eq!(*htmls.entry(version).or_insert_with(|| html.clone()), html, "all get the same");
            n_seen += 1;
        }
    }
    let n_rendered = N_RENDERED.load(Ordering::Relaxed);
    assert_eq!(n_seen, 3 * N_PAGES);
    assert!(n_rendered <= begun.elapsed().as_secs() + 1, "{n_rendered} renderings in {:?}", begun.elapsed());
}

/// The goal: what happened last is on every page that was open when the program ended.
#[tokio::test]
async fn shutdown_ends_streams_after_newest_state() {
    let (runs, run) = runs_of(two_parts);
    let mut server = start(runs).await;
    let mut page = Events::of(&server, None).await;
    page.next_of("time").await;
    run.apply(&RecordedEvent { time: 9.0, event: RunEvent::Ended { outcome: "completed".to_owned(), step: 7 } });
    server.shutdown.cancel();
    assert_eq!(page.next_of("time").await.1, "9");
    assert_eq!(page.next().await, None);
    timeout(DEADLINE, &mut server.task).await.expect("the end in time").expect("no panic");
}

#[tokio::test]
async fn connections_without_request_do_not_delay_shutdown() {
    let limits = Limits { request_timeout: 10 * DEADLINE, shutdown_grace: 10 * DEADLINE, ..Limits::default() };
    let (runs, _) = runs_of(two_parts);
    let mut server = start_with(runs, Access::loopback(), Extras::default(), limits, None).await;
    let _silent = TcpStream::connect(server.address).await.expect("a connection");
    let mut idle = TcpStream::connect(server.address).await.expect("a connection");
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("a request");
    idle.read_u8().await.expect("an answer");
    server.shutdown.cancel();
    timeout(DEADLINE, &mut server.task).await.expect("the end in time").expect("no panic");
}

#[tokio::test]
async fn connections_above_bound_are_refused_until_one_ends() {
    let limits = Limits { connections_per_address_max: 3, request_timeout: DEADLINE, ..Limits::default() };
    let (runs, _) = runs_of(two_parts);
    let server = start_with(runs, Access::loopback(), Extras::default(), limits, None).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(TcpStream::connect(server.address).await.expect("a connection"));
    }
    // Connections are accepted in their order.
    assert_eq!(get(&server, "/").await.status, 0);
    silent.pop();
    let begun = Instant::now();
    while get(&server, "/").await.status != 200 {
        assert!(begun.elapsed() < DEADLINE);
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn peer_that_does_not_speak_is_closed() {
    let limits = Limits {
        request_timeout: Duration::from_millis(200),
        handshake_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let (runs, _) = runs_of(two_parts);
    let server = start_with(runs.clone(), Access::loopback(), Extras::default(), limits, None).await;
    let secure = start_with(runs, Access::loopback(), Extras::default(), limits, Some(acceptor(&identity()))).await;
    // Nothing, half a request, and nothing after an answer.
    for (server, begun) in [
        (&server, ""),
        (&server, "GET / HT"),
        (&server, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        (&secure, ""),
    ] {
        let mut socket = TcpStream::connect(server.address).await.expect("a connection");
        socket.write_all(begun.as_bytes()).await.expect("a connection");
        let mut bytes = Vec::new();
        let closed = timeout(DEADLINE, socket.read_to_end(&mut bytes)).await;
        closed.expect("the end in time").expect("an orderly end");
    }
}

/// The goal: a page in a suspended laptop delays no other client.
#[tokio::test]
async fn peer_that_does_not_read_holds_up_nobody() {
    let (runs, _) = runs_of(|_, now| vec![Fragment { id: "large", html: format!("{now}{}", "x".repeat(16 << 20)) }]);
    let limits =
        Limits { connections_per_address_max: 2, write_timeout: Duration::from_millis(500), ..Limits::default() };
    let mut server = start_with(runs.clone(), Access::loopback(), Extras::default(), limits, None).await;
    let stalled = Events::of(&server, None).await;
    let mut page = Events::of(&server, None).await;
    for _ in 0..2 {
        page.next_of("large").await;
    }
    // Its place is free again after a while.
    let begun = Instant::now();
    while get(&server, "/healthz").await.status != 200 {
        assert!(begun.elapsed() < DEADLINE);
        sleep(Duration::from_millis(50)).await;
    }
    drop((page, stalled));
    server.shutdown.cancel();
    timeout(DEADLINE, &mut server.task).await.expect("the end in time").expect("no panic");

    // One that may be slow for longer does not keep the program from ending.
    let limits =
        Limits { write_timeout: 10 * DEADLINE, shutdown_grace: Duration::from_millis(500), ..Limits::default() };
    let mut server = start_with(runs, Access::loopback(), Extras::default(), limits, None).await;
    let _stalled = Events::of(&server, None).await;
    Events::of(&server, None).await.next_of("large").await;
    server.shutdown.cancel();
    timeout(DEADLINE, &mut server.task).await.expect("the end in time").expect("no panic");
}

/// A certificate for `localhost`, and its key.
fn identity() -> rcgen::CertifiedKey<rcgen::KeyPair> {
    rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate")
}

fn acceptor(identity: &rcgen::CertifiedKey<rcgen::KeyPair>) -> TlsAcceptor {
    let key = PrivateKeyDer::try_from(identity.signing_key.serialize_der()).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![identity.cert.der().clone()], key)
        .expect("a certificate");
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test]
async fn pages_are_served_over_tls() {
    let identity = identity();
    let (runs, _) = runs_of(two_parts);
    let server =
        start_with(runs, Access::loopback(), Extras::default(), Limits::default(), Some(acceptor(&identity))).await;
    let mut roots = RootCertStore::empty();
    roots.add(identity.cert.der().clone()).expect("a certificate");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let socket = TcpStream::connect(server.address).await.expect("a connection");
    let name = ServerName::try_from("localhost").expect("a name");
    let mut socket = TlsConnector::from(Arc::new(config)).connect(name, socket).await.expect("a handshake");
    socket.write_all(request("GET", "/", "Host: localhost\r\n").as_bytes()).await.expect("a request");
    assert_eq!(Answer::new(&read_all(&mut socket).await).status, 200);
    assert_eq!(get(&server, "/").await.status, 0, "without TLS");
}

/// All until the end, which may lack TLS's own.
async fn read_all(socket: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    let _ = timeout(DEADLINE, socket.read_to_end(&mut bytes)).await.expect("an answer in time");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The goal: a run that another program trains is shown as it goes on.
#[tokio::test]
async fn followed_folder_is_shown_as_it_changes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("run.json"), "{}").expect("a file");
    let (runs, run) = runs_of(two_parts);
    let reader = FolderReader::open(folder.path()).expect("a run");
    let shutdown = CancellationToken::new();
    let follower = tokio::task::spawn_blocking({
        let (run, shutdown) = (run.clone(), shutdown.clone());
        move || run.follow(reader, &shutdown)
    });
    let server = start(runs).await;
    let mut page = Events::of(&server, None).await;
    page.next_of("time").await;
    std::fs::write(folder.path().join("events.jsonl"), "{\"time\":12.5,\"event\":\"waiting\"}\n").expect("a file");
    while page.next_of("time").await.1 != "12.5" {}
    assert_eq!(run.summary().name, "one");
    shutdown.cancel();
    follower.await.expect("no panic");
}
