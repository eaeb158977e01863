//! A run, for people and programs that look: its summary from events or files, the page that shows it, charts, metrics,
//! TensorBoard's files and traces. Everything here reads; nothing can change a run or slow a step.

pub mod chart;
pub mod codes;
mod faults;
pub mod folder;
pub mod metrics;
pub mod otlp;
pub mod page;
pub mod series;
pub mod server;
pub mod settings;
mod spans;
pub mod summary;
pub mod tensorboard;
mod text;
pub mod trace;
