//! Standard input to a connection and the connection to standard output, each direction until its
//! own end.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::thread;

use anyhow::{Context as _, Result};
use hvsock::HvStream;

use crate::context::Context;
use crate::failure::{Failure, OutputGone};
use crate::os::stdio;

/// Bytes moved at once.
const PIECE: usize = 64 * 1024;

/// Copies both ways until the other end has ended and either took all input or reads no more.
///
/// The end of standard input ends the sending half only, and the end of the connection closes
/// standard output only, so that what runs on either side may go on with its other half. A cut
/// is a failure that says why.
pub fn run(stream: &HvStream, context: &Context) -> Result<()> {
    let (sending, sent) = stdio::sending().context("cannot tell the end of the input")?;
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

/// The connection's bytes to standard output, until their end.
fn receive(mut stream: &HvStream) -> Result<()> {
    let mut stdout = stdio::output()?;
    let mut buffer = vec![0; PIECE];
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(cut(&error)),
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

/// Standard input to the connection, until the end of either.
fn send(mut stream: &HvStream) -> io::Result<()> {
    let mut stdin = stdio::input()?;
    let mut buffer = vec![0; PIECE];
    loop {
        match stdin.read(&mut buffer) {
            Ok(0) => return stream.shutdown(Shutdown::Write),
            Ok(count) => stream.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A connection that ended other than by its end.
fn cut(error: &io::Error) -> anyhow::Error {
    match hvsock::refusal_of(error) {
        Some(refusal) => Failure::new(format!("the connection was cut: {refusal}")).into(),
        None => Failure::new(format!("the connection broke: {error}")).into(),
    }
}
