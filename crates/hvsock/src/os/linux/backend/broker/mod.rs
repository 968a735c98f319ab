//! The broker back-end: sockets through an endpoint.
//!
//! - [`endpoint_connection`]: a connection to the endpoint, with requests and replies;
//! - [`exchange`]: the messages of a request; [`older_brokers`]: those that know fewer messages;
//!   [`wire`]: conversions from the wire format;
//! - [`errors`]: messages and failures of the broker as errors;
//! - [`pending_connect`]: a non-blocking connect;
//! - [`control`]: the control channel of a connection;
//! - [`stream`]: a connection, with one of the transports;
//! - [`listener`]: a listener.

mod control;
mod endpoint_connection;
pub(super) mod errors;
mod exchange;
mod listener;
mod older_brokers;
mod pending_connect;
mod stream;
mod wire;

use std::io;
use std::time::{Duration, Instant};

pub(crate) use endpoint_connection::{EndpointConnection, Reply};
pub(crate) use exchange::{Exchange, Outcome, Step};
pub(crate) use listener::Listener;
pub(crate) use pending_connect::PendingConnect;
pub(crate) use stream::{Ring, Stream};

use hvsock_endpoint::{BrokerMessage, ClientMessage};

use crate::Endpoint;
use crate::backend::{REPLY_TIMEOUT, Request};

/// Executes a request: connects, listens or explains. Waits up to `timeout`.
pub(crate) fn execute(
    endpoint: &Endpoint,
    request: Request,
    timeout: Duration,
) -> io::Result<Outcome> {
    let deadline = Instant::now() + timeout;
    let mut connection = open(endpoint, timeout)?;
    let mut exchange = Exchange::new(request, &connection);
    loop {
        for option in exchange.options() {
            connection.send_request(&option)?;
        }
        loop {
            connection.send_request(&exchange.next())?;
            let reply = connection.recv_reply(deadline)?;
            match exchange.advance(&connection, reply)? {
                Step::Done(outcome) => return Ok(outcome),
                Step::Send => {}
                Step::Reopen => break,
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        connection = open(endpoint, left)?;
    }
}

/// Sends a request that creates no socket. Returns the endpoint connection and the reply.
pub(crate) fn query(
    endpoint: &Endpoint,
    message: &ClientMessage,
) -> io::Result<(EndpointConnection, BrokerMessage)> {
    let deadline = Instant::now() + REPLY_TIMEOUT;
    let connection = open(endpoint, REPLY_TIMEOUT)?;
    connection.send_request(message)?;
    let reply = connection.recv_reply(deadline)?.into_message()?;
    Ok((connection, reply))
}

fn open(endpoint: &Endpoint, timeout: Duration) -> io::Result<EndpointConnection> {
    EndpointConnection::open(endpoint, timeout).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, error.to_string()),
        _ => error,
    })
}
