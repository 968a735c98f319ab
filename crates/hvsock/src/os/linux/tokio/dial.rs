//! Asking a back-end without blocking a worker thread.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;

use super::watch::{Watched, watch};
use crate::Endpoint;
use crate::backend::{self, Dial, Outcome, Request, RequestKind};
use crate::os::backend::Conversation;

/// The bytes that a ring should hold between tasks, where nobody said otherwise. A task must not
/// look whether its peer does something, it can only be woken, which takes some 30 µs where the
/// two run on different processors. What memory moves in that time has to fit, or both only ever
/// wait for each other. Threads look for a moment instead, and get along with a quarter of it.
const RING_FOR_TASKS: u32 = 1024 * 1024;

/// Asks for a connection or a listener and waits up to `bound` for it.
pub(crate) async fn obtain(
    endpoint: Endpoint,
    mut request: Request,
    bound: Duration,
) -> io::Result<Outcome> {
    if backend::uses_vsock(&endpoint) {
        return by_kernel(endpoint, request, bound).await;
    }
    if request.settings.ring_size == 0 {
        request.settings.ring_size = RING_FOR_TASKS;
    }
    match tokio::time::timeout(bound, ask(endpoint, request, bound)).await {
        Ok(result) => result,
        Err(_) => {
            let text = "the broker does not answer";
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        }
    }
}

/// Has the kernel connect; all else that it is asked for takes no time.
async fn by_kernel(
    endpoint: Endpoint,
    mut request: Request,
    bound: Duration,
) -> io::Result<Outcome> {
    let connects = matches!(request.kind, RequestKind::Connect { .. });
    if !connects || request.flags.dry_run {
        return backend::obtain(&endpoint, &mut request, bound);
    }
    let dial = Arc::new(Dial::start(&endpoint, request)?);
    let watched = watch(Watched::Dial(Arc::clone(&dial)), Interest::READABLE)?;
    let connected = async {
        loop {
            let mut guard = watched.readable().await?;
            if let Ok(result) = guard.try_io(|_| dial.progress()) {
                return result.map(Outcome::Connected);
            }
        }
    };
    match tokio::time::timeout(bound, connected).await {
        Ok(result) => result,
        Err(_) => Err(dial.silent()),
    }
}

async fn ask(endpoint: Endpoint, mut request: Request, bound: Duration) -> io::Result<Outcome> {
    let conversation = open(endpoint, bound).await?;
    for option in request.options() {
        conversation.ask(&option)?;
    }
    let watched = watch(
        Watched::Conversation(conversation.clone()),
        Interest::READABLE,
    )?;
    loop {
        conversation.ask(&request.next())?;
        let answer = loop {
            let mut guard = watched.readable().await?;
            if let Ok(answer) = guard.try_io(|_| conversation.answer()) {
                break answer?;
            }
        };
        if let Some(outcome) = request.advance(&conversation, answer)? {
            return Ok(outcome.into());
        }
    }
}

/// Connects to the endpoint: here if the broker has time, else on a thread that may wait for it.
async fn open(endpoint: Endpoint, bound: Duration) -> io::Result<Conversation> {
    match Conversation::open(&endpoint, Duration::ZERO) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        result => return result,
    }
    let waiting = tokio::task::spawn_blocking(move || Conversation::open(&endpoint, bound));
    match waiting.await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(io::Error::new(io::ErrorKind::TimedOut, error.to_string()))
        }
        Ok(result) => result,
        Err(gone) => Err(io::Error::other(gone)),
    }
}
