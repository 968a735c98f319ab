//! A hostile process that writes anything into an arena at any time, while both ends and the broker use it.
//! They must not panic, hang or access memory outside the arena. The input is the script of one run.

#[path = "../../../crates/ring/tests/arena/script.rs"]
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
