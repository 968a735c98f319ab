//! Connecting and listening without blocking a worker thread.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use hvsock_address::{PartitionRef, ServiceRef};
use tokio::io::Interest;
use tokio::time::{Instant, timeout_at};

use super::watch::Watch;
use crate::Endpoint;
use crate::backend::{self, Dial, Outcome, Request, RequestKind};

/// Asks for a connection or a listener and waits up to `bound` for it.
pub(crate) async fn obtain(
    endpoint: Endpoint,
    mut request: Request,
    bound: Duration,
) -> io::Result<Outcome> {
    let deadline = Instant::now() + bound;
    let connects = matches!(request.kind, RequestKind::Connect { .. });
    let ids = matches!(request.address.partition, PartitionRef::Id(_))
        && matches!(request.address.service, ServiceRef::Id(_));
    let explains = request.flags.dry_run;
    let begin = move || {
        if connects && !explains {
            Dial::start(&endpoint, request).map(Begun::Connecting)
        } else {
            backend::obtain(&endpoint, &mut request, bound).map(Begun::Done)
        }
    };
    let begun = if connects && ids && !explains {
        begin()
    } else {
        // Names, and what is said of a listen, are asked of services that may be slow.
        let asked = tokio::task::spawn_blocking(begin);
        match timeout_at(deadline, asked).await {
            Ok(Ok(begun)) => begun,
            Ok(Err(gone)) => return Err(io::Error::other(gone)),
            Err(_) => {
                let text = "Windows does not say in time where this address leads";
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
        }
    };
    let dial = match begun? {
        Begun::Connecting(dial) => dial,
        Begun::Done(outcome) => return Ok(outcome),
    };
    let watch = Watch::new(dial.descriptor())?;
    let connected = poll_fn(|cx| watch.poll(cx, Interest::WRITABLE, || dial.progress()));
    match timeout_at(deadline, connected).await {
        Ok(result) => result.map(Outcome::Connected),
        Err(_) => Err(dial.silent()),
    }
}

/// What came of the asking.
enum Begun {
    Connecting(Dial),
    Done(Outcome),
}
