//! A run's steps as traces of OpenTelemetry, a trace for each step, sent over OTLP to whatever collects them, such as Jaeger or
//! Tempo. Set by OpenTelemetry's own environment variables, and off where they name no collector. Needs the feature `otlp`.

#[cfg(feature = "otlp")]
mod exporter;
#[cfg(feature = "otlp")]
mod tracer;

#[cfg(not(feature = "otlp"))]
use events::RecordedEvent;
#[cfg(not(feature = "otlp"))]
use tracing::warn;

#[cfg(feature = "otlp")]
pub use self::exporter::Otlp;
#[cfg(not(feature = "otlp"))]
use crate::metrics::RunInfo;

/// The variables that name the collector. The first counts where both do.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// The variable that names a collector, if one does. As OpenTelemetry has it, an empty variable is not set.
fn endpoint_variable() -> Option<&'static str> {
    ENDPOINTS.into_iter().find(|name| std::env::var(name).is_ok_and(|endpoint| !endpoint.trim().is_empty()))
}

/// Exports nothing: the feature `otlp` is off.
#[cfg(not(feature = "otlp"))]
pub enum Otlp {}

#[cfg(not(feature = "otlp"))]
impl Otlp {
    /// None, with a warning where the environment names a collector.
    pub fn from_env(_run: &RunInfo) -> Option<Self> {
        if let Some(variable) = endpoint_variable() {
            warn!(
                "{variable} is set, but this program was built without OpenTelemetry: build it with `--features otlp`"
            );
        }
        None
    }

    /// There is none.
    pub fn apply(&mut self, _recorded: &RecordedEvent) {
        match *self {}
    }

    /// There is none.
    pub fn finish(&mut self) {
        match *self {}
    }
}
