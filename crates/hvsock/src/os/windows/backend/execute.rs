//! Requests, for callers that may block.

use std::io;
use std::time::{Duration, Instant};

use super::endpoint::require_no_endpoint;
use super::listener::Listener;
use super::pending_connect::PendingConnect;
use super::resolve::Target;
use super::stream::Stream;
use super::{explain, facts};
use crate::Endpoint;
use crate::backend::{OutcomeOf, Request, RequestKind};

/// The result of a request.
pub(crate) type Outcome = OutcomeOf<Stream, Listener>;

/// Connects, listens or explains. Waits up to `timeout`.
pub(crate) fn execute(
    endpoint: &Endpoint,
    request: Request,
    timeout: Duration,
) -> io::Result<Outcome> {
    let deadline = Instant::now() + timeout;
    require_no_endpoint(endpoint)?;
    match request.kind {
        RequestKind::Connect { .. } if request.flags.dry_run => {
            let target = Target::of_connect(&request.address)?;
            let explanation = explain::connect(target.address());
            Ok(Outcome::Explained(explanation))
        }
        RequestKind::Connect { .. } => {
            let stream = PendingConnect::start(endpoint, request)?.finish(deadline)?;
            Ok(Outcome::Connected(stream))
        }
        RequestKind::Listen { .. } if request.flags.dry_run => {
            let target = Target::of_listen(&request.address)?;
            let explanation = explain::listen(target.address());
            Ok(Outcome::Explained(explanation))
        }
        RequestKind::Listen { backlog } => {
            let target = Target::of_listen(&request.address)?;
            // Windows permits a bind that can never receive a connection, and does not report it.
            if let Some(refusal) = facts::listen_refusal(target.address()) {
                return Err(refusal.into());
            }
            let listener = Listener::new(&target, backlog, &request)?;
            Ok(Outcome::Listening(listener))
        }
    }
}
