//! Tasks that wait at a ring.
//!
//! A task tries first. Only if that returns `WouldBlock` does the runtime watch the doorbell and
//! the control channel. Reading and writing watch duplicates of their own: the runtime remembers
//! one task per descriptor, and that must not be a task that was cancelled.

use std::io;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use hvsock_ring::{Interest, RingEnd};
use tokio::io::unix::AsyncFd;

use super::watch::{Watched, watch};
use crate::backend;

/// The direction that a task waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

/// The watched descriptors of a ring, for reading and for writing.
#[derive(Debug, Default)]
pub(super) struct RingWatch([OnceLock<Descriptors>; 2]);

#[derive(Debug)]
struct Descriptors {
    doorbell: AsyncFd<Watched>,
    control: AsyncFd<Watched>,
}

impl Direction {
    fn interest(self) -> Interest {
        match self {
            Self::Read => Interest::READ,
            Self::Write => Interest::WRITE,
        }
    }
}

impl RingWatch {
    /// Repeats `attempt` while it returns `WouldBlock`.
    pub(super) fn poll<T>(
        &self,
        stream: &Arc<backend::Stream>,
        cx: &mut Context<'_>,
        direction: Direction,
        mut attempt: impl FnMut() -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        // A task that always has something to do must yield to the runtime, too.
        let coop = ready!(tokio::task::coop::poll_proceed(cx));
        loop {
            match attempt() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => {
                    coop.made_progress();
                    return Poll::Ready(result);
                }
            }
            ready!(self.poll_events(stream, cx, direction))?;
        }
    }

    /// Waits until writing writes bytes or returns an error.
    pub(super) fn poll_writable(
        &self,
        stream: &Arc<backend::Stream>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let attempt = || match end(stream)?.is_writable() {
            true => Ok(()),
            false => Err(io::ErrorKind::WouldBlock.into()),
        };
        self.poll(stream, cx, Direction::Write, attempt)
    }

    /// Waits until another attempt may succeed.
    fn poll_events(
        &self,
        stream: &Arc<backend::Stream>,
        cx: &mut Context<'_>,
        direction: Direction,
    ) -> Poll<io::Result<()>> {
        let (end, interest) = (end(stream)?, direction.interest());
        let watched = self.descriptors(stream, direction)?;
        let mut event = false;
        // A doorbell whose other half is closed is always ready.
        if !end.has_hung_up()
            && let Poll::Ready(guard) = watched.doorbell.poll_read_ready(cx)
        {
            let mut guard = guard?;
            end.drain_notifications_as_task(interest);
            guard.clear_ready();
            event = true;
        }
        if let Poll::Ready(guard) = watched.control.poll_read_ready(cx) {
            let mut guard = guard?;
            stream.poll_control();
            guard.clear_ready();
            event = true;
        }
        if event || !end.arm_task(interest, cx.waker()) {
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }

    fn descriptors(
        &self,
        stream: &Arc<backend::Stream>,
        direction: Direction,
    ) -> io::Result<&Descriptors> {
        let slot = &self.0[usize::from(direction == Direction::Write)];
        if let Some(watched) = slot.get() {
            return Ok(watched);
        }
        let readable = tokio::io::Interest::READABLE;
        let watched = Descriptors {
            doorbell: watch(Watched::Doorbell(Arc::clone(stream)), readable)?,
            control: watch(Watched::Control(Arc::clone(stream)), readable)?,
        };
        Ok(slot.get_or_init(|| watched))
    }
}

fn end(stream: &backend::Stream) -> io::Result<&RingEnd> {
    let ring = stream.ring().ok_or(io::ErrorKind::Unsupported)?;
    Ok(ring.end())
}
