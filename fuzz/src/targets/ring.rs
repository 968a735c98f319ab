//! A hostile peer that writes anything into the shared memory at any time. The end under test reads, writes,
//! borrows in place and waits; it must not panic, hang or access memory outside the ring. The input is
//! the script of one run.

#[path = "../../../crates/ring/tests/hostile/script.rs"]
mod script;

use crate::target::Seed;

/// Runs one script.
pub(crate) fn run(script: &[u8]) {
    script::run(script);
}

/// Scripts of random operations: any bytes are some.
pub(crate) fn seeds() -> Vec<Seed> {
    super::random_scripts()
}
