//! Copies standard input to a connection and the connection to standard output. Each direction
//! ends on its own.

use std::io::{self, Read, Write};
use std::net::Shutdown;
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
/// output only. The other direction continues in both cases.
///
/// # Errors
///
/// Fails with the reason if the connection is reset or standard output cannot be written.
pub fn run(stream: &HvStream, context: &Context) -> Result<()> {
    let (sending, sent) = stdio::sending().context("cannot watch for the end of the input")?;
    let upward = stream.try_clone()?;
    let quiet = context.clone();
    thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            if let Err(error) = send(&upward) {
                quiet.note(&format!("not all input was sent: {error}"));
            }
            drop(upward);
            drop(sending);
        })
        .context("cannot start a thread")?;
    receive(stream)?;
    Ok(sent.wait(stream)?)
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
fn send(stream: &HvStream) -> io::Result<()> {
    match copy(stdio::input()?, stream) {
        Ok(()) => stream.shutdown(Shutdown::Write),
        Err(Fault::Read(error) | Fault::Write(error)) => Err(error),
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

/// The failure of a connection that ended without a half-close.
fn failed(error: &io::Error) -> anyhow::Error {
    match hvsock::refusal_of(error) {
        Some(refusal) => Failure::new(format!("the connection was closed: {refusal}")).into(),
        None => Failure::new(format!("the connection failed: {error}")).into(),
    }
}
