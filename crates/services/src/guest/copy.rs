//! Copies files to the parent and from it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use hvsock::tokio::HvStream;
use tokio::sync::{Semaphore, oneshot};

use crate::catalog::COPY;
use crate::copy::{
    CopyCounters, CopyError, Destination, IDLE_TIMEOUT, Link, MessageStream, Receiver, Sender,
    Source, Trust, Unobserved,
};
use crate::link::ServiceServer;
use crate::wire::copy as wire;
use wire::open;
use wire::receiver_message::What as FromReceiver;
use wire::sender_message::What as FromSender;

/// The most concurrent copies. Each has a thread, buffers, and a descriptor for each folder of its
/// current path.
const COPIES: usize = 16;

/// The service.
pub(super) fn server() -> ServiceServer {
    let limit = Arc::new(Semaphore::new(COPIES));
    ServiceServer::streams(&COPY, move |stream| {
        let limit = Arc::clone(&limit);
        async move {
            if let Err(error) = handle(stream, &limit).await {
                tracing::warn!("cannot start a copy: {error}");
            }
        }
    })
}

async fn handle(stream: HvStream, limit: &Semaphore) -> io::Result<()> {
    // Further copies wait for a permit, for as long as their hosts wait.
    let permit = limit.acquire().await.map_err(io::Error::other)?;
    let stream = stream.into_std();
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
    stream.set_write_timeout(Some(IDLE_TIMEOUT))?;
    let (ended, end) = oneshot::channel();
    // A thread of its own, because one of the runtime's would delay the agent's exit.
    thread::Builder::new().name("copy".into()).spawn(move || {
        match serve(&mut MessageStream::new(stream)) {
            Ok(counters) => tracing::debug!("copied: {counters:?}"),
            Err(error) => tracing::debug!("a copy was aborted: {error}"),
        }
        let _ = ended.send(());
    })?;
    let _ = end.await;
    drop(permit);
    Ok(())
}

/// Handles the host's request.
fn serve(messages: &mut MessageStream<impl Link>) -> Result<CopyCounters, CopyError> {
    let open: wire::Open = messages.receive()?;
    match open.way {
        Some(open::Way::Put(put)) => {
            let path = absolute(&put.destination);
            let opened = Destination::open(&path, put.into);
            let destination = match opened.and_then(|destination| not_own(destination, path)) {
                Ok(destination) => destination,
                Err(error) => {
                    let why = wire::Failed::new(&error);
                    let what = Some(FromReceiver::Failed(why));
                    messages.send(&wire::ReceiverMessage { what })?;
                    messages.flush()?;
                    return Err(error);
                }
            };
            Receiver::new(messages, &mut Unobserved, destination)
                .trust(Trust::Full)
                .archive(put.archive.then_some(Trust::Full))
                .sync(put.sync)
                .run()
        }
        Some(open::Way::Get(get)) => {
            let sources: Vec<_> = get
                .sources
                .iter()
                .map(|path| Source::new(absolute(path)))
                .collect();
            Sender::new(messages, &mut Unobserved, get.recursive).run(&sources, get.count)
        }
        None => {
            let error = CopyError::Violation("neither put nor get");
            let why = wire::Failed::new(&error);
            let what = Some(FromSender::Failed(why));
            messages.send(&wire::SenderMessage { what })?;
            messages.flush()?;
            Err(error)
        }
    }
}

/// Refuses a descriptor of this process, such as `/dev/stdout`: it is not the host's user's.
fn not_own(destination: Destination, path: PathBuf) -> Result<Destination, CopyError> {
    if !destination.is_descriptor() {
        return Ok(destination);
    }
    let why = "this is a descriptor of the agent's own process";
    let error = io::Error::new(io::ErrorKind::InvalidInput, why);
    Err(CopyError::Local { path, error })
}

/// A path from the host. A relative path starts at the root, because the host has no working
/// directory here.
fn absolute(path: &[u8]) -> PathBuf {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    Path::new("/").join(OsStr::from_bytes(path))
}
