//! The signals that end a command: SIGINT (Ctrl-C) and SIGTERM.

use std::io;
use std::os::fd::AsFd;
use std::thread;

use hvsock::Lease;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// Catches SIGINT and SIGTERM from its creation on.
pub struct Termination {
    runtime: Runtime,
    interrupt: Signal,
    terminate: Signal,
}

/// A signal that ends a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// SIGINT: by its user, as with Ctrl-C.
    Interrupt,
    /// SIGTERM: as a rule by a service manager.
    Terminate,
}

impl Termination {
    /// Installs the handlers.
    pub fn catch() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (interrupt, terminate) = {
            let _inside = runtime.enter();
            (
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
            )
        };
        Ok(Self {
            runtime,
            interrupt,
            terminate,
        })
    }

    /// Waits for a signal or a change of the lease. Returns whether it was a signal.
    pub fn wait_or_lease_end(&mut self, lease: &Lease) -> io::Result<bool> {
        let change = readable(lease, "lease")?;
        let (interrupt, terminate) = (&mut self.interrupt, &mut self.terminate);
        Ok(self.runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => true,
                _ = terminate.recv() => true,
                _ = change => false,
            }
        }))
    }

    /// Waits for a signal, or for what `ended` receives, which is returned.
    pub fn wait_or<T>(&mut self, ended: oneshot::Receiver<T>) -> Option<T> {
        let (interrupt, terminate) = (&mut self.interrupt, &mut self.terminate);
        self.runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => None,
                _ = terminate.recv() => None,
                received = ended => received.ok(),
            }
        })
    }

    /// Waits for a signal, and calls `hang_up` for each SIGHUP, which ends nothing from now on. Returns which one came,
    /// or `None` if the descriptor was readable before.
    pub fn wait_or_readable(
        &mut self,
        fd: impl AsFd,
        mut hang_up: impl FnMut(),
    ) -> io::Result<Option<End>> {
        let mut changed = readable(fd, "handed-over")?;
        let (interrupt, terminate) = (&mut self.interrupt, &mut self.terminate);
        self.runtime.block_on(async {
            let mut hangup = signal(SignalKind::hangup())?;
            loop {
                tokio::select! {
                    _ = interrupt.recv() => return Ok(Some(End::Interrupt)),
                    _ = terminate.recv() => return Ok(Some(End::Terminate)),
                    _ = hangup.recv() => hang_up(),
                    _ = &mut changed => return Ok(None),
                }
            }
        })
    }

    /// Waits for a signal.
    pub fn wait(&mut self) {
        let (interrupt, terminate) = (&mut self.interrupt, &mut self.terminate);
        self.runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
    }
}

/// Receives when a descriptor is readable.
fn readable(fd: impl AsFd, name: &str) -> io::Result<oneshot::Receiver<()>> {
    let fd = fd.as_fd().try_clone_to_owned()?;
    let (changed, change) = oneshot::channel();
    // The thread ends with the process, which is soon after.
    thread::Builder::new().name(name.into()).spawn(move || {
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        while poll(&mut fds, None) == Err(Errno::INTR) {}
        let _ = changed.send(());
    })?;
    Ok(change)
}
