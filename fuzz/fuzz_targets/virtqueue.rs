//! A hostile guest that writes anything into its virtqueues at any time, and a VMM that stops, starts and
//! replaces them. The broker's device must not panic or hang, and another guest's connection must work
//! after each run. The input is the script of one run.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/broker/tests/vm/random_guest.rs"]
mod random_guest;

fuzz_target!(|script: &[u8]| random_guest::run_script(script));
