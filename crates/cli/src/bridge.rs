//! Copies standard input to a connection and the connection to standard output. Each direction
//! ends on its own.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Context as _, Result};
use hvsock::HvStream;
use hvsock_sys::sync::lock;

use crate::context::Context;
use crate::failure::{Failure, OutputGone};
use crate::os::stdio;

/// The size of the copy buffer, in bytes.
const CHUNK: usize = 64 * 1024;

/// Copies both ways until the peer has ended its half and has received all input or reads no more.
///
/// The end of standard input shuts down the sending half only. The peer's half-close closes standard
/// output only. The other direction continues in both cases. Standard input that fails has no end, and
/// what standard output does not take is lost: the connection is reset, so that the peer does not take
/// either for success.
///
/// # Errors
///
/// Fails with the reason if the connection is reset, standard input cannot be read or not all of it sent,
/// or standard output cannot be written.
pub fn run(stream: &HvStream, context: &Context) -> Result<()> {
    let (sending, sent) = stdio::sending().context("cannot watch for the end of the input")?;
    let upward = stream.try_clone()?;
    let quiet = context.clone();
    // Locked during a write.
    let fault = Arc::new(Mutex::new(None));
    let set = Arc::clone(&fault);
    thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            match send(&upward, &set) {
                Ok(None) => {}
                Ok(Some(error)) => {
                    quiet.note(&format!("the end of the input was not sent: {error}"));
                }
                Err(error) => {
                    // Before the reset, which ends the other direction.
                    *lock(&set) = Some(Fault::Read(error));
                    stdio::reset(&upward);
                }
            }
            drop(upward);
            drop(sending);
        })
        .context("cannot start a thread")?;
    let received = receive(stream).and_then(|()| Ok(sent.wait(stream)?));
    if received.is_err() {
        // Also if the reader of standard output has closed it.
        stdio::reset(stream);
    }
    // A write that still runs fails at once: the peer reads no more, or the connection was reset.
    let fault = lock(&fault).take();
    match (fault, received) {
        (Some(Fault::Read(error)), _) => {
            let text = format!("cannot read standard input: {error}; the connection was reset");
            Err(Failure::new(text).into())
        }
        (Some(Fault::Write(error)), Ok(())) => {
            Err(Failure::new(format!("not all input was sent: {error}")).into())
        }
        (_, received) => received,
    }
}

/// Copies the connection to standard output until the peer's half-close.
fn receive(stream: &HvStream) -> Result<()> {
    let mut stdout = stdio::output()?;
    copy(stream, &mut stdout).map_err(|fault| match fault {
        Fault::Read(error) => failed(&error),
        Fault::Write(error) if error.kind() == io::ErrorKind::BrokenPipe => OutputGone.into(),
        Fault::Write(error) => anyhow::Error::new(error).context("cannot write the output"),
    })?;
    drop(stdout);
    stdio::end_output()
}

/// Copies standard input to the connection, then shuts down the sending half. Stores a failed write in
/// `fault`, which is locked during each. Returns the error of the shutdown.
fn send(
    mut stream: &HvStream,
    fault: &Mutex<Option<Fault>>,
) -> Result<Option<io::Error>, io::Error> {
    let mut input = stdio::input()?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = match input.read(&mut buffer) {
            Ok(0) => return Ok(stream.shutdown(Shutdown::Write).err()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let mut fault = lock(fault);
        if let Err(error) = stream.write_all(&buffer[..count]) {
            *fault = Some(Fault::Write(error));
            return Ok(None);
        }
    }
}

/// Which side of a copy failed.
enum Fault {
    Read(io::Error),
    Write(io::Error),
}

/// Copies until the end of the input. `std::io::copy` does not say which side failed.
fn copy(mut from: impl Read, mut to: impl Write) -> Result<(), Fault> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&buffer[..count]).map_err(Fault::Write)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Fault::Read(error)),
        }
    }
}

/// The failure of a program that had a connection as its standard input and output.
pub fn child_failed(program: &OsStr, error: io::Error) -> anyhow::Error {
    let program = program.display();
    match hvsock::refusal_of(&error) {
        Some(refusal) => {
            let text = format!("the connection was closed: {refusal}; {program} was told to end");
            Failure::new(text).into()
        }
        None => anyhow::Error::new(error).context(format!("cannot wait for {program}")),
    }
}

/// The failure of a connection that ended without a half-close.
fn failed(error: &io::Error) -> anyhow::Error {
    match hvsock::refusal_of(error) {
        Some(refusal) => Failure::new(format!("the connection was closed: {refusal}")).into(),
        None => Failure::new(format!("the connection failed: {error}")).into(),
    }
}
