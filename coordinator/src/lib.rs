//! Who is in, what step it is, what the parameters are.

pub mod accept;
pub mod admission;
pub mod args;
pub mod certificates;
pub mod checkpoint;
pub mod clock;
pub mod closing;
pub mod config;
pub mod costs;
pub mod description;
pub mod driver;
pub mod endpoint;
pub mod events;
mod fetch;
pub mod health;
pub mod inbox;
pub mod journal;
pub mod launch;
pub mod mirror;
pub mod observe;
pub mod outbox;
pub mod peer;
mod program;
pub mod recompute;
mod run;
pub mod saver;
pub mod server;
mod session;
pub mod shutdown;
pub mod start;
pub mod tls;
pub mod training;
pub mod trainjob;

pub use program::main;
pub use run::{ClusterError, exit_code, run};
