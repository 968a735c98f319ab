//! The broker's own service for guests, at [`UPLINK_PORT`](hvsock_address::UPLINK_PORT) of the host: look-ups of
//! names, explanations, and the uplinks of brokers in guests. `docs/uplink.md` specifies its protocol.
//!
//! - [`port`]: what leads to the broker itself;
//! - [`stream`]: one guest's connection, as frames;
//! - [`clients`]: the table of such connections, with their limits;
//! - [`session`]: the uplink of a broker in a guest, as a state machine, with the [`pace`] of its changes and its
//!   [`mirror`] of the host's services;
//! - [`explanation`]: what such a broker adds to an explanation of the host.
//!
//! They decide nothing about connections. The core has the registries, so it serves the guests: `core/uplink_server.rs`
//! accepts them and answers queries, `core/uplink_sessions.rs` has the brokers among them.

mod clients;
mod explanation;
mod mirror;
mod pace;
mod port;
mod session;
mod stream;

pub(crate) use clients::{Client, Clients, MAX_CLIENTS, MAX_QUERIES, QUERY_WAIT, Role};
pub(crate) use explanation::{Silence, add_guest, add_unknown_guest};
pub(crate) use port::{is_for_broker, offered};
pub(crate) use session::{SessionEnd, SessionState, UplinkSession};
pub(crate) use stream::{GuestStream, Received};
