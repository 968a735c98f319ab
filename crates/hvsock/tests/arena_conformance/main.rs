//! The conformance suite over connections of an arena, with a fake broker that grants it and then does
//! only what it must.

#![cfg_attr(not(target_os = "linux"), allow(unused))]

#[cfg(target_os = "linux")]
#[path = "../arena_broker/mod.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod arena_broker;
#[cfg(target_os = "linux")]
#[path = "../blocking/mod.rs"]
mod blocking;
#[cfg(target_os = "linux")]
mod linux;

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    linux::main()
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    ExitCode::SUCCESS
}
