//! A peer that writes whatever it likes over the shared memory, at any moment: the end that it
//! plays against reads, writes, lends and waits, and neither panics nor hangs nor leaves the
//! memory. The script of a game is the input.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/ring/tests/hostile/play.rs"]
mod play;

fuzz_target!(|script: &[u8]| play::play(script));
