//! The cluster as its users see it: the programs themselves, started as processes, killed, stopped, resumed and joined,
//! and what comes out of them compared bit for bit with what one process gives.
//!
//! The programs are those beside this one: `cargo build --release` comes first. One cluster runs at a time.

#[path = "../model/tests/common/mod.rs"]
mod common;
mod harness;

mod chaos;
mod compose;
mod deaths;
mod elastic;
mod exactly_once;
mod external;
mod faults;
mod fuzz;
mod golden;
mod health;
mod hostile;
mod mirror;
mod output;
mod partition;
mod programs;
mod resume;
mod same_bits;
mod straggler;
mod tls;
mod trainjob;
mod wire;
