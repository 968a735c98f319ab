//! A connection as the standard input and output of a child process.

use std::io;
use std::process::{Child, Command, ExitStatus};

use crate::{HvStream, os};

/// A child process that has a connection as its standard input and output; from
/// [`HvStream::spawn`].
///
/// Dropping it leaves the child running. As with any child, the bytes of one that was not waited
/// for can be lost where this process moves them and ends.
#[derive(Debug)]
#[must_use = "a child that is not waited for can lose what it wrote last"]
pub struct ConnectedChild {
    child: Child,
    connection: os::stdio::Connection,
}

impl HvStream {
    /// Starts a program with the connection as its standard input and output. The program needs
    /// to know nothing of hvsock: the end of its output is the end of this side's data.
    ///
    /// Where the connection was made with `plain(true)`
    /// ([`ConnectOptions`](crate::ConnectOptions::plain),
    /// [`ListenOptions`](crate::ListenOptions::plain)), or by `AF_VSOCK`, the program gets the
    /// connection itself; any other way, and always on Windows, two threads of this process move
    /// the bytes.
    ///
    /// ```no_run
    /// use std::process::Command;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let listener = hvsock::HvListener::options().plain(true).listen(("any", "HV Socket Demo"))?;
    /// for stream in listener.incoming() {
    ///     let status = stream?.spawn(Command::new("cat"))?.wait()?;
    ///     println!("cat ended with {status}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn spawn(self, command: Command) -> io::Result<ConnectedChild> {
        let (child, connection) = os::stdio::spawn(self, command)?;
        Ok(ConnectedChild { child, connection })
    }
}

impl ConnectedChild {
    /// The process.
    pub fn child(&self) -> &Child {
        &self.child
    }

    /// The process, to kill it for instance.
    pub fn child_mut(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits until the child has ended and all that it wrote is on its way.
    pub fn wait(mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait()?;
        self.connection.finish();
        Ok(status)
    }
}
