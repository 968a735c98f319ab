//! Answers the socket calls of programs that run under a seccomp filter.
//!
//! Start the program under [`filter`] (`hvsock_sys::seccomp::spawn`), give the listener to
//! [`Supervisor::new`], and call [`Supervisor::run`] on a thread of its own. One thread serves all processes
//! of the filter; it never waits for the broker or for a program.
//!
//! The program is not trusted. What is read of its memory is read once; tables, waits and queues are bounded;
//! and whose rights the broker judges by comes from the kernel.

mod accepts;
mod backlogs;
mod binds;
mod connects;
mod core;
mod creation;
mod ends;
mod event_loop;
mod exchange;
mod filter;
mod held;
mod listens;
mod names;
mod prepared;
mod probes;
mod program;
mod settings;
mod sweep;
mod sweeps;
mod table;
mod waiting;
mod waits;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use hvsock_sys::event::Set;
use hvsock_sys::seccomp::Listener;

use crate::model::OwnCid;
use core::{CLOSED, Core, STOP};
use program::Program;

pub use filter::filter;
pub use settings::{Event, Settings};

/// Serves the programs under one filter.
pub struct Supervisor {
    core: Core,
}

impl Supervisor {
    /// A supervisor for the programs whose calls come from `listener`, in the partition with the context id
    /// `own` ([`own_cid`](crate::broker::own_cid)). It ends when `stop` is readable.
    ///
    /// # Errors
    ///
    /// Those of epoll.
    pub fn new(
        listener: Listener,
        settings: Settings,
        own: OwnCid,
        stop: Option<BorrowedFd<'_>>,
    ) -> io::Result<Self> {
        let program = Program::new(listener);
        let set = Set::new()?;
        if let Some(stop) = stop {
            set.add(stop, STOP)?;
        }
        let mut core = Core::new(program, settings, set, own);
        core.ends.open(&core.set, CLOSED);
        Ok(Self { core })
    }

    /// Serves until no process is left under the filter, or until it is stopped. Programs that are left then get
    /// `ENOSYS` from their calls.
    ///
    /// # Errors
    ///
    /// Those of the listener and of epoll.
    pub fn run(mut self) -> io::Result<()> {
        self.core.serve()
    }
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").finish_non_exhaustive()
    }
}
