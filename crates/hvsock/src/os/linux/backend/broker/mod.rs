//! The broker back-end: sockets through an endpoint.
//!
//! - [`endpoint_connection`]: a connection to the endpoint, with requests and replies;
//! - [`exchange`]: the messages of a request; [`older_brokers`]: those that know fewer messages;
//!   [`wire`]: conversions from the wire format;
//! - [`execute`](mod@execute): a request that may block;
//! - [`errors`]: messages and failures of the broker as errors;
//! - [`pending_connect`]: a non-blocking connect;
//! - [`spin`]: spinning before a wait;
//! - [`control`]: the control channel of a connection;
//! - [`arena`]: connections that share memory and control channel;
//! - [`stream`]: a connection, with one of the transports;
//! - [`listener`]: a listener.

mod arena;
mod control;
mod endpoint_connection;
pub(super) mod errors;
mod exchange;
mod execute;
mod listener;
mod older_brokers;
mod pending_connect;
mod spin;
mod stream;
mod wire;

pub(crate) use endpoint_connection::{EndpointConnection, Reply};
#[cfg(feature = "tokio")]
pub(crate) use errors::with_timeout;
pub(crate) use exchange::Outcome;
#[cfg(feature = "tokio")]
pub(crate) use exchange::{Exchange, Step};
#[cfg(feature = "tokio")]
pub(crate) use execute::grace;
pub(crate) use execute::{execute, query};
pub(crate) use listener::Listener;
pub(crate) use pending_connect::PendingConnect;
pub(crate) use stream::{Ring, Stream};
