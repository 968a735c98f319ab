//! The broker back-end: sockets by way of an endpoint.
//!
//! - [`conversation`]: an endpoint connection while it is asked for something;
//! - [`request`]: what is asked, step by step; [`wire`]: what is answered, as the library's values;
//! - [`fault`]: what a broker says, or fails to say, as errors;
//! - [`dial`]: a connect that nobody waits for;
//! - [`control`]: what the broker says of a connection beside its data;
//! - [`stream`]: a connection, on one of the transports;
//! - [`listener`]: a listener.

mod control;
mod conversation;
mod dial;
mod fault;
mod listener;
mod request;
mod stream;
mod wire;

use std::io;
use std::time::{Duration, Instant};

pub(crate) use conversation::Conversation;
pub(crate) use dial::Dial;
pub(crate) use listener::Listener;
pub(crate) use request::Outcome;
pub(crate) use stream::{Ring, Stream};

use hvsock_endpoint::{BrokerMessage, ClientMessage};

use crate::Endpoint;
use crate::backend::{ANSWER_BOUND, Request};

/// Asks for a connection or a listener and waits up to `bound` for it.
pub(crate) fn obtain(
    endpoint: &Endpoint,
    request: &mut Request,
    bound: Duration,
) -> io::Result<Outcome> {
    let deadline = Instant::now() + bound;
    let conversation = open(endpoint, bound)?;
    for option in request.options() {
        conversation.ask(&option)?;
    }
    loop {
        conversation.ask(&request.next())?;
        let answer = conversation.wait_answer(deadline)?;
        if let Some(outcome) = request.advance(&conversation, answer)? {
            return Ok(outcome);
        }
    }
}

/// Asks one thing that is no connection or listener, and returns the endpoint connection with
/// the answer.
pub(crate) fn ask(
    endpoint: &Endpoint,
    message: &ClientMessage,
) -> io::Result<(Conversation, BrokerMessage)> {
    let deadline = Instant::now() + ANSWER_BOUND;
    let conversation = open(endpoint, ANSWER_BOUND)?;
    conversation.ask(message)?;
    let answer = conversation.wait_answer(deadline)?;
    Ok((conversation, answer.message))
}

fn open(endpoint: &Endpoint, bound: Duration) -> io::Result<Conversation> {
    Conversation::open(endpoint, bound).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, error.to_string()),
        _ => error,
    })
}
