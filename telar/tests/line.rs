//! The tests that stand in the example `line`, as they run in a crate of its own. Not as tests of the example: `cargo test` would then
//! build it as a test alone, and other tests start it as a program.

#[path = "../examples/line.rs"]
#[expect(dead_code, reason = "the program itself")]
mod line;
