//! Being asked to end: Ctrl-C, Ctrl-Break, and the end of the console or of the session.

use std::io;
use std::time::Duration;

use hvsock::Lease;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::windows::{self, CtrlBreak, CtrlC, CtrlClose, CtrlLogoff, CtrlShutdown};

/// How often to look whether a lease still stands.
const LOOK_UP: Duration = Duration::from_millis(500);

/// Catches all of them from the moment it is made.
pub struct Termination {
    runtime: Runtime,
    signals: (CtrlC, CtrlBreak, CtrlClose, CtrlLogoff, CtrlShutdown),
}

impl Termination {
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

    /// Waits for one, or until the lease has ended; whether it was a signal.
    pub fn or_end_of(&mut self, lease: &Lease) -> io::Result<bool> {
        let (c, r#break, close, logoff, shutdown) = &mut self.signals;
        Ok(self.runtime.block_on(async {
            let ended = async {
                while lease.check().is_ok() {
                    tokio::time::sleep(LOOK_UP).await;
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
