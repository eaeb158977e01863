//! What is at which address.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use events::{PICTURE_BYTES_MAX, PictureFile};
use futures_util::stream::{Stream, unfold};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::metrics::{Format, Metrics};
use crate::page;
use crate::server::access::{Access, guard};
use crate::server::runs::{RunHandle, Runs};
use crate::server::subscriber;
use crate::summary::Summary;

/// Bytes of a picture that are read at a time.
const PICTURE_BLOCK_BYTES: usize = 64 << 10;
const HTML: &str = "text/html; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// What the program adds to the pages. The first is called where other requests wait, and should take no longer than a millisecond.
pub struct Extras {
    /// Whether the program can do its work, for `/readyz`.
    pub is_ready: Box<dyn Fn() -> bool + Send + Sync>,
    /// What `/metrics` has, if there is any.
    pub metrics: Option<Arc<Metrics>>,
}

/// Always ready, without metrics.
impl Default for Extras {
    fn default() -> Self {
        Self { is_ready: Box::new(|| true), metrics: None }
    }
}

impl fmt::Debug for Extras {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Extras").field("metrics", &self.metrics.is_some()).finish_non_exhaustive()
    }
}

/// The end of the server, as a part of each request.
#[derive(Clone, Debug)]
pub(super) struct Closing(pub CancellationToken);

struct Site {
    runs: Runs,
    extras: Extras,
    /// One comparison is rendered at a time.
    comparison_turn: Arc<Semaphore>,
}

/// What answers requests for these runs, within the Tokio runtime of [`serve`](super::serve).
pub fn router(runs: Runs, access: Access, extras: Extras) -> Router {
    let site = Arc::new(Site { runs, extras, comparison_turn: Arc::new(Semaphore::new(1)) });
    Router::new()
        .route("/", get(first))
        .route("/runs/{name}", get(run))
        .route("/runs/{name}/events", get(events))
        .route("/runs/{name}/pictures/{pictures}/{file}", get(picture))
        .route("/compare", get(compare))
        .route("/assets/{name}", get(asset))
        .route("/healthz", get(async || text("ok\n")))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .fallback(async || missing("There is nothing at this address."))
        .with_state(site)
        .layer(from_fn_with_state(Arc::new(access), guard))
}

async fn first(State(site): State<Arc<Site>>) -> Response {
    let runs: Vec<RunHandle> = site.runs.iter().cloned().collect();
    match &runs[..] {
        [] => missing("No run is served."),
        [run] => document(&site, run).await,
        _ => comparison(&site, runs).await,
    }
}

async fn run(State(site): State<Arc<Site>>, Path(name): Path<String>) -> Response {
    match site.runs.named(&name) {
        Some(run) => document(&site, run).await,
        None => no_run(),
    }
}

async fn compare(State(site): State<Arc<Site>>, request: Request) -> Response {
    let query = request.uri().query().unwrap_or_default();
    let pairs = form_urlencoded::parse(query.as_bytes());
    let asked: BTreeSet<String> = pairs.filter(|(key, _)| key == "run").map(|(_, name)| name.into_owned()).collect();
    if asked.iter().any(|name| site.runs.named(name).is_none()) {
        return no_run();
    }
    let is_asked = |run: &&RunHandle| asked.is_empty() || asked.contains(run.name());
    let runs: Vec<RunHandle> = site.runs.iter().filter(is_asked).cloned().collect();
    comparison(&site, runs).await
}

async fn document(site: &Site, run: &RunHandle) -> Response {
    let others = site.runs.iter().filter(|other| other.name() != run.name());
    match run.document(others.map(|other| other.name().to_owned()).collect()).await {
        Some(document) => ([(header::CONTENT_TYPE, HTML)], document).into_response(),
        None => broken(),
    }
}

async fn comparison(site: &Site, runs: Vec<RunHandle>) -> Response {
    let turn = Arc::clone(&site.comparison_turn).acquire_owned().await.expect("it is never closed");
    let rendering = spawn_blocking(move || {
        let _turn = turn;
        let summaries: Vec<Summary> = runs.iter().map(RunHandle::summary).collect();
        page::comparison(&summaries)
    });
    match rendering.await {
        Ok(document) => ([(header::CONTENT_TYPE, HTML)], document).into_response(),
        Err(_) => broken(),
    }
}

