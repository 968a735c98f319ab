//! A process behind a socket.

pub(super) mod snapshot;

use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hvsock_endpoint::BrokerMessage;
use hvsock_sys::shared_memory::{self, SharedBytes};
use hvsock_sys::stream;

use crate::data_path::{ControlConnection, peer_died, unread_data};
use crate::guest_link::outcome::{DeliverError, FillOutcome, MessageEnd, Readiness};

/// The broker's end of a process's stream socket.
#[derive(Debug)]
pub(super) struct Socket {
    /// `None` before a process has connected its own socket.
    data: Option<OwnedFd>,
    protocol: Protocol,
    /// Nothing is written before the connection is established.
    held: bool,
    /// Bytes from the guest that the full socket did not accept, from `start` on.
    pub(super) pending: Vec<u8>,
    start: usize,
    /// Bytes that the socket has accepted.
    pub(super) consumed: u64,
    pub(super) readable: bool,
    writable: bool,
    /// The guest's half-close, passed on once `pending` is empty.
    finished: Finish,
    /// The process has closed its end, or stopped reading.
    sink_closed: bool,
    /// Bytes of the guest were lost because of that.
    lost: bool,
    /// The end of the process's data was read.
    ended: bool,
    /// The guest reads no more.
    read_closed: bool,
    /// Both directions have ended.
    hung_up: bool,
}

/// What the process has beside the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    /// A control connection, on which it announces the end of its data.
    Announces,
    /// A control connection that may end early. It uses the socket as a raw fd, which shows the rest as a plain one.
    RawFd,
    /// Nothing: end of file is a clean end, and a hang-up the end of both directions.
    Plain,
    /// The same with a socket of its own.
    Attached,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finish {
    No,
    /// Once everything is written.
    Wanted,
    Done,
}

impl Socket {
    pub(super) fn new(data: OwnedFd, raw_fd: bool) -> Self {
        let protocol = match raw_fd {
            true => Protocol::RawFd,
            false => Protocol::Announces,
        };
        Self::with(Some(data), protocol)
    }

    /// The socket of a process that has not connected it yet.
    pub(super) fn attached() -> Self {
        Self::with(None, Protocol::Attached)
    }

    /// The socket of a process without a control connection.
    pub(super) fn plain(data: OwnedFd) -> Self {
        Self::with(Some(data), Protocol::Plain)
    }

    fn with(data: Option<OwnedFd>, protocol: Protocol) -> Self {
        Self {
            data,
            protocol,
            held: matches!(protocol, Protocol::Plain | Protocol::Attached),
            pending: Vec::new(),
            start: 0,
            consumed: 0,
            readable: true,
            writable: true,
            finished: Finish::No,
            sink_closed: false,
            lost: false,
            ended: false,
            read_closed: false,
            hung_up: false,
        }
    }

