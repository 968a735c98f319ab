//! Sending files to the parent and receiving them from it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use hvsock::tokio::HvStream;
use tokio::sync::{Semaphore, oneshot};

use crate::catalog::COPY;
use crate::copy::{
    CopyError, Destination, Line, Link, PATIENCE, Receiver, Sender, Source, Tally, Trust,
    Unobserved,
};
use crate::link::Offer;
use crate::wire::copy as wire;
use wire::{open, sent, told};

/// How many copies may go on at once; each has a thread, buffers, and a descriptor for each folder
/// that it is in.
const COPIES: usize = 16;

/// The service.
pub(super) fn offer() -> Offer {
    let room = Arc::new(Semaphore::new(COPIES));
    Offer::streams(&COPY, move |stream| {
        let room = Arc::clone(&room);
        async move {
            if let Err(error) = handle(stream, &room).await {
                tracing::warn!("a copy could not begin: {error}");
            }
        }
    })
}

async fn handle(stream: HvStream, room: &Semaphore) -> io::Result<()> {
    // More than are served wait, for as long as their hosts do.
    let permit = room.acquire().await.map_err(io::Error::other)?;
    let stream = stream.into_std();
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (ended, end) = oneshot::channel();
    // A thread of its own and not one of the runtime's, which would hold up the agent's end.
    thread::Builder::new().name("copy".into()).spawn(move || {
        match serve(&mut Line::new(stream)) {
            Ok(tally) => tracing::debug!("copied: {tally:?}"),
            Err(error) => tracing::debug!("a copy ended early: {error}"),
        }
        let _ = ended.send(());
    })?;
    let _ = end.await;
    drop(permit);
    Ok(())
}

/// Does what the host wants.
fn serve(line: &mut Line<impl Link>) -> Result<Tally, CopyError> {
    let open: wire::Open = line.receive()?;
    match open.way {
        Some(open::Way::Put(put)) => {
            let place = match Destination::open(&absolute(&put.destination), put.into) {
                Ok(place) => place,
                Err(error) => {
                    let why = wire::Failed::new(&error);
                    let what = Some(told::What::Failed(why));
                    line.send(&wire::Told { what })?;
                    line.flush()?;
                    return Err(error);
                }
            };
            Receiver::new(line, &mut Unobserved, place)
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
            Sender::new(line, &mut Unobserved, get.recursive).run(&sources, get.count)
        }
        None => {
            let error = CopyError::Violation("neither put nor get");
            let why = wire::Failed::new(&error);
            let what = Some(sent::What::Failed(why));
            line.send(&wire::Sent { what })?;
            line.flush()?;
            Err(error)
        }
    }
}

/// A path as the host means it: what is relative begins at the root, since the host has no
/// working folder here.
fn absolute(path: &[u8]) -> PathBuf {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    Path::new("/").join(OsStr::from_bytes(path))
}
