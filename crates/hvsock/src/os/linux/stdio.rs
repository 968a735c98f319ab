//! The standard input and output of a child process: the connection's own descriptor if it has one.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::thread::JoinHandle;

use super::owned_fds;
use crate::HvStream;

/// Keeps the connection open while the child runs.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The connection lives as long as this is open.
    _control: OwnedFd,
    /// The thread that copies the child's output, if one is needed.
    output: Option<JoinHandle<()>>,
}

/// Starts `command` with the connection.
pub(crate) fn spawn(stream: HvStream, mut command: Command) -> io::Result<(Child, Connection)> {
    let (fds, output) = owned_fds::take_fds(stream)?;
    command.stdin(fds.data.try_clone()?).stdout(fds.data);
    let child = command.spawn()?;
    let connection = Connection {
        _control: fds.control,
        output,
    };
    Ok((child, connection))
}

impl Connection {
    /// Waits until the child's output has been written to the connection.
    pub(crate) fn finish(self) {
        if let Some(output) = self.output {
            // The thread does not panic. If it did, nothing more could be copied.
            let _ = output.join();
        }
    }
}
