//! A guest that puts anything at all into its queues, at any moment, and a VMM that stops, starts
//! and replaces them: the broker's device neither panics nor hangs, and another guest's connection
//! works after each game. The script of a game is the input.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/broker/tests/vm/lawless.rs"]
mod lawless;

fuzz_target!(|script: &[u8]| lawless::play(script));
