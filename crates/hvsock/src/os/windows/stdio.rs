//! A child process's standard input and output: pipes, since few programs take a socket for a
//! file, and two threads that move the bytes.

use std::io::{self, PipeReader, PipeWriter};
use std::net::Shutdown;
use std::process::{Child, Command};
use std::thread::{self, JoinHandle};

use crate::HvStream;
use crate::copy::{CopyEnd, copy};

/// What moves the bytes while the child runs.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: HvStream,
    output: JoinHandle<()>,
}

/// Starts `command` on the connection.
pub(crate) fn spawn(stream: HvStream, mut command: Command) -> io::Result<(Child, Connection)> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    let (their_input, input) = io::pipe()?;
    let (output, their_output) = io::pipe()?;
    let (from, to) = (stream.try_clone()?, stream.try_clone()?);
    let child = command.stdin(their_input).stdout(their_output).spawn()?;
    // It holds the child's ends of the pipes: their end would never be seen.
    drop(command);
    thread::Builder::new()
        .name("hvsock-child-in".into())
        .spawn(move || copy_to_program(&from, input))?;
    let output = thread::Builder::new()
        .name("hvsock-child-out".into())
        .spawn(move || copy_from_program(output, &to))?;
    Ok((child, Connection { stream, output }))
}

/// From the connection to the child.
fn copy_to_program(from: &HvStream, to: PipeWriter) {
    if let CopyEnd::WriteError = copy(from, to) {
        // It reads no more, which the other end is to know.
        let _ = from.shutdown(Shutdown::Read);
    }
}

/// From the child to the connection.
fn copy_from_program(from: PipeReader, to: &HvStream) {
    if let CopyEnd::Finished = copy(from, to) {
        // Nothing can be done about an error: it is over for both by then.
        let _ = to.shutdown(Shutdown::Write);
    }
}

impl Connection {
    /// Waits until all that the child wrote is on its way.
    pub(crate) fn finish(self) {
        // It does not panic; and if it did, nothing more could be moved.
        let _ = self.output.join();
        // The child reads no more. The other thread hears of it and ends.
        let _ = self.stream.shutdown(Shutdown::Read);
    }
}
