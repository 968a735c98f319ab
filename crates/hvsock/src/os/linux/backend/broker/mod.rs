//! The broker back-end: sockets by way of an endpoint.
//!
//! - [`connection`]: an endpoint connection while it is asked for something;
//! - [`request`]: what is asked, step by step; [`wire`]: what is answered, as the library's values;
//! - [`fault`]: what a broker says, or fails to say, as errors;
//! - [`pending`]: a connect that nobody waits for;
//! - [`control`]: what the broker says of a connection beside its data;
//! - [`stream`]: a connection, on one of the transports;
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

/// Asks for a connection or a listener and waits up to `bound` for it.
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

/// Asks one thing that is no connection or listener, and returns the endpoint connection with
/// the answer.
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
