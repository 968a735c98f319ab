//! `hvsock listen` and `hvsock connect` on Windows, between processes over the shim for `AF_HYPERV`
//! (`crates/testkit/windows/shim`). `cargo xtask windows` recognises this target by its name.
//!
//! The tests show that the command uses Winsock's interface correctly, not how Windows behaves.

#![cfg(windows)]

mod failures;
mod fixture;
mod guests;
mod streams;
#[path = "../windows/util.rs"]
#[allow(dead_code, reason = "the target `windows` uses all of it")]
mod util;
