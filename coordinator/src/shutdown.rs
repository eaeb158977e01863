//! SIGINT and SIGTERM. Before the run begins there is nothing to save, and a signal ends the process; then the first one
//! ends the run with a checkpoint, and the second one the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::mirror::MirrorHandle;

/// The handlers of both signals.
#[derive(Debug)]
pub struct Signals {
    /// Whether the next signal ends the process.
    is_final: Arc<AtomicBool>,
    is_terminated: Arc<AtomicBool>,
}

impl Signals {
    /// Installs the handlers. Without any, a process that is the first one of a container ignores both signals.
    ///
    /// # Errors
    /// If the system refuses a handler.
    pub fn register() -> std::io::Result<Self> {
        let signals = Self { is_final: Arc::new(AtomicBool::new(true)), is_terminated: Arc::default() };
        for number in [SIGINT, SIGTERM] {
            // In this order: a signal that finds the flag up ends the process from within, whatever its threads wait for, and
            // one that finds it down raises it. Local workers end with their standard input, a pipe to this process.
            flag::register_conditional_shutdown(number, 128 + number, Arc::clone(&signals.is_final))?;
            flag::register(number, Arc::clone(&signals.is_final))?;
        }
        flag::register(SIGTERM, Arc::clone(&signals.is_terminated))?;
        Ok(signals)
    }

    /// From now on the first signal stops the run, by way of `stop`; one that comes after the run's end ends the wait for
    /// the mirror. Runs for as long as the future is polled.
    ///
    /// # Errors
    /// If the system refuses a handler.
    pub fn stop_run(
        &self,
        stop: CancellationToken,
        mirror: MirrorHandle,
    ) -> std::io::Result<impl Future<Output = ()> + Send + use<>> {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        self.is_final.store(false, Ordering::Relaxed);
        Ok(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            mirror.end_wait();
            stop.cancel();
        })
    }

    /// Whether SIGTERM came. Since a second signal ends the process, it was the one that stopped the run.
    pub fn is_terminated(&self) -> bool {
        self.is_terminated.load(Ordering::Relaxed)
    }
}
