//! The broker's own service for guests, at [`UPLINK_PORT`](hvsock_address::UPLINK_PORT) of the host: look-ups of
//! names, explanations, and the uplinks of brokers in guests. `docs/uplink.md` specifies its protocol.
//!
//! - [`port`]: what leads to the broker itself;
//! - [`stream`]: one guest's connection, as frames;
//! - [`clients`]: the table of such connections, with their limits.
//!
//! Neither decides anything. The core has the registries, so it serves the connections: `core/uplink_server.rs`
//! accepts them and answers queries, `core/uplinks.rs` has the uplinks.

mod clients;
mod port;
mod stream;

pub(crate) use clients::{Client, Clients, MAX_CLIENTS, MAX_QUERIES, QUERY_WAIT, Role};
pub(crate) use port::{is_for_broker, offered};
pub(crate) use stream::{GuestStream, Received};
