//! A child process with a connection as its standard input and output.

use std::io;
use std::process::{Child, Command, ExitStatus};

use crate::{HvStream, os};

/// A child process that has a connection as its standard input and output; see [`HvStream::spawn`].
///
/// Dropping it does not kill the child. If this process copies the bytes and exits before
/// [`wait`](Self::wait) returns, the last output of the child can be lost.
#[derive(Debug)]
#[must_use = "a child that is not waited for can lose what it wrote last"]
pub struct ConnectedChild {
    child: Child,
    connection: os::stdio::Connection,
}

impl HvStream {
    /// Starts a program with the connection as its standard input and output.
    ///
    /// The program does not use this library. The end of its output is the end of this end's data
    /// (half-close).
    ///
    /// The program gets the connection itself if that was made with `AF_VSOCK`. Otherwise, and always
    /// on Windows, two threads of this process copy the bytes, and the program sees no end of file when
    /// the connection breaks: it gets `SIGTERM`, and `SIGKILL` two seconds later, and only then its
    /// input ends. (On Windows its input ends; [`ConnectedChild::wait`] reports the error.)
    /// On Linux, `into_owned_fds` is for a program that must have the descriptor itself.
    ///
    /// # Errors
    ///
    /// The error of [`Command::spawn`] if the program does not start; the connection is closed
    /// then. An error of the system if no descriptor, pipe or thread can be created.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::process::Command;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let listener = hvsock::HvListener::bind(("any", "HV Socket Demo"))?;
    /// for stream in listener.incoming() {
    ///     let status = stream?.spawn(Command::new("cat"))?.wait()?;
    ///     println!("cat ended with {status}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "inetd")]
    #[doc(alias = "stdio")]
    pub fn spawn(self, command: Command) -> io::Result<ConnectedChild> {
        let (child, connection) = os::stdio::spawn(self, command)?;
        Ok(ConnectedChild { child, connection })
    }
}

impl ConnectedChild {
    /// Returns the process.
    pub fn child(&self) -> &Child {
        &self.child
    }

    /// Returns the process mutably, for example to kill it.
    pub fn child_mut(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits until the child has exited and its output has been written to the connection. Blocks.
    ///
    /// # Errors
    ///
    /// The error of [`Child::wait`]. The error of the connection if that broke before the child exited:
    /// what the child has received is not complete, whatever its exit status says.
    pub fn wait(mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait()?;
        if let Some(error) = self.connection.error() {
            return Err(error);
        }
        self.connection.finish();
        Ok(status)
    }
}
