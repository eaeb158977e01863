//! What a program's end tells the one who started it. The numbers are those of BSD's `sysexits.h` where it has one.

/// Bad configuration.
pub const CONFIGURATION: u8 = 64;
/// Bad data: images, labels, weights.
pub const DATA: u8 = 65;
/// Something needed is not there: a GPU, the network.
pub const UNAVAILABLE: u8 = 69;
/// The program's own fault.
pub const INTERNAL: u8 = 70;
/// What this worker computes is wrong: its machine has a fault.
pub const EVICTED: u8 = 71;
/// A file cannot be written.
pub const CANNOT_WRITE: u8 = 73;
/// The run diverged.
pub const DIVERGED: u8 = 74;
/// The other side does not accept this program's certificate or token, or this program not the other side's.
pub const NO_PERMISSION: u8 = 77;
/// SIGTERM ended the program before its work was done: 128 + 15, as a shell has it. What was done is saved, but is not a
/// success: a supervisor that counts successes has to start the program again.
pub const TERMINATED: u8 = 143;
