//! The end of a coordinator: what the run came to reaches the disk, workers go, and everything closes.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{Span, warn};

use crate::closing::EndNotice;
use crate::commands::worker_command;
use crate::config::Config;
use crate::description::Description;
use crate::driver::Ended;
use crate::endpoint::Endpoint;
use crate::error::ClusterError;
use crate::training::Outcome;
use crate::trainjob::{RunEnd, TrainJob};

/// How long sessions may take to end when the run is over.
const GRACE: Duration = Duration::from_secs(2);

/// What goes on beside the driver.
pub(super) struct Background {
    pub acceptor: JoinHandle<()>,
    pub server: JoinHandle<anyhow::Result<()>>,
    pub stopper: JoinHandle<()>,
    /// Ends the acceptor, the server and the port for probes.
    pub shutdown: CancellationToken,
    pub launched: Option<JoinHandle<anyhow::Result<()>>>,
    /// Ends the local workers.
    pub local: CancellationToken,
    pub trainjob: Option<TrainJob>,
}

/// Brings to the disk what the run came to, lets the workers go, and closes everything.
pub(super) async fn conclude(
    config: &Config,
    endpoint: &Endpoint,
    described: Description,
    ended: Ended,
    background: Background,
    first_step: u64,
    span: &Span,
) -> anyhow::Result<Outcome> {
    let Ended { outcome, training, observer, sessions } = ended;
    // A driver that has panicked ends the run as one that could not keep what it had trained.
    let (outcome, panicked) = match outcome {
        Ok(outcome) => (outcome, None),
        Err(panicked) => (Outcome::Stopped, Some(panicked.into())),
    };
    let Background { acceptor, server, stopper, shutdown, launched, local, trainjob } = background;
    let mut close_task = sessions.close_when_decided(span);
    if launched.is_some() {
        close_task.decide(EndNotice::of_local_workers());
    }
    local.cancel();
    let recorder = tokio::task::spawn_blocking(move || observer.finish()).await?;
    let kept = match launched {
        Some(keeper) => keeper.await?,
        None => Ok(()),
    };
    // A server that has ended by itself has failed, and the run with it.
    let (served, server) = if server.is_finished() { (server.await?, None) } else { (Ok(()), Some(server)) };
    let failed = panicked.or(kept.err()).or(served.err()).or_else(|| {
        let (command, waited) = (worker_command(config, &endpoint.display_address), config.join_timeout);
        (outcome == Outcome::NobodyCame).then(|| ClusterError::NobodyCame { command, waited }.into())
    });
    let written = described.end(config, endpoint, &outcome, &training, recorder, failed);
    // While the folder is locked, so that the process that resumes the run posts later than this one.
    let is_completed = outcome == Outcome::Completed && written.is_ok();
    post_end(trainjob, if is_completed { RunEnd::Completed } else { RunEnd::Unfinished }).await;
    let was_complete = outcome == Outcome::Completed && training.state().step == first_step;
    let n_awaited = if was_complete { config.n_workers.get() as usize } else { 0 };
    close_task.decide(EndNotice::of(&outcome, written.is_ok()).awaiting(n_awaited));
    close_task.finish().await?;
    shutdown.cancel();
    stopper.abort();
    let closed = close(acceptor, server).await;
    written.and(closed).map(|()| outcome)
}

/// Posts how the run has ended, where anything is posted.
async fn post_end(trainjob: Option<TrainJob>, end: RunEnd) {
    let Some(trainjob) = trainjob else { return };
    // Whatever becomes of it, the run has ended as it has.
    let _ = tokio::task::spawn_blocking(move || trainjob.finish(end)).await;
}

/// Waits for the end of what serves, but not for peers that do not close their connections.
async fn close(acceptor: JoinHandle<()>, server: Option<JoinHandle<anyhow::Result<()>>>) -> anyhow::Result<()> {
    let ends = async {
        acceptor.await?;
        match server {
            Some(server) => server.await?,
            None => Ok(()),
        }
    };
    timeout(GRACE, ends).await.unwrap_or_else(|_| {
        warn!("some peers did not close their connections in time");
        Ok(())
    })
}
