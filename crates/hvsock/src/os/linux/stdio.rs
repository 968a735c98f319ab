//! A child process's standard input and output: the connection's own descriptor where it has one.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::thread::JoinHandle;

use super::owned_fds;
use crate::HvStream;

/// What keeps the connection while the child runs.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The connection lives as long as this is open.
    _control: OwnedFd,
    /// Moves what the child writes, where a thread must.
    output: Option<JoinHandle<()>>,
}

/// Starts `command` on the connection.
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
    /// Waits until all that the child wrote is on its way.
    pub(crate) fn finish(self) {
        if let Some(output) = self.output {
            // It does not panic; and if it did, nothing more could be moved.
            let _ = output.join();
        }
    }
}
