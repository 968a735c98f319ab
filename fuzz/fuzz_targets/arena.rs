//! A hostile process that writes anything into an arena at any time, while both ends and the broker use it.
//! They must not panic, hang or access memory outside the arena. The input is the script of one run.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/ring/tests/arena/script.rs"]
mod script;

fuzz_target!(|script: &[u8]| script::run(script));
