//! A connection through a broker, on the descriptor transport: the bytes go through one end of a
//! Unix stream socket pair, the words about them through [`Control`].
//!
//! Reading or writing is one system call, until there is an end or an error to explain.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hvsock_address::SockAddrHv;
use hvsock_endpoint::{ClientMessage, Connected, Incoming, SocketOption};
use hvsock_sys::poll::{PollFd, PollFlags};
use hvsock_sys::{poll, set_nonblocking, stream};

use super::control::{Control, Cut, Word};
use super::conversation::is_gone;
use crate::backend::{ReadInto, WriteFrom};
use crate::error;
use crate::{Interest, Peer, Readiness};

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Stream {
    data: OwnedFd,
    control: Control,
    local: SockAddrHv,
    peer: SockAddrHv,
    caller: Option<Peer>,
    connection: u64,
    plain: bool,
    nonblocking: AtomicBool,
    own: Mutex<Own>,
}

/// What this end has done and set.
#[derive(Debug, Default)]
struct Own {
    read_ended: bool,
    write_ended: bool,
    /// The descriptors are somebody else's now.
    handed_out: bool,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
}

/// What receiving came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// So many bytes; 0 at the end.
    Bytes(usize),
    /// The data descriptor ends, and whether that is the end is not said yet.
    Unexplained,
}

/// How long a failed write waits for the reason, which a broker sends before it cuts.
const REASON_BOUND: Duration = Duration::from_millis(100);

impl Stream {
    /// The connecting end.
    pub(super) fn connected(
        connected: &Connected,
        data: OwnedFd,
        socket: Arc<OwnedFd>,
        plain: bool,
    ) -> Self {
        let Connected {
            connection,
            local,
            peer,
            ..
        } = *connected;
        Self::new(data, socket, (local, peer), connection, None, plain)
    }

    /// The accepting end.
    pub(super) fn accepted(
        incoming: Incoming,
        data: OwnedFd,
        socket: OwnedFd,
        plain: bool,
    ) -> Self {
        let Incoming {
            local,
            peer,
            connection,
            ..
        } = incoming;
        let caller = Some(Peer::of_wire(incoming));
        Self::new(
            data,
            Arc::new(socket),
            (local, peer),
            connection,
            caller,
            plain,
        )
    }

    fn new(
        data: OwnedFd,
        socket: Arc<OwnedFd>,
        (local, peer): (SockAddrHv, SockAddrHv),
        connection: u64,
        caller: Option<Peer>,
        plain: bool,
    ) -> Self {
        Self {
            data,
            control: Control::new(socket),
            local,
            peer,
            caller,
            connection,
            plain,
            nonblocking: AtomicBool::new(false),
            own: Mutex::default(),
        }
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn local(&self) -> SockAddrHv {
        self.local
    }

    pub(crate) fn peer(&self) -> SockAddrHv {
        self.peer
    }

    pub(crate) fn caller(&self) -> Option<&Peer> {
        self.caller.as_ref()
    }

    pub(crate) fn connection(&self) -> u64 {
        self.connection
    }

    pub(crate) fn data(&self) -> BorrowedFd<'_> {
        self.data.as_fd()
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// Receives, waiting for the explanation of an end as long as the socket's mode allows.
    pub(crate) fn recv(&self, into: ReadInto<'_, '_>) -> io::Result<usize> {
        match self.recv_once(into) {
            Ok(Received::Bytes(count)) => Ok(count),
            Ok(Received::Unexplained) => self.wait_for_end(),
            Err(error) => Err(self.timed_out(error)),
        }
    }

    /// Receives, with no wait but the data descriptor's own.
    pub(crate) fn recv_once(&self, into: ReadInto<'_, '_>) -> io::Result<Received> {
        let result = match into {
            _ if into.is_empty() => return Ok(Received::Bytes(0)),
            ReadInto::One(buffer) => stream::recv(&self.data, buffer),
            ReadInto::Many(slices) => stream::recv_vectored(&self.data, slices),
            ReadInto::Peek(buffer) => stream::peek(&self.data, buffer),
        };
        match result {
            Ok(0) => self.end(&self.control.look()),
            Err(error) if is_gone(&error) => self.end(&self.control.look()),
            result => result.map(Received::Bytes),
        }
    }

    /// What the end of the data descriptor means.
    fn end(&self, word: &Word) -> io::Result<Received> {
        if word.ended || self.own().read_ended {
            return Ok(Received::Bytes(0));
        }
        match &word.cut {
            Some(cut) => Err(cut.clone().into_error()),
            None => Ok(Received::Unexplained),
        }
    }

    fn wait_for_end(&self) -> io::Result<usize> {
        if self.nonblocking.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let deadline = self
            .own()
            .read_timeout
            .map(|timeout| Instant::now() + timeout);
        let word = self.control.wait_for_end(deadline)?;
        match self.end(&word)? {
            Received::Bytes(count) => Ok(count),
            Received::Unexplained => Err(self.timed_out(io::ErrorKind::WouldBlock.into())),
        }
    }

    #[cfg(feature = "tokio")]
    /// What is known of an end that is not explained; `waker` is woken when more is.
    pub(crate) fn end_or_wake(&self, waker: &std::task::Waker) -> io::Result<Received> {
        self.end(&self.control.look_or_wake(waker))
    }

    pub(crate) fn send(&self, from: WriteFrom<'_, '_>) -> io::Result<usize> {
        let result = match from {
            _ if from.is_empty() => return Ok(0),
            WriteFrom::One(bytes) => stream::send(&self.data, bytes),
            WriteFrom::Many(slices) => stream::send_vectored(&self.data, slices),
        };
        match result {
            Err(error) if is_gone(&error) => Err(self.broken()),
            Err(error) => Err(self.timed_out(error)),
            sent => sent,
        }
    }

    /// Why writing fails for good.
    fn broken(&self) -> io::Error {
        if self.own().write_ended {
            let text = "this end has been shut down for writing";
            return error::plain(io::ErrorKind::BrokenPipe, text);
        }
        let mut word = self.control.look();
        if !word.explains_end() && !self.nonblocking.load(Ordering::Relaxed) {
            let bound = Instant::now() + REASON_BOUND;
            word = self.control.wait_for_end(Some(bound)).unwrap_or(word);
        }
        match word.cut {
            Some(cut) => cut.into_error(),
            None => error::plain(io::ErrorKind::BrokenPipe, "the other end reads no more"),
        }
    }

    /// Past a time limit the kernel says `WouldBlock`, as it does without blocking.
    fn timed_out(&self, error: io::Error) -> io::Error {
        if error.kind() == io::ErrorKind::WouldBlock && !self.nonblocking.load(Ordering::Relaxed) {
            return error::plain(
                io::ErrorKind::TimedOut,
                "the socket's time limit has passed",
            );
        }
        error
    }

    /// Ends one or both directions; `patient` if the caller can be made to wait for the broker.
    pub(crate) fn shutdown(&self, how: Shutdown, patient: bool) -> io::Result<()> {
        let mut own = self.own();
        if how != Shutdown::Read && !own.write_ended {
            // First the word, then the end: the end without the word is a crash.
            self.control.tell(&ClientMessage::Shutdown, patient)?;
            own.write_ended = true;
            stream::shutdown(&self.data, Shutdown::Write)?;
        }
        if how != Shutdown::Write && !own.read_ended {
            own.read_ended = true;
            stream::shutdown(&self.data, Shutdown::Read)?;
        }
        Ok(())
    }

    pub(crate) fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        set_nonblocking(&self.data, nonblocking)?;
        self.nonblocking.store(nonblocking, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        stream::set_recv_timeout(&self.data, timeout)?;
        self.own().read_timeout = timeout;
        Ok(())
    }

    pub(crate) fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        stream::set_send_timeout(&self.data, timeout)?;
        self.own().write_timeout = timeout;
        Ok(())
    }