async fn events(State(site): State<Arc<Site>>, Path(name): Path<String>, request: Request) -> Response {
    let Some(run) = site.runs.named(&name) else { return no_run() };
    let last = request.headers().get("last-event-id").and_then(|last| last.to_str().ok()?.parse().ok());
    let closing = request.extensions().get::<Closing>().map(|Closing(closing)| closing.clone());
    let events = subscriber::events(run.clone(), last.unwrap_or(0), closing.unwrap_or_default());
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()
}

async fn picture(
    State(site): State<Arc<Site>>,
    Path((name, pictures, file)): Path<(String, String, String)>,
) -> Response {
    let Some(run) = site.runs.named(&name) else { return no_run() };
    // Two names that are written as a picture's are, thus no way out of the folder; and a picture that is known.
    let file = PictureFile::of(&pictures, &file).filter(|file| run.has_picture(*file));
    let path = run.folder().zip(file).map(|(folder, file)| folder.join(file.path()));
    let Some(path) = path else { return missing("There is no such picture.") };
    match spawn_blocking(move || open_picture(path)).await {
        Ok(Ok((opened, n_bytes))) => {
            let headers =
                [(header::CONTENT_TYPE, "image/png".to_owned()), (header::CONTENT_LENGTH, n_bytes.to_string())];
            (headers, Body::from_stream(blocks(opened, n_bytes))).into_response()
        }
        Ok(Err(_)) | Err(_) => missing("The picture cannot be read."),
    }
}

fn open_picture(path: PathBuf) -> io::Result<(File, u64)> {
    let metadata = path.symlink_metadata()?;
    // Opening a pipe would wait for ever.
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "expected a file"));
    }
    let file = File::open(path)?;
    let n_bytes = file.metadata()?.len();
    if n_bytes > PICTURE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "expected a picture"));
    }
    Ok((file, n_bytes))
}

/// A file's first bytes, a block at a time, so that one who is slow holds no more of it.
fn blocks(file: File, n_bytes: u64) -> impl Stream<Item = io::Result<Bytes>> {
    unfold(Some((file, n_bytes)), async |state| {
        let (mut file, n_left) = state.filter(|(_, n_left)| *n_left > 0)?;
        let reading = spawn_blocking(move || {
            let mut block = vec![0; PICTURE_BLOCK_BYTES.min(usize::try_from(n_left).unwrap_or(usize::MAX))];
            file.read_exact(&mut block)?;
            Ok((Bytes::from(block), file))
        });
        // After an error the answer breaks off.
        Some(match reading.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok((block, file)) => {
                let n_left = n_left - block.len() as u64;
                (Ok(block), Some((file, n_left)))
            }
            Err(error) => (Err(error), None),
        })
    })
}

async fn asset(Path(name): Path<String>) -> Response {
    match page::asset(&name) {
        Some(asset) => ([(header::CONTENT_TYPE, asset.content_type)], asset.bytes).into_response(),
        None => missing("There is no such file."),
    }
}

async fn ready(State(site): State<Arc<Site>>) -> Response {
    if (site.extras.is_ready)() {
        text("ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, text("not ready\n")).into_response()
    }
}

async fn metrics(State(site): State<Arc<Site>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = Format::negotiate(accept);
    match &site.extras.metrics {
        Some(metrics) => ([(header::CONTENT_TYPE, format.content_type())], metrics.encode(format)).into_response(),
        None => missing("This program has no metrics: it only shows what is in files."),
    }
}

fn text(text: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, TEXT)], text.into()).into_response()
}

fn no_run() -> Response {
    missing("No run of this name is served.")
}

fn missing(sentence: &str) -> Response {
    (StatusCode::NOT_FOUND, text(format!("{sentence}\n"))).into_response()
}

fn broken() -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, text("The page could not be rendered; the program's log says why.\n"))
        .into_response()
}
