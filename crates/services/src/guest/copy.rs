//! Copies files to the parent and from it.

use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use hvsock::tokio::HvStream;
use tokio::io::AsyncReadExt as _;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tokio::time::{sleep, timeout};

use super::audit::{self, Record, Requester};
use crate::catalog::COPY;
use crate::copy::{
    CopyCounters, CopyError, Destination, IDLE_TIMEOUT, KEEPALIVE, Link, MessageStream, Receiver,
    Sender, Source, Trust, Unobserved,
};
use crate::forward::message;
use crate::link::ServiceServer;
use crate::wire::copy as wire;
use wire::open;
use wire::receiver_message::What as FromReceiver;
use wire::sender_message::What as FromSender;

/// The most concurrent copies. Each has a thread, buffers, and a descriptor for each folder of its
/// current path.
const COPIES: usize = 16;

/// The most that a host sends before the guest is ready, in bytes: `Ready`, if it receives.
const EARLY: usize = 64;

/// The service.
pub(super) fn server() -> ServiceServer {
    let limit = Arc::new(Semaphore::new(COPIES));
    let server = ServiceServer::streams(&COPY, move |stream| {
        let limit = Arc::clone(&limit);
        async move {
            if let Err(error) = handle(stream, &limit).await {
                tracing::debug!("cannot start a copy: {error}");
            }
        }
    });
    server.refusing(async |stream, why| {
        if let Err(error) = refuse(stream, why).await {
            tracing::debug!("cannot refuse a copy: {error}");
        }
    })
}

/// Ends a copy before it begins.
async fn refuse(mut stream: HvStream, why: String) -> io::Result<()> {
    let Some(open) = message::receive::<_, wire::Open>(&mut stream).await? else {
        return Ok(());
    };
    let failed = wire::Failed { why };
    match open.way {
        Some(open::Way::Put(_)) => {
            let what = Some(FromReceiver::Failed(failed));
            message::send(&mut stream, &wire::ReceiverMessage { what }).await
        }
        _ => {
            let what = Some(FromSender::Failed(failed));
            message::send(&mut stream, &wire::SenderMessage { what }).await
        }
    }
}

async fn handle(mut stream: HvStream, limit: &Semaphore) -> io::Result<()> {
    let received = timeout(IDLE_TIMEOUT, message::receive(&mut stream)).await;
    let Some(open) = received.map_err(io::Error::from)?? else {
        return Ok(());
    };
    let (permit, received) = match limit.try_acquire() {
        Ok(permit) => (permit, Vec::new()),
        Err(_) => wait(&mut stream, &open, limit).await?,
    };
    let stream = stream.into_std();
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
    stream.set_write_timeout(Some(IDLE_TIMEOUT))?;
    let (ended, end) = oneshot::channel();
    // A thread of its own, because one of the runtime's would delay the agent's exit.
    thread::Builder::new().name("copy".into()).spawn(move || {
        match serve(&mut MessageStream::resumed(stream, &received), open) {
            Ok(counters) => tracing::debug!("copied: {counters:?}"),
            Err(error) => tracing::debug!("a copy was aborted: {error}"),
        }
        let _ = ended.send(());
    })?;
    let _ = end.await;
    drop(permit);
    Ok(())
}

/// Waits until another copy has ended, for as long as the host is there, and tells it so. Returns
/// also what the host has sent meanwhile.
async fn wait<'a>(
    stream: &mut HvStream,
    open: &wire::Open,
    limit: &'a Semaphore,
) -> io::Result<(SemaphorePermit<'a>, Vec<u8>)> {
    let mut received = Vec::with_capacity(EARLY);
    let mut waiting_for = format!("one of the {COPIES} copies to end that run in the guest");
    let permit = limit.acquire();
    tokio::pin!(permit);
    loop {
        let working = wire::Working {
            waiting_for: mem::take(&mut waiting_for),
        };
        let sent = timeout(IDLE_TIMEOUT, send_working(&mut *stream, open, working)).await;
        sent.map_err(io::Error::from)??;
        let pause = sleep(KEEPALIVE);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                permit = &mut permit => return Ok((permit.map_err(io::Error::other)?, received)),
                () = &mut pause => break,
                read = stream.read_buf(&mut received) => {
                    if read? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    if received.len() > EARLY {
                        return Err(io::ErrorKind::InvalidData.into());
                    }
                }
            }
        }
    }
}

/// Sends a keepalive, as the sender or as the receiver that this end will be.
async fn send_working(
    stream: &mut HvStream,
    open: &wire::Open,
    working: wire::Working,
) -> io::Result<()> {
    match open.way {
        Some(open::Way::Put(_)) => {
            let what = Some(FromReceiver::Working(working));
            message::send(stream, &wire::ReceiverMessage { what }).await
        }
        _ => {
            let what = Some(FromSender::Working(working));
            message::send(stream, &wire::SenderMessage { what }).await
        }
    }
}

/// Handles the host's request.
fn serve(
    messages: &mut MessageStream<impl Link>,
    open: wire::Open,
) -> Result<CopyCounters, CopyError> {
    let by = Requester::from(open.requester);
    let (action, paths) = match &open.way {
        Some(open::Way::Put(put)) => ("copy_in", path(&put.destination)),
        Some(open::Way::Get(get)) => {
            let sources = get.sources.iter().map(|source| path(source));
            ("copy_out", sources.collect::<Vec<_>>().join(" "))
        }
        None => ("copy", String::new()),
    };
    let write = |outcome, result: Option<&str>| {
        audit::write(&Record {
            action,
            outcome,
            detail: &paths,
            result,
            by: Some(&by),
            ..Record::default()
        });
    };
    write("started", None);
    let copied = copy(messages, open.way);
    match &copied {
        Ok(counters) => write("done", Some(&counters.summary())),
        Err(error) => write("failed", Some(&error.to_string())),
    }
    copied
}

fn path(path: &[u8]) -> String {
    audit::words([absolute(path).as_os_str()])
}

/// Copies in the direction that the host wants.
fn copy(
    messages: &mut MessageStream<impl Link>,
    way: Option<open::Way>,
) -> Result<CopyCounters, CopyError> {
    match way {
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
            Sender::new(messages, &mut Unobserved, get.recursive)
                .refuse_own_descriptors()
                .run(&sources, get.count)
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