    pub(crate) fn read_timeout(&self) -> Option<Duration> {
        self.own().read_timeout
    }

    pub(crate) fn write_timeout(&self) -> Option<Duration> {
        self.own().write_timeout
    }

    pub(crate) fn set_connected_suspend(&self, on: bool) -> io::Result<()> {
        let message = ClientMessage::SetOption {
            option: SocketOption::ConnectedSuspend,
            value: on.into(),
        };
        self.control.tell(&message, true)
    }

    /// Why the connection was cut, if it was.
    pub(crate) fn cut(&self) -> Option<io::Error> {
        self.control.look().cut.map(Cut::into_error)
    }

    /// Waits until reading or writing would not, or until `deadline`.
    pub(crate) fn poll(
        &self,
        interest: Interest,
        deadline: Option<Instant>,
    ) -> io::Result<Readiness> {
        let mut unexplained = false;
        loop {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, interest.is_readable() && !unexplained);
            flags.set(PollFlags::OUT, interest.is_writable());
            let mut fds = [
                PollFd::new(&self.data, flags),
                PollFd::new(&self.control, PollFlags::IN),
            ];
            let (first, count) = match (flags.is_empty(), unexplained) {
                (true, _) => (1, 2),
                (false, true) => (0, 2),
                (false, false) => (0, 1),
            };
            if !poll::wait(&mut fds[first..count], deadline)? {
                return Ok(Readiness::default());
            }
            let got = fds[0].revents();
            let broken = got.intersects(PollFlags::HUP | PollFlags::ERR);
            let writable = interest.is_writable() && (broken || got.contains(PollFlags::OUT));
            let mut readable = false;
            if interest.is_readable() && (broken || unexplained || got.contains(PollFlags::IN)) {
                readable = self.would_read()?;
                unexplained = !readable;
            }
            if readable || writable {
                return Ok(Readiness::new(readable, writable));
            }
        }
    }

    /// Whether receiving would give bytes, the end or an error, and not wait.
    fn would_read(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.data, PollFlags::IN)];
        if !poll::wait(&mut fds, Some(Instant::now()))? {
            return Ok(false);
        }
        let mut byte = [0];
        Ok(!matches!(
            self.recv_once(ReadInto::Peek(&mut byte)),
            Ok(Received::Unexplained)
        ))
    }

    /// The descriptors for a program that knows nothing of hvsock.
    pub(crate) fn hand_out(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        if !self.plain {
            let text = "only a connection made with `plain(true)` can be handed out";
            return Err(error::invalid(text));
        }
        let data = self.data.try_clone()?;
        let control = self.control.as_fd().try_clone_to_owned()?;
        self.set_nonblocking(false)?;
        self.own().handed_out = true;
        Ok((data, control))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let own = self.own.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !own.write_ended && !own.handed_out {
            // First the word, then the end, which is the closing of the data descriptor. A broker
            // that cannot take the word now is one that must not take this for a clean end.
            let _ = self.control.tell(&ClientMessage::Shutdown, false);
        }
    }
}
