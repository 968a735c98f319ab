//! The events that end a command: Ctrl-C, Ctrl-Break, and the end of the console or session.

use std::io;
use std::time::Duration;

use hvsock::Lease;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::windows::{self, CtrlBreak, CtrlC, CtrlClose, CtrlLogoff, CtrlShutdown};

/// The interval at which a lease is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Catches all of these events from its creation on.
pub struct Termination {
    runtime: Runtime,
    signals: (CtrlC, CtrlBreak, CtrlClose, CtrlLogoff, CtrlShutdown),
}

impl Termination {
    /// Installs the handlers.
    pub fn catch() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let signals = {
            let _inside = runtime.enter();
            (
                windows::ctrl_c()?,
                windows::ctrl_break()?,
                windows::ctrl_close()?,
                windows::ctrl_logoff()?,
                windows::ctrl_shutdown()?,
            )
        };
        Ok(Self { runtime, signals })
    }

    /// Waits for an event or the end of the lease. Returns whether it was an event.
    pub fn wait_or_lease_end(&mut self, lease: &Lease) -> io::Result<bool> {
        let (c, r#break, close, logoff, shutdown) = &mut self.signals;
        Ok(self.runtime.block_on(async {
            let ended = async {
                while lease.check().is_ok() {
                    tokio::time::sleep(POLL_INTERVAL).await;
                }
            };
            tokio::select! {
                _ = c.recv() => true,
                _ = r#break.recv() => true,
                _ = close.recv() => true,
                _ = logoff.recv() => true,
                _ = shutdown.recv() => true,
                () = ended => false,
            }
        }))
    }
}
