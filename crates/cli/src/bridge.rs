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
fn receive(mut stream: &HvStream) -> Result<()> {
    let mut stdout = stdio::output()?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(&error)),
        };
        stdout
            .write_all(&buffer[..count])
            .map_err(|error| match error.kind() {
                io::ErrorKind::BrokenPipe => OutputGone.into(),
                _ => anyhow::Error::new(error).context("cannot write the output"),
            })?;
    }
    drop(stdout);
    stdio::end_output()
}

/// Copies standard input to the connection, then shuts down the sending half.
fn send(mut stream: &HvStream) -> io::Result<()> {
    let mut stdin = stdio::input()?;
    let mut buffer = vec![0; CHUNK];
    loop {
        match stdin.read(&mut buffer) {
            Ok(0) => return stream.shutdown(Shutdown::Write),
            Ok(count) => stream.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
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
