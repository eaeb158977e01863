//! The worker's program, for the three autoencoders.

use std::process::ExitCode;

/// The C library's own gives every block of a gradient's size back to the system, and the next one is paged in anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    worker::main(&model::task::tasks(), std::env::args_os())
}
