//! Integration services for Linux guests of any hypervisor and for containers: commands, files,
//! heartbeat, time, key-value pairs, shutdown, freeze and port forwarding.
//!
//! Each is an ordinary service: a GUID on the vsock template, a friendly name, an entry in the
//! host's registry that says who may use it, and an open interface, described in docs/services.md.
//! Everything here uses only the public API of [`hvsock`], so the crate is also an example of how
//! to write services.
//!
//! - [`catalog`]: the list of services with their ports and names.
//! - [`copy`]: the copy protocol, shared by both ends.
//! - [`forward`]: the socket forwarding protocol, shared by both ends.
//! - [`guest`]: the guest side, which the program `hvsock-agent` ([`agent`]) runs.
//! - [`host`]: the host side, which the command `hvsock` and its broker use.
//! - [`link`]: how both sides connect: gRPC, or a raw stream where throughput matters.
//! - [`wire`]: the interfaces, generated from `proto`.

#![forbid(unsafe_code)]

pub mod agent;
pub mod catalog;
pub mod copy;
pub mod forward;
pub mod guest;
pub mod host;
pub mod link;
pub mod wire;
