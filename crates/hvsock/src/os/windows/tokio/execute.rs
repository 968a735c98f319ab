//! Executes requests without blocking a worker thread.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use hvsock_address::{PartitionRef, ServiceRef};
use tokio::io::Interest;
use tokio::time::{Instant, timeout_at};

use super::watch::Watch;
use crate::Endpoint;
use crate::backend::{self, Outcome, PendingConnect, Request, RequestKind};

/// Executes a request: connects, listens or explains. Waits up to `timeout`.
pub(crate) async fn execute(
    endpoint: Endpoint,
    request: Request,
    timeout: Duration,
) -> io::Result<Outcome> {
    let deadline = Instant::now() + timeout;
    let connects = matches!(request.kind, RequestKind::Connect { .. });
    let ids = matches!(request.address.partition, PartitionRef::Id(_))
        && matches!(request.address.service, ServiceRef::Id(_));
    let explains = request.flags.dry_run;
    let start = move || {
        if connects && !explains {
            PendingConnect::start(&endpoint, request).map(Started::Connecting)
        } else {
            backend::execute(&endpoint, request, timeout).map(Started::Done)
        }
    };
    let started = if connects && ids && !explains {
        start()
    } else {
        // Names and the facts about a listen are queried from services that may be slow.
        let asked = tokio::task::spawn_blocking(start);
        match timeout_at(deadline, asked).await {
            Ok(Ok(started)) => started,
            Ok(Err(gone)) => return Err(io::Error::other(gone)),
            Err(_) => {
                let text = "Windows did not resolve this address in time";
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
        }
    };
    let pending = match started? {
        Started::Connecting(pending) => pending,
        Started::Done(outcome) => return Ok(outcome),
    };
    let watch = Watch::new(pending.descriptor())?;
    let connected = poll_fn(|cx| watch.poll(cx, Interest::WRITABLE, || pending.progress()));
    match timeout_at(deadline, connected).await {
        Ok(result) => result.map(Outcome::Connected),
        Err(_) => Err(pending.no_reply_error()),
    }
}

/// The result of the blocking part.
enum Started {
    Connecting(PendingConnect),
    Done(Outcome),
}
