//! Requests, for callers that may block.

use std::io;
use std::time::{Duration, Instant};

use hvsock_endpoint::{BrokerMessage, ClientMessage};

use super::endpoint_connection::EndpointConnection;
use super::exchange::{Exchange, Outcome, Step};
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

/// Connects to the endpoint. Waits up to `timeout`.
pub(super) fn open(endpoint: &Endpoint, timeout: Duration) -> io::Result<EndpointConnection> {
    EndpointConnection::open(endpoint, timeout).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, error.to_string()),
        _ => error,
    })
}
