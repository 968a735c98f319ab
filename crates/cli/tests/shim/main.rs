//! `hvsock listen` and `hvsock connect` on Windows, from one process to another over the shim
//! for `AF_HYPERV` where there is no Hyper-V (`crates/testkit/windows/shim`). By this target's name
//! `cargo xtask windows` runs it so.
//!
//! That shows that the command keeps to Winsock's interface, and nothing about what Windows does.

#![cfg(windows)]

mod ends;
mod guests;
mod scene;
mod talking;
#[path = "../windows/util.rs"]
#[allow(dead_code, reason = "the target `windows` has need of all of it")]
mod util;
