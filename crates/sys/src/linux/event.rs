//! Events within one process that can be polled beside descriptors (eventfd), and epoll sets.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, epoll};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

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
    let _ = rustix::io::retry_on_intr(|| rustix::io::write(&fd, &SIGNAL));
}

/// One signal, as both kinds of [`Signal`] write it.
const SIGNAL: [u8; 8] = 1_u64.to_ne_bytes();

/// The descriptor with which another process, such as a VMM, wants to be signalled: an eventfd, or a Unix
/// socket to which each signal writes the same 8 bytes (User-mode Linux cannot receive `SIGIO` from an
/// eventfd).
#[derive(Debug)]
pub struct Signal {
    fd: OwnedFd,
    is_socket: bool,
}

impl Signal {
    /// Checks a descriptor received from another process. An eventfd becomes nonblocking.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if it is neither; those of `fcntl`.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let is_socket = match rustix::net::sockopt::socket_domain(&fd) {
            Ok(domain) => domain == rustix::net::AddressFamily::UNIX,
            Err(_) => false,
        };
        if is_socket {
            return Ok(Self { fd, is_socket });
        }
        if !is_eventfd(&fd) {
            let text = "the descriptor is neither an eventfd nor a Unix socket";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        super::set_nonblocking(&fd, true)?;
        Ok(Self { fd, is_socket })
    }

    /// Signals the other process. Never blocks on a socket, whatever its mode: a full one holds signals
    /// that the other process has yet to read. On an eventfd as [`signal`].
    #[inline]
    pub fn send(&self) {
        if !self.is_socket {
            return signal(&self.fd);
        }
        let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
        let _ = rustix::io::retry_on_intr(|| rustix::net::send(&self.fd, &SIGNAL, flags));
    }
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Creates a descriptor that is readable when one of `fds` is (epoll).
///
/// # Errors
///
/// Those of `epoll_create1` and `epoll_ctl`.
pub fn any_of(fds: &[BorrowedFd<'_>]) -> io::Result<OwnedFd> {
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

/// A set of descriptors that a thread waits for, each with a number (epoll, level-triggered). The set is a
/// descriptor itself: readable while one of its descriptors is ready.
///
/// A descriptor leaves the set when it is closed, if it has no duplicate.
#[derive(Debug)]
pub struct Set(OwnedFd);

/// A descriptor of a [`Set`] that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The number that it was added with.
    pub number: u64,
    /// The other end is closed, or there is an error.
    pub hung_up: bool,
}

impl Set {
    /// Creates an empty set.
    ///
    /// # Errors
    ///
    /// Those of `epoll_create1`.
    pub fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Adds a descriptor, to wait until it is readable.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl`, such as `EEXIST` if it is in the set.
    pub fn add(&self, fd: impl AsFd, number: u64) -> io::Result<()> {
        let data = epoll::EventData::new_u64(number);
        Ok(epoll::add(&self.0, fd, data, epoll::EventFlags::IN)?)
    }

    /// Adds a descriptor, to wait until it is writable or has an error.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl`, such as `EEXIST` if it is in the set.
    pub fn add_writable(&self, fd: impl AsFd, number: u64) -> io::Result<()> {
        let data = epoll::EventData::new_u64(number);
        Ok(epoll::add(&self.0, fd, data, epoll::EventFlags::OUT)?)
    }

    /// Waits for a descriptor of the set until it is readable, and no more until it is writable.
    ///
    /// # Errors
    ///
    /// `ENOENT` if it is not in the set.
    pub fn watch_readable(&self, fd: impl AsFd, number: u64) -> io::Result<()> {
        self.watch_writable(fd, number, false)
    }

    /// Changes whether to wait until a descriptor of the set is writable, too.
    ///
    /// # Errors
    ///
    /// `ENOENT` if it is not in the set.
    pub fn watch_writable(&self, fd: impl AsFd, number: u64, on: bool) -> io::Result<()> {
        let mut flags = epoll::EventFlags::IN;
        flags.set(epoll::EventFlags::OUT, on);
        let data = epoll::EventData::new_u64(number);
        Ok(epoll::modify(&self.0, fd, data, flags)?)
    }

    /// Removes a descriptor.
    ///
    /// # Errors
    ///
    /// `ENOENT` if it is not in the set.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.0, fd)?)
    }

    /// Waits until descriptors are ready, or until `timeout` has elapsed, and stores them in `ready` in
    /// place of what was there. They are at most as many as its capacity, and at least one is possible.
    ///
    /// # Errors
    ///
    /// Those of `epoll_wait`, except `EINTR`, after which there is none.
    pub fn wait(&self, ready: &mut Vec<Ready>, timeout: Option<Duration>) -> io::Result<()> {
        ready.clear();
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut events = Vec::with_capacity(ready.capacity().max(1));
        let buffer = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.0, buffer, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let gone = epoll::EventFlags::HUP | epoll::EventFlags::ERR;
        ready.extend(events.iter().map(|event| {
            let (flags, data) = (event.flags, event.data);
            Ready {
                number: data.u64(),
                hung_up: flags.intersects(gone),
            }
        }));
        Ok(())
    }
}

