//! A plugin of the Node Resource Interface (NRI), by which containerd and CRI-O let others adjust the containers
//! that they create. This one mounts the endpoint of a partition into each container that has the annotation or
//! label `hvsock.dev/name`.
//!
//! The runtime speaks ttRPC in both directions over one connection: `mux` separates the two, `ttrpc` has the
//! messages, `api` what is in them. [`Plugin`] is the state machine of it all, without I/O or clock: bytes go
//! in, bytes come out, and [`Endpoints`] is asked for what a container needs. `wanted` reads the
//! annotations. [`serve`] connects a plugin with a socket.
//!
//! The protocols are those of `containerd/nri` 0.9 and `containerd/ttrpc` 1.2. A runtime that breaks them
//! loses the connection; what it can make this side keep is bounded by the longest message, 4 MiB.

#![forbid(unsafe_code)]

mod api;
mod mux;
mod plugin;
mod serve;
mod ttrpc;
mod wanted;

pub use plugin::{Endpoint, Endpoints, Hook, Identity, Plugin, Violation};
pub use serve::{Ended, serve};
pub use wanted::{Unusable, Wanted};
