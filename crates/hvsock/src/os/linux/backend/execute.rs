//! Requests to the chosen back-end.

use std::io;
use std::time::Duration;

use hvsock_endpoint::{BrokerMessage, ClientMessage};

use super::broker::{self, EndpointConnection};
use super::choose::{Backend, choose};
use super::dispatch::{Listener, Stream};
use super::vsock;
use crate::Endpoint;
use crate::backend::{OutcomeOf, Request};

/// The result of a request.
pub(crate) type Outcome = OutcomeOf<Stream, Listener>;

/// Executes a request: connects, listens or explains. Waits up to `timeout`.
pub(crate) fn execute(
    endpoint: &Endpoint,
    request: Request,
    timeout: Duration,
) -> io::Result<Outcome> {
    match choose(endpoint) {
        Backend::Broker => broker::execute(endpoint, request, timeout).map(Into::into),
        Backend::Vsock => vsock::execute(&request, timeout).map(Into::into),
    }
}

/// Whether a request may wait for an answer of the host before it connects or listens.
#[cfg(feature = "tokio")]
pub(crate) fn needs_host(request: &Request) -> bool {
    vsock::needs_host(request)
}

/// Sends a request that creates no socket.
pub(super) fn query(
    endpoint: &Endpoint,
    message: &ClientMessage,
) -> io::Result<(EndpointConnection, BrokerMessage)> {
    match choose(endpoint) {
        Backend::Broker => broker::query(endpoint, message),
        Backend::Vsock => Err(vsock::no_registry(message)),
    }
}

impl From<broker::Outcome> for Outcome {
    fn from(outcome: broker::Outcome) -> Self {
        match outcome {
            OutcomeOf::Connected(stream) => Self::Connected(stream.into()),
            OutcomeOf::Listening(listener) => Self::Listening(Listener::Broker(listener)),
            OutcomeOf::Explained(explanation) => Self::Explained(explanation),
        }
    }
}

impl From<vsock::Outcome> for Outcome {
    fn from(outcome: vsock::Outcome) -> Self {
        match outcome {
            OutcomeOf::Connected(stream) => Self::Connected(stream.into()),
            OutcomeOf::Listening(listener) => Self::Listening(Listener::Vsock(listener)),
            OutcomeOf::Explained(explanation) => Self::Explained(explanation),
        }
    }
}
