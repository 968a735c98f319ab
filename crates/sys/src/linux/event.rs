//! Events within one process that can be polled beside descriptors (eventfd), and epoll sets.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::EventfdFlags;

/// An event that one thread sets and another waits for with [`poll`](super::poll). Must not be shared
/// with another process; a [`doorbell`](super::doorbell) may.
#[doc(alias = "eventfd")]
#[derive(Debug)]
pub struct Event(OwnedFd);

impl Event {
    /// Creates an event that is not set.
    ///
    /// # Errors
    ///
    /// Those of `eventfd`.
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(rustix::event::eventfd(0, flags)?))
    }

    /// Sets the event: its descriptor is readable until [`Event::clear`].
    pub fn set(&self) {
        // Fails only after 2^64 - 2 calls, and then the event is set.
        signal(&self.0);
    }

    /// Clears the event.
    pub fn clear(&self) {
        // Fails only if the event is not set.
        let _ = rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut [0; 8]));
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Event> for OwnedFd {
    fn from(event: Event) -> Self {
        event.0
    }
}

/// Whether a descriptor received from another process is an eventfd.
pub fn is_eventfd(fd: impl AsFd) -> bool {
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    std::fs::read_link(path).is_ok_and(|target| target.as_os_str() == "anon_inode:[eventfd]")
}

/// Signals an eventfd of another process, such as a VMM's. Blocks only if the descriptor is in blocking
/// mode and was signalled 2^64 - 2 times without a read.
pub fn signal(fd: impl AsFd) {
    let _ = rustix::io::retry_on_intr(|| rustix::io::write(&fd, &1u64.to_ne_bytes()));
}

/// Creates a descriptor that is readable when one of `fds` is (epoll).
///
/// # Errors
///
/// Those of `epoll_create1` and `epoll_ctl`.
pub fn any_of(fds: &[BorrowedFd<'_>]) -> io::Result<OwnedFd> {
    use rustix::event::epoll;
    let any = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (fd, number) in fds.iter().zip(0..) {
        epoll::add(
            &any,
            fd,
            epoll::EventData::new_u64(number),
            epoll::EventFlags::IN,
        )?;
    }
    Ok(any)
}

/// Creates a descriptor that is readable when `fd` is writable or has an error (epoll).
///
/// # Errors
///
/// Those of `epoll_create1` and `epoll_ctl`.
pub fn when_writable(fd: impl AsFd) -> io::Result<OwnedFd> {
    use rustix::event::epoll;
    let when = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let nothing = epoll::EventData::new_u64(0);
    epoll::add(&when, fd, nothing, epoll::EventFlags::OUT)?;
    Ok(when)
}

/// Removes a descriptor from the set of [`any_of`].
///
/// # Errors
///
/// `ENOENT` if `fd` is not in the set.
pub fn remove(any: impl AsFd, fd: impl AsFd) -> io::Result<()> {
    Ok(rustix::event::epoll::delete(any, fd)?)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::poll::{self, PollFd, PollFlags};

    fn ready(fd: impl AsFd) -> bool {
        poll::wait(&mut [PollFd::new(&fd, PollFlags::IN)], Some(Instant::now())).unwrap()
    }

    #[test]
    fn an_event_is_set_until_it_is_cleared() {
        let [a, b] = [(); 2].map(|()| Event::new().unwrap());
        let either = any_of(&[a.as_fd(), b.as_fd()]).unwrap();
        assert!(!ready(&a) && !ready(&either));
        b.set();
        b.set();
        assert!(!ready(&a) && ready(&b) && ready(&either));
        b.clear();
        b.clear();
        assert!(!ready(&b) && !ready(&either));
        remove(&either, &b).unwrap();
        b.set();
        assert!(ready(&b) && !ready(&either));
        a.set();
        assert!(ready(&either));
    }

    #[test]
    fn writability_can_be_polled_as_readability() {
        let (a, b) = crate::stream::pair().unwrap();
        crate::set_nonblocking(&a, true).unwrap();
        let when = when_writable(&a).unwrap();
        assert!(ready(&when));
        while crate::stream::send(&a, &[0; 65_536]).is_ok() {}
        assert!(!ready(&when));
        drop(b);
        assert!(ready(&when));
    }
}
