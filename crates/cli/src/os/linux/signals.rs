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
        let fd = lease.as_fd().try_clone_to_owned()?;
        let (changed, change) = oneshot::channel();
        // The thread ends with the process, which is soon after.
        thread::Builder::new().name("lease".into()).spawn(move || {
            let mut fds = [PollFd::new(&fd, PollFlags::IN)];
            while poll(&mut fds, None) == Err(Errno::INTR) {}
            let _ = changed.send(());
        })?;
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
