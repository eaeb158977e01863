//! Which exit code an error of the coordinator gives.

use engine::exit;
use observe::folder::FolderError;
use observe::tensorboard::TensorBoardError;
use observe::trace::TraceError;
use proto::tls::TlsError;
use proto::token::TokenError;

use crate::certificates::CertificatesError;
use crate::config::ConfigError;
use crate::error::ClusterError;
use crate::health::CheckError;
use crate::http::HttpError;
use crate::launch::LaunchError;
use crate::mirror::MirrorError;
use crate::start::ResumeError;

/// The exit code of an error, by the first of its causes that is known.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let code = error.chain().find_map(|cause| {
        if cause.is::<ConfigError>() || cause.is::<TlsError>() || cause.is::<TokenError>() {
            return Some(exit::CONFIGURATION);
        }
        if let Some(error) = cause.downcast_ref::<CertificatesError>() {
            return Some(error.exit_code());
        }
        if let Some(error) = cause.downcast_ref::<CheckError>() {
            return Some(match error {
                CheckError::NotServing(_) => exit::UNAVAILABLE,
                CheckError::Tls(_) => exit::CONFIGURATION,
            });
        }
        if let Some(error) = cause.downcast_ref::<ResumeError>() {
            return Some(match error {
                ResumeError::NoCheckpoint(_)
                | ResumeError::OtherVersion { .. }
                | ResumeError::OtherData { .. }
                | ResumeError::OtherLayout { .. } => exit::DATA,
                ResumeError::NoRun
                | ResumeError::Recipe(_)
                | ResumeError::OtherWire { .. }
                | ResumeError::OtherNumerics { .. } => exit::CONFIGURATION,
                ResumeError::InUse { .. } => exit::CANNOT_WRITE,
                ResumeError::Diverged { .. } => exit::DIVERGED,
            });
        }
        if let Some(error) = cause.downcast_ref::<HttpError>() {
            return Some(match error {
                HttpError::Listen(_) => exit::UNAVAILABLE,
                HttpError::Tls(_) | HttpError::Token(_) => exit::CONFIGURATION,
            });
        }
        if cause.is::<TensorBoardError>() || cause.is::<TraceError>() {
            return Some(exit::CANNOT_WRITE);
        }
        if cause.is::<FolderError>() {
            return Some(exit::DATA);
        }
        if let Some(LaunchError::Configuration { .. }) = cause.downcast_ref() {
            return Some(exit::CONFIGURATION);
        }
        if let Some(error) = cause.downcast_ref::<MirrorError>() {
            return Some(error.exit_code());
        }
        if let Some(ClusterError::TooManyParams { .. }) = cause.downcast_ref() {
            return Some(exit::CONFIGURATION);
        }
        let is_unavailable = cause.is::<ClusterError>() || cause.is::<LaunchError>();
        is_unavailable.then_some(exit::UNAVAILABLE)
    });
    code.unwrap_or_else(|| exit::code(error))
}
