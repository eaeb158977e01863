//! From the first connection to the last: connect, be in a session, back off, and join again.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use engine::exit;
use engine::task::Tasks;
use proto::limits;
use proto::v1::CloseReason;

use crate::compute::Compute;
use crate::config::{Address, Config, ConfigError};
use crate::dataset::{DatasetCache, DatasetError, PieceError};
use crate::link::{Link, LinkError};
use crate::session::{Admission, Session, SessionEnd, SessionError};

/// The first pause between two attempts; each is twice the one before, up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Why a worker ended without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// No coordinator accepted it in time.
    #[error(
        "no coordinator at {address}: {reason}; tried for {} s; start one there, or name another with --coordinator",
        .tried.as_secs()
    )]
    NoCoordinator {
        /// Where it was looked for.
        address: Address,
        /// How the last attempt ended.
        reason: String,
        /// For how long.
        tried: Duration,
    },
    /// It is of no use to the coordinator.
    #[error("the coordinator refused this worker: {reason}")]
    Refused {
        /// What was expected and found.
        reason: String,
    },
    /// What it computes is wrong.
    #[error(
        "the coordinator evicted this worker, whose results are wrong: {reason}; check this machine's memory and processor"
    )]
    Evicted {
        /// What was wrong.
        reason: String,
    },
    /// A session ended in a way that another one would end in too.
    #[error("{0}")]
    Session(#[from] SessionError),
    /// The computing thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

/// What the program's end tells the one who started it.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let known = error.chain().find_map(|cause| match cause.downcast_ref::<SessionError>() {
        Some(SessionError::Status(_) | SessionError::Terms(_)) => Some(exit::CONFIGURATION),
        Some(SessionError::OutOfOrder { .. } | SessionError::Compute(_)) => Some(exit::INTERNAL),
        Some(SessionError::Dataset(DatasetError::Piece(PieceError::Write(_)))) => Some(exit::CANNOT_WRITE),
        Some(SessionError::Dataset(
            DatasetError::Piece(_) | DatasetError::Other { .. } | DatasetError::NotFetchable { .. },
        )) => Some(exit::DATA),
        Some(SessionError::Link(error)) => match error {
            LinkError::OwnCertificate { .. } | LinkError::CoordinatorCertificate { .. } | LinkError::Token { .. } => {
                Some(exit::NO_PERMISSION)
            }
            LinkError::NoTls { .. } | LinkError::TlsOnly { .. } => Some(exit::CONFIGURATION),
            LinkError::Unreachable(_) => None,
        },
        Some(SessionError::Dataset(_) | SessionError::Closed | SessionError::Silent { .. }) | None => None,
    });
    let is_configuration = error.chain().any(|cause| {
        cause.downcast_ref().is_some_and(|error| !matches!(error, ConfigError::Backend(_)))
            || matches!(cause.downcast_ref(), Some(WorkerError::Refused { .. }))
    });
    let is_unavailable =
        error.chain().any(|cause| matches!(cause.downcast_ref(), Some(WorkerError::NoCoordinator { .. })));
    let is_evicted = error.chain().any(|cause| matches!(cause.downcast_ref(), Some(WorkerError::Evicted { .. })));
    match known {
        Some(code) => code,
        None if is_evicted => exit::EVICTED,
        None if is_configuration => exit::CONFIGURATION,
        None if is_unavailable => exit::UNAVAILABLE,
        None => exit::code(error),
    }
}

/// How a worker's work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The coordinator said that the run is over.
    RunOver,
    /// This worker was asked to end before that.
    Stopped,
}

/// Works on whichever of the tasks the coordinator trains until that closes the session for good, or `shutdown` is cancelled.
///
/// # Errors
/// If no coordinator takes it in for as long as the configuration says, or one refuses it for good.
pub async fn run(config: &Config, tasks: &Tasks, shutdown: &CancellationToken) -> Result<Outcome, WorkerError> {
    let compute = Compute::start(config.backend.clone()).map_err(WorkerError::Thread)?;
    let mut datasets = DatasetCache::new(config.data.clone());
    let mut backoff = Backoff::begin(&config.coordinator, config.connect_timeout, Instant::now());
    loop {
        // Ends with a session that ends for good, with `shutdown`, or when no coordinator was reached for too long.
        let joined = tokio::select! {
            joined = join(config, tasks, backoff.time_left(Instant::now())) => joined,
            () = shutdown.cancelled() => return Ok(Outcome::Stopped),
        };
        let ended = match joined {
            Ok(Admission::Admitted(session)) => {
                let begun = Instant::now();
                let ended =
                    run_session((*session).with_busy_poll(config.busy_poll), &compute, &mut datasets, shutdown).await;
                backoff.reset(begun, Instant::now());
                ended
            }
            Ok(Admission::Closed(close)) => Ok(SessionEnd::Closed(close)),
            Err(error) => Err(error),
        };
        let reason = match ended {
            Ok(SessionEnd::Left) => return Ok(Outcome::Stopped),
            Ok(SessionEnd::Closed(close)) => match close.close_reason() {
                CloseReason::End => {
                    info!(reason = close.reason, "the coordinator closed the session");
                    return Ok(Outcome::RunOver);
                }
                CloseReason::Refused => return Err(WorkerError::Refused { reason: close.reason }),
                CloseReason::Evicted => return Err(WorkerError::Evicted { reason: close.reason }),
                CloseReason::ComeBack | CloseReason::Unspecified => close.reason,
            },
            Err(error) if error.is_final() => return Err(error.into()),
            Err(error) => error.to_string(),
        };
        if shutdown.is_cancelled() {
            return Ok(Outcome::Stopped); // the coordinator let go of a worker that had asked for it
        }
        let pause = backoff.next_pause(Instant::now(), reason)?;
        tokio::select! {
            () = sleep(pause) => {}
            () = shutdown.cancelled() => return Ok(Outcome::Stopped),
        }
    }
}

