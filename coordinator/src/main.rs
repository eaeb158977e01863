//! The coordinator's program, for the three autoencoders.

use std::process::ExitCode;

use coordinator::Invocation;
use coordinator::config::WorkerProgram;

/// Under glibc's own allocator a buffer the size of a gradient goes back to the system each time it is freed, and is
/// page-faulted in anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let invocation = Invocation::new([words.next().unwrap_or_else(|| "coordinator".into())]);
    coordinator::main(&model::task::tasks(), WorkerProgram::beside, invocation, words)
}
