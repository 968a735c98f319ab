//! What the tests of several crates share. A development dependency only, never published.
//!
//! - [`TempFolder`]: a folder whose path is short enough for the sockets in it.
//! - [`require`]: programs that a test needs, and the one rule for when they are not there.
//! - [`process`]: child processes that end when the test does, and waits with a bound.
//! - [`conformance`]: the suite that every transport must pass.
//! - `container`, on Linux: a real OCI container with one static program in it, started by runc.
//! - `guest`, on Linux: a guest's virtio-vsock driver in a test's own process, at native speed.
//! - `wine`, on Linux: a Windows registry and programs for Windows.
//!
//! Of hvsock's other crates it knows two, for `guest` only: `hvsock-sys` for shared memory and
//! `hvsock-virtio` for the header of a packet. So each of them may use it.

#![forbid(unsafe_code)]

pub mod conformance;
mod os;
pub mod process;
pub mod require;
mod temp;

#[cfg(target_os = "linux")]
pub use os::linux::{container, guest, wine};
pub use temp::TempFolder;
