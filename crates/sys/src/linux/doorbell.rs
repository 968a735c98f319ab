//! Doorbells: a process wakes another one that waits in `poll`, without trusting it.
//!
//! A doorbell is a pipe. The waiting process has the read end and the notifying process the write end;
//! each notification is one byte. An eventfd would cost 0.2 µs less, but both processes would share one
//! open file description: a hostile waiter could fill the counter and clear `O_NONBLOCK`, and the next
//! notification would block for ever. With a pipe neither process can block the other.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use super::poll::{self, PollFd, PollFlags};

/// Creates a doorbell: the read end for the waiting process, and the write end for the notifying one.
///
/// # Errors
///
/// Those of `pipe2`.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(
        PipeFlags::CLOEXEC | PipeFlags::NONBLOCK,
    )?)
}

/// Notifies the waiting process. Returns `false` if the read end is closed. Never blocks: a full pipe
/// already holds pending notifications.
///
/// # Errors
///
/// Those of `write`, except `EAGAIN` and `EPIPE`.
#[doc(alias = "kick")]
pub fn notify(doorbell: impl AsFd) -> io::Result<bool> {
    match super::sigpipe::without(|| {
        rustix::io::retry_on_intr(|| rustix::io::write(&doorbell, &[1]))
    }) {
        Ok(_) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::PIPE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Drains all notifications. Returns `false` if the write end is closed. If they arrive faster than they
/// are drained, some stay pending.
///
/// # Errors
///
/// Those of `read` and `poll`.
pub fn drain(doorbell: impl AsFd) -> io::Result<bool> {
    for _ in 0..MAX_READS {
        match drain_up_to(&doorbell, MAX_DRAIN)? {
            Some(0) => return Ok(true),
            Some(_) => {}
            None => return Ok(false),
        }
    }
    Ok(!pending(&doorbell)?.hung_up)
}

/// As [`drain`], with one system call when few notifications are pending, which is usual. Does not
/// detect a closed write end.
///
/// # Errors
///
/// Those of `read` and `poll`.
pub fn drain_few(doorbell: impl AsFd) -> io::Result<()> {
    let mut bytes = [0; FEW];
    match rustix::io::retry_on_intr(|| rustix::io::read(&doorbell, &mut bytes)) {
        Ok(FEW) => drain(doorbell).map(drop),
        Ok(_) | Err(Errno::AGAIN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// As [`drain_few`]. Returns `false` if the write end is closed and nothing was pending; after the last
/// notifications, that takes another call.
///
/// # Errors
///
/// Those of `read` and `poll`.
pub fn drain_or_hung_up(doorbell: impl AsFd) -> io::Result<bool> {
    match drain_up_to(&doorbell, FEW)? {
        Some(FEW) => drain(doorbell),
        drained => Ok(drained.is_some()),
    }
}

/// Notifications that [`drain_few`] drains with one call.
const FEW: usize = 16;
/// Maximum number of reads in [`drain`].
const MAX_READS: u32 = 32;
/// Maximum number of notifications that [`drain_up_to`] drains.
const MAX_DRAIN: usize = 4096;

/// Drains at most `most` notifications and returns their number. `None` if none are pending and the
/// write end is closed. Never blocks.
///
/// # Errors
///
/// Those of `read`, except `EAGAIN`.
pub fn drain_up_to(doorbell: impl AsFd, most: usize) -> io::Result<Option<usize>> {
    let mut bytes = [0; MAX_DRAIN];
    let bytes = &mut bytes[..most.min(MAX_DRAIN)];
    if bytes.is_empty() {
        return Ok(Some(0));
    }
    match rustix::io::retry_on_intr(|| rustix::io::read(&doorbell, &mut *bytes)) {
        Ok(0) => Ok(None),
        Ok(count) => Ok(Some(count)),
        Err(Errno::AGAIN) => Ok(Some(0)),
        Err(error) => Err(error.into()),
    }
}

/// The pending notifications of a doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Their number.
    pub notifications: usize,
    /// The write end is closed.
    pub hung_up: bool,
}

/// Returns the pending notifications without draining them.
///
/// # Errors
///
/// Those of `poll` and `FIONREAD`.
pub fn pending(doorbell: impl AsFd) -> io::Result<Pending> {
    let mut fds = [PollFd::new(&doorbell, PollFlags::IN)];
    poll::wait(&mut fds, Some(Instant::now()))?;
    let found = fds[0].revents();
    let notifications = match found.contains(PollFlags::IN) {
        true => usize::try_from(rustix::io::ioctl_fionread(&doorbell)?).unwrap_or(usize::MAX),
        false => 0,
    };
    Ok(Pending {
        notifications,
        hung_up: found.contains(PollFlags::HUP),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_pending(doorbell: &OwnedFd) -> bool {
        let mut fds = [PollFd::new(doorbell, PollFlags::IN)];
        poll::wait(&mut fds, Some(Instant::now())).unwrap()
    }

    #[test]
    fn a_notification_is_pending_until_it_is_drained() {
        let (reader, writer) = pair().unwrap();
        assert!(!is_pending(&reader));
        assert!(notify(&writer).unwrap());
        assert!(notify(&writer).unwrap());
        assert!(is_pending(&reader));
        assert!(drain(&reader).unwrap());
        assert!(!is_pending(&reader));
        assert!(drain(&reader).unwrap());
    }

    #[test]
    fn notifying_a_full_doorbell_does_not_block() {
        let (reader, writer) = pair().unwrap();
        for _ in 0..100_000 {
            assert!(notify(&writer).unwrap());
        }
        assert!(is_pending(&reader));
        let notifications = pending(&reader).unwrap().notifications;
        assert!(notifications > 2 * MAX_DRAIN);
        assert_eq!(drain_up_to(&reader, 5).unwrap(), Some(5));
        assert_eq!(pending(&reader).unwrap().notifications, notifications - 5);
        assert!(drain(&reader).unwrap());
        assert!(!is_pending(&reader));
        assert_eq!(drain_up_to(&reader, 5).unwrap(), Some(0));
    }

    #[test]
    fn few_or_many_notifications_are_drained() {
        let (reader, writer) = pair().unwrap();
        for notifications in [0, 1, FEW - 1, FEW, FEW + 1, 20_000] {
            (0..notifications).for_each(|_| assert!(notify(&writer).unwrap()));
            drain_few(&reader).unwrap();
            assert!(!is_pending(&reader), "{notifications}");
            (0..notifications).for_each(|_| assert!(notify(&writer).unwrap()));
            assert!(drain_or_hung_up(&reader).unwrap());
            assert!(!is_pending(&reader), "{notifications}");
        }
        assert!(notify(&writer).unwrap());
        drop(writer);
        assert!(drain_or_hung_up(&reader).unwrap());
        assert!(!drain_or_hung_up(&reader).unwrap());
    }

    #[test]
    fn a_closed_end_is_detected() {
        let (reader, writer) = pair().unwrap();
        drop(writer);
        assert!(is_pending(&reader));
        assert!(!drain(&reader).unwrap());
        let (reader, writer) = pair().unwrap();
        for _ in 0..10_000 {
            notify(&writer).unwrap();
        }
        drop(writer);
        assert!(pending(&reader).unwrap().hung_up);
        assert!(!drain(&reader).unwrap());
        let gone = Pending {
            notifications: 0,
            hung_up: true,
        };
        assert_eq!(pending(&reader).unwrap(), gone);
        let (reader, writer) = pair().unwrap();
        drop(reader);
        assert!(!notify(&writer).unwrap());
    }
}
