//! The broker back-end: sockets through an endpoint.
//!
//! - [`endpoint_connection`]: a connection to the endpoint, with requests and replies;
//! - [`request`]: the sequence of messages of a request; [`wire`]: conversions from the wire
//!   format;
//! - [`errors`]: messages and failures of the broker as errors;
//! - [`pending_connect`]: a non-blocking connect;
//! - [`control`]: the control channel of a connection;
//! - [`stream`]: a connection, with one of the transports;
//! - [`listener`]: a listener.

mod control;
mod endpoint_connection;
mod errors;
mod listener;
mod pending_connect;
mod request;
mod stream;
mod wire;

use std::io;
use std::time::{Duration, Instant};

pub(crate) use endpoint_connection::EndpointConnection;
pub(crate) use listener::Listener;
pub(crate) use pending_connect::PendingConnect;
pub(crate) use request::Outcome;
pub(crate) use stream::{Ring, Stream};

use hvsock_endpoint::{BrokerMessage, ClientMessage};

use crate::Endpoint;
use crate::backend::{REPLY_TIMEOUT, Request};

/// Executes a request: connects, listens or explains. Waits up to `timeout`.
pub(crate) fn execute(
    endpoint: &Endpoint,
    request: &mut Request,
    timeout: Duration,
) -> io::Result<Outcome> {
    let deadline = Instant::now() + timeout;
    let connection = open(endpoint, timeout)?;
    for option in request.options() {
        connection.send_request(&option)?;
    }
    loop {
        connection.send_request(&request.next())?;
        let reply = connection.recv_reply(deadline)?;
        if let Some(outcome) = request.advance(&connection, reply)? {
            return Ok(outcome);
        }
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
    let reply = connection.recv_reply(deadline)?;
    Ok((connection, reply.message))
}

fn open(endpoint: &Endpoint, timeout: Duration) -> io::Result<EndpointConnection> {
    EndpointConnection::open(endpoint, timeout).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, error.to_string()),
        _ => error,
    })
}
