//! Copies standard input to a connection and the connection to standard output. Each direction
//! ends on its own.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::{Arc, OnceLock};
use std::thread;

use anyhow::{Context as _, Result};
use hvsock::HvStream;

use crate::context::Context;
use crate::failure::{Failure, OutputGone};
use crate::os::stdio;

/// The size of the copy buffer, in bytes.
const CHUNK: usize = 64 * 1024;

/// Copies both ways until the peer has ended its half and has received all input or reads no more.
///
/// The end of standard input shuts down the sending half only. The peer's half-close closes standard
/// output only. The other direction continues in both cases. Standard input that fails has no end: the
/// connection is reset.
///
/// # Errors
///
/// Fails with the reason if the connection is reset, standard input cannot be read, or standard output
/// cannot be written.
pub fn run(stream: &HvStream, context: &Context) -> Result<()> {
    let (sending, sent) = stdio::sending().context("cannot watch for the end of the input")?;
    let upward = stream.try_clone()?;
    let quiet = context.clone();
    let broken = Arc::new(OnceLock::new());
    let input_failed = Arc::clone(&broken);
    thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            match send(&upward) {
                Ok(()) => {}
                Err(Fault::Write(error)) => {
                    quiet.note(&format!("not all input was sent: {error}"));
                }
                Err(Fault::Read(error)) => {
                    // Before the reset, which ends the other direction.
                    let _ = input_failed.set(error);
                    stdio::reset(&upward);
                }
            }
            drop(upward);
            drop(sending);
        })
        .context("cannot start a thread")?;
    let received = receive(stream).and_then(|()| Ok(sent.wait(stream)?));
    match broken.get() {
        Some(error) => {
            let text = format!("cannot read standard input: {error}; the connection was reset");
            Err(Failure::new(text).into())
        }
        None => received,
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

/// Copies standard input to the connection, then shuts down the sending half.
fn send(stream: &HvStream) -> Result<(), Fault> {
    copy(stdio::input().map_err(Fault::Read)?, stream)?;
    stream.shutdown(Shutdown::Write).map_err(Fault::Write)
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
