//! A hostile peer that writes anything into the shared memory at any time. The end under test reads, writes,
//! borrows in place and waits; it must not panic, hang or access memory outside the ring. The input is
//! the script of one run.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/ring/tests/hostile/script.rs"]
mod script;

fuzz_target!(|script: &[u8]| script::run(script));
