//! The newest parts of a run's page, rendered once for all who look. It is state, not a queue: who is slow gets the newest.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use events::seconds_since_1970;
use serde_json::json;
use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use crate::page::{self, Fragment};
use crate::server::runs::{Render, RunHandle};
use crate::text::rounded;

/// The least time from one rendering of a run's page to the next.
pub const RENDER_PAUSE: Duration = Duration::from_secs(1);

/// The newest parts, and who waits for newer ones.
#[derive(Debug)]
pub struct Board {
    render: Render,
    state: Mutex<State>,
    /// Told after each rendering.
    rendered: watch::Sender<()>,
    /// One whole page is rendered at a time.
    document_turn: Arc<Semaphore>,
}

#[derive(Debug)]
struct State {
    is_rendering: bool,
    /// When the newest rendering began, and of which summary it is.
    newest: Option<(Instant, u64)>,
    /// The version of the newest part that changed. It begins with the time, so that a page that was open while the process
    /// ended is sent everything by the next one.
    version: u64,
    parts: Vec<Part>,
    /// The whole page, and when its rendering began.
    document: Option<(Instant, Bytes)>,
}

#[derive(Debug)]
struct Part {
    id: &'static str,
    version: u64,
    /// The event that is sent. Its beginning has the version.
    event: Bytes,
    n_bytes_of_version: usize,
}

impl Board {
    /// An empty one.
    pub fn new(render: Render) -> Self {
        let version = rounded(1e3 * seconds_since_1970());
        let state = State { is_rendering: false, newest: None, version, parts: Vec::new(), document: None };
        let document_turn = Arc::new(Semaphore::new(1));
        Self { render, state: Mutex::new(state), rendered: watch::Sender::new(()), document_turn }
    }

    /// Told after each rendering.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.rendered.subscribe()
    }

    /// From which version a page goes on that has seen `last`: one that this process did not give is of another one.
    pub fn resume_from(&self, last: u64) -> u64 {
        if last > self.lock().version { 0 } else { last }
    }

    /// The next event for a page that has those up to a version, and the event's version.
    pub fn next_after(&self, version: u64) -> Option<(u64, Bytes)> {
        let state = self.lock();
        let newer = state.parts.iter().filter(|part| part.version > version);
        newer.min_by_key(|part| part.version).map(|part| (part.version, part.event.clone()))
    }

    fn add(&self, fragments: Vec<Fragment>) {
        let mut state = self.lock();
        for Fragment { id, html } in fragments {
            // JSON has no line ends in it, so that it is one line of an event.
            let body = format!("event: fragment\ndata: {}\n\n", json!({ "id": id, "html": html }));
            let place = state.parts.iter().position(|part| part.id == id);
            if place.is_some_and(|place| {
                state.parts[place].event[state.parts[place].n_bytes_of_version..] == *body.as_bytes()
            }) {
                continue;
            }
            state.version += 1;
            let version = state.version;
            let mut event = format!("id: {version}\n");
            let n_bytes_of_version = event.len();
            event.push_str(&body);
            let part = Part { id, version, event: event.into(), n_bytes_of_version };
            match place {
                Some(place) => state.parts[place] = part,
                None => state.parts.push(part),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What needs the run itself.
impl RunHandle {
    /// Has the parts rendered anew on another thread, unless that is going on, was a moment ago, or would change nothing. Gives
    /// the time at which to ask again.
    pub(super) fn refresh(&self) -> Instant {
        let now = Instant::now();
        let (version, has_ended) = self.state();
        let mut state = self.board().lock();
        if let Some((begun, rendered)) = state.newest {
            // Until its end, a run's page says how long ago something was.
            let is_final = rendered == version && has_ended;
            if begun + RENDER_PAUSE > now {
                return begun + RENDER_PAUSE;
            }
            if is_final {
                return now + RENDER_PAUSE;
            }
        }
        self.start_rendering(&mut state, now);
        now + RENDER_PAUSE
    }

    /// Has the parts rendered for the last time, however short ago they were, and says whether they are as new as the run.
    pub(super) fn refresh_last(&self) -> bool {
        let (version, _) = self.state();
        let mut state = self.board().lock();
        let is_new = state.newest.is_some_and(|(_, rendered)| rendered == version) && !state.is_rendering;
        if !is_new {
            self.start_rendering(&mut state, Instant::now());
        }
        is_new
    }

    fn start_rendering(&self, state: &mut State, now: Instant) {
        if state.is_rendering {
            return;
        }
        state.is_rendering = true;
        // The thread goes on to the end even if no page waits for it any more, so that none is waited for in vain.
        let run = self.clone();
        spawn_blocking(move || {
            let _rendering = Rendering(&run);
            let summary = run.summary();
            run.board().lock().newest = Some((now, summary.version));
            let fragments = (run.board().render)(&summary, seconds_since_1970());
            run.board().add(fragments);
        });
    }

    /// The run's whole page, at most a second old: what is newer, its events bring. Nothing if it cannot be rendered.
    pub(super) async fn document(&self, others: Vec<String>) -> Option<Bytes> {
        let turn = Arc::clone(&self.board().document_turn).acquire_owned().await.expect("it is never closed");
        let now = Instant::now();
        if let Some((begun, document)) = &self.board().lock().document
            && *begun + RENDER_PAUSE > now
        {
            return Some(document.clone());
        }
        let run = self.clone();
        let rendering = spawn_blocking(move || {
            let _turn = turn;
            let document = Bytes::from(page::document(&run.summary(), seconds_since_1970(), &others));
            run.board().lock().document = Some((now, document.clone()));
            document
        });
        rendering.await.ok()
    }
}

/// A rendering that is going on. At its end, even by a panic, the next one may begin.
struct Rendering<'a>(&'a RunHandle);

impl Drop for Rendering<'_> {
    fn drop(&mut self) {
        self.0.board().lock().is_rendering = false;
        self.0.board().rendered.send_replace(());
    }
}
