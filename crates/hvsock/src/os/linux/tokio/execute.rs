//! Executes requests without blocking a worker thread.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;

use super::watch::{Watched, watch};
use crate::Endpoint;
use crate::backend::{self, Outcome, PendingConnect, Request, RequestKind};
use crate::os::backend::{EndpointConnection, Exchange, Step, grace, needs_host, with_timeout};

/// The default capacity of a ring for tasks, in bytes. A task cannot spin; its wakeup takes some 30
/// µs if the peer runs on another processor. The ring has to hold what memory transfers in that
/// time, or both ends wait for each other. Threads spin for a moment and need a quarter of it.
const DEFAULT_TASK_RING_SIZE: u32 = 1024 * 1024;

/// Executes a request: connects, listens or explains. Waits up to `timeout`.
pub(crate) async fn execute(
    endpoint: Endpoint,
    mut request: Request,
    timeout: Duration,
) -> io::Result<Outcome> {
    if backend::uses_vsock(&endpoint) {
        return execute_on_vsock(endpoint, request, timeout).await;
    }
    if request.settings.ring_size == 0 {
        request.settings.ring_size = DEFAULT_TASK_RING_SIZE;
    }
    request.settings.own_memory = true;
    let longest = timeout + grace(&request, timeout);
    let silent = no_reply(request.kind, request.flags.dry_run, timeout);
    match tokio::time::timeout(longest, execute_on_broker(endpoint, request, timeout)).await {
        Ok(result) => result.map_err(|error| with_timeout(error, timeout)),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, silent)),
    }
}

/// What is known of a request without a reply. The broker replies to a connect when the peer has
/// accepted it, so that its silence does not say which of both is late.
fn no_reply(kind: RequestKind, dry_run: bool, timeout: Duration) -> String {
    match kind {
        RequestKind::Connect { .. } if !dry_run => {
            format!("timed out: neither the peer nor the broker answered within {timeout:?}")
        }
        _ => "timed out: the broker does not reply".to_owned(),
    }
}

/// Connects through the kernel. Its other requests block only to ask the host.
async fn execute_on_vsock(
    endpoint: Endpoint,
    request: Request,
    timeout: Duration,
) -> io::Result<Outcome> {
    let connects = matches!(request.kind, RequestKind::Connect { .. });
    if !connects || request.flags.dry_run {
        if !needs_host(&request) {
            return backend::execute(&endpoint, request, timeout);
        }
        let execute = move || backend::execute(&endpoint, request, timeout);
        let executed = tokio::task::spawn_blocking(execute).await;
        return executed.unwrap_or_else(|gone| Err(io::Error::other(gone)));
    }
    let pending = Arc::new(PendingConnect::start(&endpoint, request)?);
    let watched = watch(
        Watched::PendingConnect(Arc::clone(&pending)),
        Interest::READABLE,
    )?;
    let connected = async {
        loop {
            let mut guard = watched.readable().await?;
            if let Ok(result) = guard.try_io(|_| pending.progress()) {
                return result.map(Outcome::Connected);
            }
        }
    };
    match tokio::time::timeout(timeout, connected).await {
        Ok(result) => result,
        Err(_) => Err(pending.no_reply_error()),
    }
}

async fn execute_on_broker(
    endpoint: Endpoint,
    request: Request,
    timeout: Duration,
) -> io::Result<Outcome> {
    let mut connection = open(endpoint.clone(), timeout).await?;
    let mut exchange = Exchange::new(request, &connection);
    loop {
        for option in exchange.options() {
            connection.send_request(&option)?;
        }
        let watched = watch(
            Watched::EndpointConnection(connection.clone()),
            Interest::READABLE,
        )?;
        loop {
            connection.send_request(&exchange.next())?;
            let reply = loop {
                let mut guard = watched.readable().await?;
                if let Ok(reply) = guard.try_io(|_| connection.try_recv_reply()) {
                    break reply?;
                }
            };
            match exchange.advance(&connection, reply)? {
                Step::Done(outcome) => return Ok(outcome.into()),
                Step::Send => {}
                Step::Reopen => break,
            }
        }
        drop(watched);
        connection = open(endpoint.clone(), timeout).await?;
    }
}

/// Connects to the endpoint: here if the broker's queue has a free slot, else on a thread that may
/// block.
async fn open(endpoint: Endpoint, timeout: Duration) -> io::Result<EndpointConnection> {
    match EndpointConnection::open(&endpoint, Duration::ZERO) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        result => return result,
    }
    let waiting = tokio::task::spawn_blocking(move || EndpointConnection::open(&endpoint, timeout));
    match waiting.await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(io::Error::new(io::ErrorKind::TimedOut, error.to_string()))
        }
        Ok(result) => result,
        Err(gone) => Err(io::Error::other(gone)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_broker_is_not_blamed_for_a_peer_that_may_be_late() {
        let connect = RequestKind::Connect { timeout_ms: 5000 };
        let of = |kind, dry_run| no_reply(kind, dry_run, Duration::from_secs(5));
        assert_eq!(
            of(connect, false),
            "timed out: neither the peer nor the broker answered within 5s"
        );
        for (kind, dry_run) in [(connect, true), (RequestKind::Listen { backlog: 1 }, false)] {
            assert_eq!(of(kind, dry_run), "timed out: the broker does not reply");
        }
    }
}
