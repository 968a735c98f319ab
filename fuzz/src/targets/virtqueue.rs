//! A hostile guest that writes anything into its virtqueues at any time, and a VMM that stops, starts and
//! replaces them. The broker's device must not panic or hang, and another guest's connection must work
//! after each run. The input is the script of one run.

#[path = "../../../crates/broker/tests/vm/random_guest.rs"]
mod random_guest;

use crate::target::Seed;

/// Runs one script.
pub(crate) fn run(script: &[u8]) {
    random_guest::run_script(script);
}

/// Scripts of random operations: any bytes are some.
pub(crate) fn seeds() -> Vec<Seed> {
    super::random_scripts()
}