async fn join(config: &Config, tasks: &Tasks, time_left: Duration) -> Result<Admission, SessionError> {
    let link = Link::connect(&config.coordinator, &config.access, time_left).await?;
    Session::join(link, tasks, &config.backend, time_left.min(limits::FIRST_MESSAGE_WAIT_MAX)).await
}

async fn run_session(
    session: Session,
    compute: &Compute,
    datasets: &mut DatasetCache,
    shutdown: &CancellationToken,
) -> Result<SessionEnd, SessionError> {
    let span = info_span!(
        "session",
        worker = session.terms.worker_id,
        run = session.terms.fence.run_id,
        coordinator = format!("{:016x}", session.terms.fence.coordinator_id)
    );
    session.run(compute, datasets, shutdown).instrument(span).await
}

/// Attempts to reach a coordinator: since when, the pause before the next one, and what was logged.
#[derive(Debug)]
struct Backoff<'a> {
    address: &'a Address,
    wait_max: Duration,
    begun: Instant,
    /// Before the next attempt.
    pause: Duration,
    /// The reason logged last: each state is logged once.
    told: Option<String>,
}

impl<'a> Backoff<'a> {
    fn begin(address: &'a Address, wait_max: Duration, now: Instant) -> Self {
        Self { address, wait_max, begun: now, pause: PAUSE_MIN, told: None }
    }

    fn time_left(&self, now: Instant) -> Duration {
        self.wait_max.saturating_sub(now - self.begun)
    }

    /// A session was there, and ended now.
    fn reset(&mut self, session_begun: Instant, now: Instant) {
        // Sessions that end as soon as they begin are no reason to try again as fast as can be.
        if now - session_begun > PAUSE_MAX {
            self.pause = PAUSE_MIN;
        }
        self.begun = now;
        self.told = None;
    }

    /// How long to wait after an attempt that came to nothing.
    fn next_pause(&mut self, now: Instant, reason: String) -> Result<Duration, WorkerError> {
        let time_left = self.time_left(now);
        if time_left.is_zero() {
            let address = self.address.clone();
            return Err(WorkerError::NoCoordinator { address, reason, tried: now - self.begun });
        }
        if self.told.as_ref() != Some(&reason) {
            let seconds_left = time_left.as_secs();
            warn!(address = %self.address, reason, seconds_left, "no session with a coordinator; trying again");
            self.told = Some(reason);
        }
        let pause = self.pause.min(time_left);
        self.pause = (2 * self.pause).min(PAUSE_MAX);
        Ok(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The pauses in milliseconds until it gives up, if each attempt takes no time.
    fn pauses(backoff: &mut Backoff, now: &mut Instant) -> Vec<u128> {
        let mut pauses = vec![];
        while let Ok(pause) = backoff.next_pause(*now, "nobody".to_owned()) {
            *now += pause;
            pauses.push(pause.as_millis());
        }
        pauses
    }

    #[test]
    fn retry_pause_doubles_to_two_seconds_until_connect_timeout() {
        let address = Address::Unix("socket".to_owned());
        let mut now = Instant::now();
        let mut backoff = Backoff::begin(&address, 6 * SECOND, now);
        assert_eq!(pauses(&mut backoff, &mut now), [50, 100, 200, 400, 800, 1_600, 2_000, 850]); // 6 s in all
        let error = backoff.next_pause(now, "nobody".to_owned()).expect_err("the time is over").to_string();
        assert_eq!(
            error,
            "no coordinator at unix:socket: nobody; tried for 6 s; start one there, or name another with --coordinator"
        );
    }

    #[test]
    fn session_resets_timeout_but_only_long_session_resets_pause() {
        let address = Address::Unix("socket".to_owned());
        let check = |lasted: Duration, expected: &[u128]| {
            let mut now = Instant::now();
            let mut backoff = Backoff::begin(&address, 3 * SECOND, now);
            assert_eq!(pauses(&mut backoff, &mut now), [50, 100, 200, 400, 800, 1_450]);
            backoff.reset(now, now + lasted);
            now += lasted;
            assert_eq!(pauses(&mut backoff, &mut now), expected);
        };
        check(SECOND, &[2_000, 1_000]);
        check(3 * SECOND, &[50, 100, 200, 400, 800, 1_450]);
    }
}
