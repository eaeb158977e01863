//! A.
fn main() {}