    /// The descriptor, once there is one.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.data.as_ref().map(AsFd::as_fd)
    }

    /// Whether the socket alone shows that the process has closed, and not its control connection.
    pub(super) fn shows_close(&self) -> bool {
        self.protocol != Protocol::Announces
    }

    /// Allows writes: the process has received the core's answer, and has connected its own socket if it
    /// brings one.
    pub(super) fn establish(&mut self, attached: Option<OwnedFd>) {
        if let (None, Some(data)) = (&self.data, attached) {
            if self.read_closed {
                let _ = stream::shutdown(&data, Shutdown::Read);
            }
            self.data = Some(data);
        }
        self.held = false;
    }

    /// Whether both directions of a process whose socket alone [shows](Self::shows_close) that have ended: it has closed the
    /// socket, or the guest has.
    pub(super) fn is_over(&self) -> bool {
        let guest_closed = self.read_closed && self.finished == Finish::Done;
        guest_closed || self.ended && (self.hung_up || self.finished == Finish::Done)
    }

    /// Records a readiness event of the descriptor.
    pub(super) fn ready(&mut self, readiness: Readiness) {
        self.readable |= readiness.readable;
        self.writable |= readiness.writable;
        self.check_hang_up();
    }

    /// Looks whether a process that sends no more receives no more either.
    fn check_hang_up(&mut self) {
        if self.shows_close()
            && self.ended
            && !self.hung_up
            && let Some(data) = &self.data
        {
            self.hung_up = stream::is_hung_up(data);
        }
    }

    /// Whether the socket may be written to now.
    fn accepts(&self) -> bool {
        self.writable && !self.held
    }

    /// Whether a write would be accepted in part at least, or fail.
    pub(super) fn is_writable(&self) -> bool {
        self.sink_closed || self.accepts() && self.pending.is_empty()
    }

    /// Writes what the socket accepts.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<usize, DeliverError> {
        self.flush();
        let mut count = 0;
        if self.is_writable() && !self.sink_closed {
            count = self.send(|data| stream::send(data, bytes));
        }
        match self.sink_closed {
            true => Err(DeliverError::ReadClosed),
            false => Ok(count),
        }
    }

    pub(super) fn read(
        &mut self,
        buffer: &mut [u8],
        control: Option<&mut ControlConnection>,
    ) -> FillOutcome {
        self.receive(|data| stream::recv(data, buffer), control)
    }

    /// Passes on the guest's half-close.
    pub(super) fn finish(&mut self, control: Option<&ControlConnection>) {
        if self.finished == Finish::No {
            self.finished = Finish::Wanted;
        }
        self.flush();
        self.send_shutdown(control);
    }

    /// Whether no half-close is pending behind unwritten bytes.
    pub(super) fn is_flushed(&self) -> bool {
        self.finished != Finish::Wanted
    }

    /// Passes on that the guest reads no more.
    pub(super) fn close_read(&mut self) {
        self.read_closed = true;
        if let Some(data) = &self.data {
            let _ = stream::shutdown(data, Shutdown::Read);
            if self.finished == Finish::No {
                stream::discard_all_but_one(data);
            }
        }
    }

    /// Whether the process, which has closed its end, left bytes unread: some that it never had, or, of an end whose data
    /// had ended before, by what the kernel says once. Otherwise the next read says that.
    pub(super) fn leaves_unread(&self) -> bool {
        let data = self.data.as_ref().filter(|_| self.ended);
        let has_failed = |data| !matches!(hvsock_sys::take_error(data), Ok(None));
        self.lost || !self.pending.is_empty() || data.is_some_and(has_failed)
    }

    /// Fails if the process has closed its end while bytes were on their way to it, and not only shut it down for writing.
    fn check_unread(&self, ended: FillOutcome) -> FillOutcome {
        let is_lost = self.lost || !self.pending.is_empty();
        match &self.data {
            Some(data) if is_lost && !self.read_closed && stream::is_hung_up(data) => {
                FillOutcome::Failed(unread_data())
            }
            _ => ended,
        }
    }

    pub(super) fn deliver(&mut self, chunks: &[SharedBytes<'_>]) -> Result<(), DeliverError> {
        if self.sink_closed {
            return Err(DeliverError::ReadClosed);
        }
        let mut done = 0;
        if self.pending.is_empty() && self.accepts() {
            done = self.send(|data| shared_memory::send(data, chunks));
        }
        for chunk in chunks {
            let skip = done.min(chunk.len());
            done -= skip;
            let rest = chunk.part(skip, chunk.len());
            let at = self.pending.len();
            self.pending.resize(at + rest.len(), 0);
            rest.get(0, &mut self.pending[at..]);
        }
        if self.sink_closed {
            return Err(DeliverError::ReadClosed);
        }
        Ok(())
    }

    /// Writes pending bytes until the socket is full.
    pub(super) fn flush(&mut self) {
        while self.start < self.pending.len() && self.accepts() && !self.sink_closed {
            let pending = std::mem::take(&mut self.pending);
            let start = self.start;
            let consumed = self.send(|data| stream::send(data, &pending[start..]));
            self.pending = pending;
            self.start += consumed;
        }
        if self.start == self.pending.len() || self.sink_closed {
            // Free the buffer: most connections never need one.
            (self.pending, self.start) = (Vec::new(), 0);
        }
    }

    fn send(&mut self, call: impl FnOnce(&OwnedFd) -> std::io::Result<usize>) -> usize {
        let Some(data) = &self.data else {
            return 0;
        };
        match call(data) {
            Ok(count) => {
                self.consumed += count as u64;
                count
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.writable = false;
                0
            }
            Err(_) => {
                (self.sink_closed, self.lost) = (true, true);
                0
            }
        }
    }

    pub(super) fn send_shutdown(&mut self, control: Option<&ControlConnection>) {
        if self.finished == Finish::Wanted
            && self.pending.is_empty()
            && let (Some(control), Some(data)) = (control, &self.data)
        {
            control.send(&BrokerMessage::Shutdown);
            let _ = stream::shutdown(data, Shutdown::Write);
            self.finished = Finish::Done;
        }
    }

    pub(super) fn fill(
        &mut self,
        chunks: &[SharedBytes<'_>],
        control: Option<&mut ControlConnection>,
    ) -> FillOutcome {
        self.receive(|data| shared_memory::recv(data, chunks), control)
    }

    fn receive(
        &mut self,
        call: impl FnOnce(&OwnedFd) -> std::io::Result<usize>,
        control: Option<&mut ControlConnection>,
    ) -> FillOutcome {
        let Some(data) = self.data.as_ref().filter(|_| self.readable) else {
            return FillOutcome::Empty;
        };
        match call(data) {
            Ok(0) => self.end_of_file(control),
            Ok(count) => FillOutcome::Bytes(count, MessageEnd::default(), true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                FillOutcome::Empty
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                FillOutcome::Failed(unread_data())
            }
            Err(_) => FillOutcome::Failed(peer_died()),
        }
    }

    /// Handles end of file. The process sends SHUTDOWN before it shuts the socket down, so an end
    /// of file without one means that it died.
    fn end_of_file(&mut self, control: Option<&mut ControlConnection>) -> FillOutcome {
        if self.protocol != Protocol::Announces {
            self.ended = true;
            self.check_hang_up();
            return self.check_unread(FillOutcome::Ended);
        }
        if self.read_closed {
            // This end has shut the socket down, so the process has had no part in it. It may be there still; if it
            // is not, its control connection tells.
            return FillOutcome::Ended;
        }
        let Some(control) = control else {
            return FillOutcome::Empty;
        };
        match control.read() {
            Err(refusal) => FillOutcome::Failed(refusal),
            Ok(()) if control.announced => {
                self.ended = true;
                self.check_unread(FillOutcome::Ended)
            }
            // The SHUTDOWN is behind more messages than one read handles: try again.
            Ok(()) if control.readable => FillOutcome::Bytes(0, MessageEnd::default(), true),
            Ok(()) => FillOutcome::Failed(peer_died()),
        }
    }
}

#[cfg(test)]
mod tests {
    use hvsock_sys::{seqpacket, set_nonblocking};

    use super::super::Peer;
    use super::*;

    fn plain() -> (Peer, OwnedFd) {
        let (own, process) = stream::pair().unwrap();
        set_nonblocking(&own, true).unwrap();
        set_nonblocking(&process, true).unwrap();
        (Peer::plain_socket(own), process)
    }

    fn ready(peer: &mut Peer) {
        peer.data_ready(Readiness {
            readable: true,
            writable: true,
        });
    }

    fn ends(peer: &mut Peer) -> bool {
        matches!(peer.read(&mut [0; 8], false), FillOutcome::Ended)
    }

    #[test]
    fn nothing_reaches_a_plain_socket_before_it_is_established() {
        let (mut peer, process) = plain();
        ready(&mut peer);
        assert!(!peer.is_established());
        assert_eq!(peer.write(b"early", MessageEnd::default()), Ok(0));
        peer.finish();
        let mut bytes = [0; 8];
        let error = stream::recv(&process, &mut bytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        peer.set_control(ControlConnection::none());
        assert!(peer.is_established() && peer.control_descriptor().is_none());
        // The guest has ended meanwhile.
        assert_eq!(stream::recv(&process, &mut bytes).unwrap(), 0);
        let (mut peer, process) = plain();
        peer.set_control(ControlConnection::none());
        assert_eq!(peer.write(b"late", MessageEnd::default()), Ok(4));
        assert_eq!(stream::recv(&process, &mut bytes).unwrap(), 4);
    }

    #[test]
    fn a_process_is_not_taken_for_dead_after_the_guest_has_closed_its_end() {
        let (own, process) = stream::pair().unwrap();
        let (control, process_control) = seqpacket::pair().unwrap();
        for fd in [&own, &process, &control] {
            set_nonblocking(fd, true).unwrap();
        }
        let mut peer = Peer::socket(own, false);
        peer.set_control(ControlConnection::new(control));
        assert_eq!(peer.write(b"last", MessageEnd::default()), Ok(4));
        stream::send(&process, b"sent before").unwrap();
        peer.finish();
        peer.close_read();
        // The close makes the socket readable. What the process had sent comes first.
        ready(&mut peer);
        let read = peer.read(&mut [0; 16], false);
        assert!(matches!(read, FillOutcome::Bytes(11, ..)), "{read:?}");
        let read = peer.read(&mut [0; 8], false);
        assert!(matches!(read, FillOutcome::Ended), "{read:?}");
        assert!(!peer.is_closed());
        let mut bytes = [0; 8];
        assert_eq!(stream::recv(&process, &mut bytes).unwrap(), 4);
        assert_eq!(stream::recv(&process, &mut bytes).unwrap(), 0);
        drop(process_control);
        peer.control_ready();
        assert_eq!(peer.read_control().1, Ok(()));
        assert!(peer.is_closed());
    }

    #[test]
    fn a_process_with_a_raw_fd_may_close_its_control_while_its_socket_is_full() {
        let (own, process) = stream::pair().unwrap();
        let (control, process_control) = seqpacket::pair().unwrap();
        for fd in [&own, &process, &control] {
            set_nonblocking(fd, true).unwrap();
        }
        let mut peer = Peer::socket(own, true);
        peer.set_control(ControlConnection::new(control));
        drop(process_control);
        peer.control_ready();
        assert_eq!(peer.read_control().1, Ok(()));
        let mut written = 0;
        while let Ok(count @ 1..) = peer.write(&[1; 65536], MessageEnd::default()) {
            written += count;
        }
        assert!(!peer.is_closed());
        // Both directions go on, and each ends by itself.
        stream::send(&process, b"last").unwrap();
        stream::shutdown(&process, Shutdown::Write).unwrap();
        ready(&mut peer);
        let read = peer.read(&mut [0; 8], false);
        assert!(matches!(read, FillOutcome::Bytes(4, ..)), "{read:?}");
        assert!(ends(&mut peer) && !peer.is_closed());
        peer.finish();
        let mut buffer = vec![0; 1 << 20];
        let mut got = 0;
        while let Ok(count @ 1..) = stream::recv(&process, &mut buffer) {
            got += count;
        }
        assert_eq!(got, written);
        assert!(peer.is_closed());
        // The socket alone shows that the process has closed.
        let (own, process) = stream::pair().unwrap();
        set_nonblocking(&own, true).unwrap();
        let mut peer = Peer::socket(own, true);
        peer.set_control(ControlConnection::none());
        drop(process);
        ready(&mut peer);
        assert!(ends(&mut peer) && peer.is_closed());
    }

    #[test]
    fn a_plain_socket_is_closed_once_both_directions_have_ended() {
        let established = || {
            let (mut peer, process) = plain();
            peer.set_control(ControlConnection::none());
            (peer, process)
        };
        // The process half-closes, and closes later.
        let (mut peer, process) = established();
        stream::shutdown(&process, Shutdown::Write).unwrap();
        assert!(ends(&mut peer) && !peer.is_closed());
        drop(process);
        ready(&mut peer);
        assert!(peer.is_closed());
        // It closes with bytes that nobody has read.
        let (mut peer, process) = established();
        stream::send(&process, b"last").unwrap();
        drop(process);
        ready(&mut peer);
        assert!(!peer.is_closed());
        let read = peer.read(&mut [0; 8], false);
        assert!(matches!(read, FillOutcome::Bytes(4, ..)));
        assert!(ends(&mut peer) && peer.is_closed());
        // The guest half-closes, and closes later; the process stays.
        let (mut peer, _process) = established();
        peer.finish();
        assert!(!peer.is_closed());
        peer.close_read();
        assert!(peer.is_closed());
        // Each half-closes.
        let (mut peer, process) = established();
        stream::shutdown(&process, Shutdown::Write).unwrap();
        assert!(ends(&mut peer));
        peer.finish();
        assert!(peer.is_closed());
    }
}
