//! Runs on HTTP: pages that update themselves, pictures, metrics and probes. It only answers; no request changes anything.

mod access;
mod board;
mod connection;
mod routes;
mod runs;
mod subscriber;
#[cfg(test)]
mod tests;

pub use access::{Access, AccessError};
pub use connection::{Limits, serve};
pub use routes::{Extras, router};
pub use runs::{RunHandle, Runs};
