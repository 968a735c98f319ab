//! The first process of the program's processes: forwards signals to the program, takes the ends of orphans,
//! and ends with the program's status.

use std::fs::File;
use std::io;
use std::process::Command;

use anyhow::Result;
use hvsock_sys::init::{
    Change, Signal, SignalQueue, adopt_orphans, next_change, send_signal, stop_self,
};

/// Signals of asm-generic/signal.h that have a meaning here.
const SIGINT: i32 = 2;
const SIGHUP: i32 = 1;
const SIGQUIT: i32 = 3;
const SIGTERM: i32 = 15;
const SIGCHLD: i32 = 17;
const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;

/// Queues this process's signals and adopts orphans.
#[derive(Debug)]
pub struct Init {
    queue: SignalQueue,
}

impl Init {
    /// Before any other thread is started.
    pub fn new() -> io::Result<Self> {
        adopt_orphans()?;
        Ok(Self {
            queue: SignalQueue::new(),
        })
    }

    /// Has a program begin with the signals that this process began with.
    pub fn prepare(&self, command: &mut Command) {
        self.queue.restore_in(command);
    }

    /// Waits until the program `main` has ended and, unless this is the first process of a container, until
    /// nothing else needs this one (`is_done`), as orphans do whose calls it answers. Returns the program's
    /// exit status; 128 and the signal's number if one has ended it.
    ///
    /// A signal from elsewhere is passed on. One of the terminal has reached the program as well. When the
    /// terminal stops the program, this process stops, too, so that a shell can continue both.
    pub fn wait(&self, main: u32, is_done: impl Fn() -> bool) -> Result<u8> {
        let is_first = std::process::id() == 1;
        let has_terminal = !is_first && File::open("/dev/tty").is_ok();
        let mut status = None;
        loop {
            while let Some((process, change)) = next_change()? {
                if process != main {
                    continue;
                }
                match change {
                    Change::Exited(code) => status = Some(code),
                    Change::Killed(signal) => {
                        status = Some(u8::try_from(128 + signal).unwrap_or(u8::MAX));
                    }
                    // By a shell's terminal. Whoever stops the program otherwise continues it alone.
                    Change::Stopped(signal) if signal != SIGSTOP && has_terminal => {
                        stop_self();
                        send_signal(main, SIGCONT);
                    }
                    Change::Stopped(_) | Change::Continued => {}
                }
            }
            if let Some(status) = status
                && (is_first || is_done())
            {
                return Ok(status);
            }
            let Some(Signal {
                number,
                is_from_kernel,
            }) = self.queue.wait(None)?
            else {
                continue;
            };
            match (number, status) {
                (SIGCHLD, _) => {}
                (SIGINT | SIGTERM | SIGHUP | SIGQUIT, Some(status)) => return Ok(status),
                (_, Some(_)) => {}
                (number, None) if !is_from_kernel => send_signal(main, number),
                (_, None) => {}
            }
        }
    }
}
