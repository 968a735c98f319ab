//! A non-blocking connect.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use hvsock_sys::event::{self, Set};
use hvsock_sys::poll::PollFlags;
use hvsock_sys::sync::lock;

use super::Stream;
use super::connecting::Connecting;
use crate::backend::Request;
use hvsock_sys::machine::Machine;

/// The numbers of the descriptors in the set.
const SOCKET: u64 = 0;
const TIMER: u64 = 1;

/// A non-blocking connect.
#[derive(Debug)]
pub(crate) struct PendingConnect {
    /// Readable when there may be progress, whatever the connect waits for. So the connects of all back-ends
    /// are waited for in the same way.
    ready: Set,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    connecting: Box<Connecting>,
    /// The stage whose descriptor is in the set, and what it is watched for.
    watched: Option<(u64, PollFlags)>,
    /// Ends a stage that has less time than the connect.
    timer: Option<OwnedFd>,
}

impl PendingConnect {
    /// Starts a connect and returns at once.
    pub(crate) fn start(request: &Request) -> io::Result<Self> {
        let ready = Set::new()?;
        let mut state = State {
            connecting: Box::new(Connecting::start(Machine::detect(), request)?),
            watched: None,
            timer: None,
        };
        state.watch(&ready)?;
        let state = Mutex::new(state);
        Ok(Self { ready, state })
    }

    /// Returns the connection once it is established, `WouldBlock` before. Must not be called again
    /// after that.
    pub(crate) fn progress(&self) -> io::Result<Stream> {
        let mut state = self.state();
        match state.connecting.step()? {
            Some(stream) => Ok(stream),
            None => {
                state.watch(&self.ready)?;
                Err(io::ErrorKind::WouldBlock.into())
            }
        }
    }

    /// The error for a connect that takes too long.
    pub(crate) fn no_reply_error(&self) -> io::Error {
        self.state().connecting.no_reply_error()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    /// Has the set be ready when the connect is.
    fn watch(&mut self, ready: &Set) -> io::Result<()> {
        let Self {
            connecting,
            watched,
            timer,
        } = self;
        let Some(descriptor) = connecting.descriptor() else {
            return Ok(());
        };
        let (stage, flags) = (connecting.stage_number(), connecting.waits_for());
        let writable = flags == PollFlags::OUT;
        match *watched {
            Some((before, same)) if before == stage && same == flags => {}
            Some((before, _)) if before == stage && !writable => {
                ready.watch_readable(descriptor, SOCKET)?;
            }
            // The descriptor of an earlier stage has left the set when it was closed.
            _ if writable => ready.add_writable(descriptor, SOCKET)?,
            _ => ready.add(descriptor, SOCKET)?,
        }
        *watched = Some((stage, flags));
        if timer.is_none()
            && let Some(until) = connecting.ends_early()
        {
            let left = until.saturating_duration_since(Instant::now());
            let expiry = event::timer(left)?;
            ready.add(&expiry, TIMER)?;
            *timer = Some(expiry);
        }
        Ok(())
    }
}

impl AsFd for PendingConnect {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}
