//! The standard input and output of a child process: an `AF_VSOCK` connection's own descriptor, or a
//! socket whose bytes this process copies.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hvsock_sys::child::ChildHandle;

use super::owned_fds::{OwnedFds, copy_fds};
use crate::HvStream;
use crate::Transport;

/// How long a child may take to end after `SIGTERM`.
const GRACE: Duration = Duration::from_secs(2);

/// Keeps the connection open while the child runs.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The connection lives as long as this is open.
    _control: OwnedFd,
    /// The thread that copies the child's output, if one is needed.
    output: Option<JoinHandle<()>>,
    /// Why the connection broke, if it did.
    broken: Arc<OnceLock<io::Error>>,
}

/// Starts `command` with the connection.
pub(crate) fn spawn(stream: HvStream, mut command: Command) -> io::Result<(Child, Connection)> {
    let broken = Arc::new(OnceLock::new());
    let (started, handle) = mpsc::channel::<ChildHandle>();
    // A child with the descriptor of a broker's connection would take a reset for the end of file.
    let (fds, output) = match stream.transport() {
        Transport::Vsock => (stream.into_owned_fds()?, None),
        _ => {
            let set = Arc::clone(&broken);
            let (fds, output) = copy_fds(stream, move |error| {
                let _ = set.set(error);
                // The child may not have started.
                if let Ok(child) = handle.recv() {
                    child.end(Instant::now() + GRACE);
                }
            })?;
            (fds, Some(output))
        }
    };
    let OwnedFds { data, control } = fds;
    command.stdin(data.try_clone()?).stdout(data);
    let child = command.spawn()?;
    // The command holds the child's ends, which only the child may hold.
    drop(command);
    if let Ok(handle) = ChildHandle::new(&child) {
        // Nothing receives it without a thread that copies.
        let _ = started.send(handle);
    }
    let connection = Connection {
        _control: control,
        output,
        broken,
    };
    Ok((child, connection))
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
        if let Some(output) = self.output {
            // The thread does not panic. If it did, nothing more could be copied.
            let _ = output.join();
        }
    }
}
