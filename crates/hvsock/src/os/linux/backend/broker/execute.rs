//! Requests, for callers that may block.

use std::io;
use std::time::{Duration, Instant};

use hvsock_endpoint::{BrokerMessage, ClientMessage};

use super::arena::{self, Attempt};
use super::endpoint_connection::EndpointConnection;
use super::errors;
use super::exchange::{Exchange, Outcome, Step};
use super::stream::Stream;
use crate::Endpoint;
use crate::backend::errors::unexpected_reply;
use crate::backend::{REPLY_TIMEOUT, Request, RequestKind};

/// Executes a request: connects, listens or explains. Waits up to `timeout`, and then for
/// [`grace`] if only the broker is silent.
pub(crate) fn execute(
    endpoint: &Endpoint,
    request: Request,
    timeout: Duration,
) -> io::Result<Outcome> {
    let deadline = Instant::now() + timeout + grace(&request, timeout);
    execute_until(endpoint, request, timeout, deadline)
        .map_err(|error| errors::with_timeout(error, timeout))
}

/// How much longer than `timeout` to wait for the reply to a request.
///
/// The broker has the timeout of a connect, too, and answers with the refusal `TimedOut` when the peer was
/// too late. The answer arrives a little after the timeout; without it the broker itself is silent.
pub(crate) fn grace(request: &Request, timeout: Duration) -> Duration {
    const SHORTEST: Duration = Duration::from_millis(250);
    const LONGEST: Duration = Duration::from_secs(1);

    match request.kind {
        RequestKind::Connect { .. } if !request.flags.dry_run => {
            (timeout / 2).clamp(SHORTEST, LONGEST)
        }
        _ => Duration::ZERO,
    }
}

fn execute_until(
    endpoint: &Endpoint,
    request: Request,
    timeout: Duration,
    deadline: Instant,
) -> io::Result<Outcome> {
    let offer = match arena::attempt(endpoint, &request) {
        Attempt::Connected(arena, end) => {
            let stream = Stream::in_arena(&arena, end).ok_or_else(unexpected_reply)?;
            return Ok(Outcome::Connected(stream));
        }
        Attempt::Refused(refusal) => return Err(refusal.into()),
        Attempt::Other(offer) => offer,
    };
    let mut connection = open(endpoint, timeout)?;
    let mut exchange = Exchange::with_arenas(request, &connection, offer);
    loop {
        for option in exchange.options() {
            connection.send_request(&option)?;
        }
        loop {
            connection.send_request(&exchange.next())?;
            exchange.prepare(endpoint);
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