impl AsFd for Set {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Creates a descriptor that is readable once `after` has passed (timerfd).
///
/// # Errors
///
/// Those of `timerfd_create`.
pub fn timer(after: Duration) -> io::Result<OwnedFd> {
    let timer = timerfd_create(
        TimerfdClockId::Monotonic,
        TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
    )?;
    // Zero would stop the timer.
    let after = after.max(Duration::from_nanos(1));
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let once = Itimerspec {
        it_interval: Timespec::default(),
        it_value: Timespec::try_from(after).map_err(invalid)?,
    };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once)?;
    Ok(timer)
}

/// Removes a descriptor from the set of [`any_of`].
///
/// # Errors
///
/// `ENOENT` if `fd` is not in the set.
pub fn remove(any: impl AsFd, fd: impl AsFd) -> io::Result<()> {
    Ok(epoll::delete(any, fd)?)
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
    fn a_signal_is_eight_bytes_on_an_eventfd_and_on_a_unix_socket() {
        let (ours, theirs) = crate::stream::pair().unwrap();
        let signal = Signal::new(ours).unwrap();
        signal.send();
        signal.send();
        let mut bytes = [0; 32];
        assert_eq!(rustix::io::read(&theirs, &mut bytes).unwrap(), 16);
        assert_eq!(bytes[..16], [SIGNAL, SIGNAL].concat()[..]);

        let event = Event::new().unwrap();
        let signal = Signal::new(event.as_fd().try_clone_to_owned().unwrap()).unwrap();
        signal.send();
        signal.send();
        assert_eq!(rustix::io::read(&event, &mut bytes).unwrap(), 8);
        assert_eq!(bytes[..8], 2_u64.to_ne_bytes());
    }

    #[test]
    fn a_signal_blocks_on_no_socket_and_survives_the_end_of_its_reader() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        // The other process shares the mode, and has made it blocking.
        ours.set_nonblocking(false).unwrap();
        let signal = Signal::new(ours.into()).unwrap();
        (0..100_000).for_each(|_| signal.send());
        assert!(ready(&theirs));
        drop(theirs);
        signal.send();
        let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let signal = Signal::new(ours.into()).unwrap();
        (0..1_000).for_each(|_| signal.send());
        drop(theirs);
        signal.send();
    }

    #[test]
    fn only_an_eventfd_or_a_unix_socket_takes_signals() {
        let (reader, writer) = crate::doorbell::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let memory = crate::shared_memory::create(4096).unwrap();
        for fd in [reader, writer, file.into(), tcp.into(), memory] {
            let error = Signal::new(fd).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
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
    fn a_set_reports_the_numbers_of_its_ready_descriptors() {
        let set = Set::new().unwrap();
        let mut found = Vec::with_capacity(4);
        let mut now = |set: &Set| {
            set.wait(&mut found, Some(Duration::ZERO)).unwrap();
            found.sort_unstable_by_key(|ready| ready.number);
            found.clone()
        };
        let number = |number, hung_up| Ready { number, hung_up };
        let (event, (reader, writer)) = (Event::new().unwrap(), crate::doorbell::pair().unwrap());
        set.add(&event, 7).unwrap();
        set.add(&reader, 1 << 40).unwrap();
        assert!(set.add(&event, 8).is_err());
        assert_eq!(now(&set), []);
        assert!(!ready(&set));
        event.set();
        assert_eq!(now(&set), [number(7, false)]);
        assert!(ready(&set));
        drop(writer);
        assert_eq!(now(&set), [number(7, false), number(1 << 40, true)]);
        set.remove(&reader).unwrap();
        event.clear();
        assert_eq!(now(&set), []);
        set.watch_writable(&event, 7, true).unwrap();
        assert_eq!(now(&set), [number(7, false)]);
        set.watch_writable(&event, 7, false).unwrap();
        assert_eq!(now(&set), []);
    }

    #[test]
    fn a_timer_is_readable_once_its_time_has_passed() {
        let (now, later) = (timer(Duration::ZERO), timer(Duration::from_secs(3600)));
        let (now, later) = (now.unwrap(), later.unwrap());
        let limit = Some(Instant::now() + Duration::from_secs(20));
        assert!(poll::wait(&mut [PollFd::new(&now, PollFlags::IN)], limit).unwrap());
        assert!(!ready(&later));
    }

    #[test]
    fn a_set_waits_for_one_readiness_after_the_other() {
        let (a, b) = crate::stream::pair().unwrap();
        let set = Set::new().unwrap();
        set.add_writable(&a, 1).unwrap();
        assert!(ready(&set));
        set.watch_readable(&a, 1).unwrap();
        assert!(!ready(&set));
        crate::stream::send(&b, b"x").unwrap();
        assert!(ready(&set));
    }
}
