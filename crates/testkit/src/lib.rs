//! Test support shared by several crates. A dev-dependency only, never published.
//!
//! - [`TempFolder`]: a temporary folder whose path is short enough for Unix sockets in it.
//! - [`require`]: requirements of a test, and the rule for skipping it.
//! - [`process`]: child processes that end with the test, and waits with a timeout.
//! - [`openapi`]: requests and responses against an OpenAPI document.
//! - [`conformance`]: the suite that every transport must pass.
//! - [`json_edits`]: random edits of JSON values, to damage input.
//! - [`cases`]: how many cases a property test tries.
//! - `registration_store`, a feature: the suite that every store of registrations must pass, and a store
//!   in memory.
//! - `container`, on Linux: an OCI container with one static program, started by runc.
//! - `peer`, on Linux, of the feature `world`: the peer of the conformance cases for clients in every
//!   language, also as the program `conformance-peer`.
//! - `podman`, on Linux: podman with a storage of its own.
//! - `go`, on Linux: the Go toolchain, and a static program that knows nothing of hvsock.
//! - `guest`, on Linux: a virtio-vsock driver in the test's own process, at native speed.
//! - [`wait`]: the one bounded wait for a condition.
//! - [`alone`]: a process of its own for a test that counts what a process has.
//! - `usage`, on Linux: the memory and descriptors of a process.
//! - `wine`, on Linux: Windows programs with a separate Windows registry.
//! - `nested`, on Linux, a feature: a real guest with a broker and containers of its own, and a program that
//!   does in any partition what a test asks.
//! - `nri`, on Linux: a scripted container runtime for plugins of the Node Resource Interface.
//! - `programs`, on Linux: programs that use `AF_VSOCK` and know nothing of hvsock.
//! - `uplink`, on Linux, of the feature `world`: a guest's side of the uplink protocol.
//! - `world`, on Linux: a broker in the test's own process, with partitions, services and connections.
//!
//! It depends on two crates of hvsock, for `guest` only: `hvsock-sys` (shared memory) and `hvsock-virtio`
//! (packet headers). Three features need more, so that the tests of the crates below build none of it:
//! `registration_store` the registry, `nested` the library and the guests, and `world` the library and the
//! broker.

#![forbid(unsafe_code)]

mod alone;
mod cases;
pub mod conformance;
pub mod json_edits;
pub mod openapi;
mod os;
pub mod process;
#[cfg(feature = "registration_store")]
pub mod registration_store;
pub mod require;
mod stop;
mod temp;
pub mod wait;

pub use alone::alone;
pub use cases::cases;
#[cfg(all(target_os = "linux", feature = "nested"))]
pub use os::linux::nested;
#[cfg(target_os = "linux")]
pub use os::linux::{c, container, go, guest, nri, podman, programs, usage, wine};
#[cfg(all(target_os = "linux", feature = "world"))]
pub use os::linux::{peer, uplink, world};
pub use stop::StopOnDrop;
pub use temp::TempFolder;
