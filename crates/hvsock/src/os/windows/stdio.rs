//! The standard input and output of a child process: pipes, since few programs accept a socket as a
//! file, and two threads that copy the bytes.

use std::io::{self, PipeReader, PipeWriter};
use std::net::Shutdown;
use std::process::{Child, Command};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use crate::HvStream;
use crate::copy::{CopyEnd, copy};

/// The connection and the thread that copies while the child runs.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: HvStream,
    output: JoinHandle<()>,
    /// Why the connection broke, if it did.
    broken: Arc<OnceLock<io::Error>>,
}

/// Starts `command` with the connection.
pub(crate) fn spawn(stream: HvStream, mut command: Command) -> io::Result<(Child, Connection)> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    let (their_input, input) = io::pipe()?;
    let (output, their_output) = io::pipe()?;
    let (from, to) = (stream.try_clone()?, stream.try_clone()?);
    let child = command.stdin(their_input).stdout(their_output).spawn()?;
    // The command holds the child's ends of the pipes; the pipes would never reach end of file.
    drop(command);
    let broken = Arc::new(OnceLock::new());
    let set = Arc::clone(&broken);
    thread::Builder::new()
        .name("hvsock-child-in".into())
        .spawn(move || copy_to_program(&from, input, &set))?;
    let output = thread::Builder::new()
        .name("hvsock-child-out".into())
        .spawn(move || copy_from_program(output, &to))?;
    let connection = Connection {
        stream,
        output,
        broken,
    };
    Ok((child, connection))
}

/// Copies from the connection to the child.
fn copy_to_program(from: &HvStream, mut to: PipeWriter, broken: &OnceLock<io::Error>) {
    match copy(from, &mut to) {
        CopyEnd::Finished => {}
        CopyEnd::ReadError(error) => {
            // Before the child sees the end of its pipe, which cannot report this.
            let _ = broken.set(error);
        }
        // The child has stopped reading. The peer must learn that.
        CopyEnd::WriteError => drop(from.shutdown(Shutdown::Read)),
    }
}

/// Copies from the child to the connection.
fn copy_from_program(from: PipeReader, to: &HvStream) {
    if let CopyEnd::Finished = copy(from, to) {
        // An error needs no handling: both have ended then.
        let _ = to.shutdown(Shutdown::Write);
    }
}

impl Connection {
    /// Why the connection broke, if it did.
    pub(crate) fn error(&self) -> Option<io::Error> {
        let error = self.broken.get()?;
        // `io::Error` cannot be cloned; its refusal can.
        Some(match crate::refusal_of(error) {
            Some(refusal) => refusal.clone().into_reset_error(),
            None => io::Error::new(error.kind(), error.to_string()),
        })
    }

    /// Waits until the child's output has been written to the connection.
    pub(crate) fn finish(self) {
        // The thread does not panic. If it did, nothing more could be copied.
        let _ = self.output.join();
        // The child does not read any more. This ends the other thread.
        let _ = self.stream.shutdown(Shutdown::Read);
    }
}
