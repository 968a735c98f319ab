//! Integration services: what a virtual machine's owner does with it beside running it, for Linux
//! guests of any hypervisor and for containers.
//!
//! Each is a service like any other: a GUID on the vsock template, a friendly name, an entry in the
//! host's registry that says who may use it, and an open interface, which docs/services.md
//! describes. Nothing here has a way of its own to the other side: all of it is built on the
//! public API of [`hvsock`], so that it is also an example of how to make your own.
//!
//! - [`catalog`]: which services there are, with their ports and names.
//! - [`copy`]: what both ends of a copy of files have in common, which is nearly everything.
//! - [`forward`]: sockets as forwarding carries them.
//! - [`guest`]: the half in the guest, which the program `hvsock-agent` ([`agent`]) runs.
//! - [`host`]: the half on the host, which the command `hvsock` and its broker use.
//! - [`link`]: how both halves meet: gRPC, or a bare stream where throughput matters.
//! - [`wire`]: the interfaces, as generated from `proto`.

#![forbid(unsafe_code)]

pub mod agent;
pub mod catalog;
pub mod copy;
pub mod forward;
pub mod guest;
pub mod host;
pub mod link;
pub mod wire;
