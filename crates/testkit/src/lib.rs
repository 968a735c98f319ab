//! Test support shared by several crates. A dev-dependency only, never published.
//!
//! - [`TempFolder`]: a temporary folder whose path is short enough for Unix sockets in it.
//! - [`require`]: requirements of a test, and the rule for skipping it.
//! - [`process`]: child processes that end with the test, and waits with a timeout.
//! - [`openapi`]: requests and responses against an OpenAPI document.
//! - [`conformance`]: the suite that every transport must pass.
//! - [`json_edits`]: random edits of JSON values, to damage input.
//! - `registration_store`, a feature: the suite that every store of registrations must pass, and a store
//!   in memory.
//! - `container`, on Linux: an OCI container with one static program, started by runc.
//! - `guest`, on Linux: a virtio-vsock driver in the test's own process, at native speed.
//! - `wine`, on Linux: Windows programs with a separate Windows registry.
//!
//! It depends on two crates of hvsock, for `guest` only: `hvsock-sys` (shared memory) and `hvsock-virtio`
//! (packet headers). All other crates can use it without a dependency cycle. With the feature
//! `registration_store` it also depends on `hvsock-registry`, whose integration tests use it.

#![forbid(unsafe_code)]

pub mod conformance;
pub mod json_edits;
pub mod openapi;
mod os;
pub mod process;
#[cfg(feature = "registration_store")]
pub mod registration_store;
pub mod require;
mod temp;

#[cfg(target_os = "linux")]
pub use os::linux::{container, guest, wine};
pub use temp::TempFolder;
