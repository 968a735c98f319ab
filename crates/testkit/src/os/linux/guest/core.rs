//! The guest's half of virtio-vsock: how it handles each packet. It behaves like Linux.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar};
use std::time::{Duration, Instant};

use hvsock_virtio::{Header, Operation, SocketKind, message, shutdown};

use super::connection::{CloseReason, Connection, Key};
use super::driver::{Driver, MAX_PACKET, Received, TRANSPORT_RESET};

/// How long Linux waits for the peer's reset after a close (`VSOCK_CLOSE_TIMEOUT`).
const CLOSE_TIMEOUT: Duration = Duration::from_secs(8);
/// Packets that are handled before buffers are refilled and replies are sent.
const BATCH: usize = 64;

/// A message, and whether it ends a record (`MSG_EOR`). `None` is end of file.
pub type Message = Option<(Vec<u8>, bool)>;

/// Which thread processes the queues (leader/followers pattern).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leader {
    None,
    Worker,
    /// A thread that is blocked in a call.
    User,
}

#[derive(Debug)]
pub(super) struct Core {
    pub(super) driver: Driver,
    pub(super) connections: HashMap<Key, Connection>,
    pub(super) listeners: HashMap<(SocketKind, u32), ListenerState>,
    /// Packets to send once the TX queue has space.
    tx_pending: VecDeque<(Option<Key>, Header)>,
    /// Closed connections that wait for the peer's reset, with their deadlines, oldest first.
    closing: VecDeque<(Instant, Key)>,
    next_port: u32,
    pub(super) leader: Leader,
    /// How often a blocked thread became the leader.
    pub(super) leader_changes: u64,
    /// Whether the leader is parked and needs a wakeup.
    pub(super) parked: bool,
    pub(super) followers: usize,
    pub(super) worker_parked: bool,
    /// Threads that wait for free space in the TX queue.
    pub(super) tx_waiters: Vec<Arc<Condvar>>,
    pub(super) stopped: bool,
    /// Protocol violations of the device.
    pub(super) violations: Vec<String>,
    /// Count of packets addressed to other guests.
    pub(super) misrouted: u64,
    /// Count of transport resets.
    pub(super) transport_resets: u64,
}

#[derive(Debug)]
pub(super) struct ListenerState {
    pub(super) backlog: usize,
    pub(super) queue: VecDeque<Key>,
    pub(super) changed: Arc<Condvar>,
}

impl Core {
    pub(super) fn new(driver: Driver) -> Self {
        Self {
            driver,
            connections: HashMap::new(),
            listeners: HashMap::new(),
            tx_pending: VecDeque::new(),
            closing: VecDeque::new(),
            next_port: 49152,
            leader: Leader::None,
            leader_changes: 0,
            parked: false,
            followers: 0,
            worker_parked: false,
            tx_waiters: Vec::new(),
            stopped: false,
            violations: Vec::new(),
            misrouted: 0,
            transport_resets: 0,
        }
    }

    fn cid(&self) -> u64 {
        self.driver.options().cid
    }

    /// Allocates an unused ephemeral port.
    pub(super) fn free_port(&mut self) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(49152);
            let used = self.connections.keys().any(|key| key.port == port);
            if self.connections.len() > 10_000 || !used {
                return port;
            }
        }
    }

    /// Handles all received packets, frees sent ones, and resets connections whose close timed out.
    pub(super) fn process_queues(&mut self) {
        if !self.parked {
            self.driver.rx().disable_notification();
        }
        if self.driver.events().has_used() {
            self.process_events();
        }
        loop {
            let mut count = 0;
            while count < BATCH {
                let Some(received) = self.driver.poll_receive() else {
                    break;
                };
                if !self.handle(&received) {
                    self.driver.recycle(received.buffer);
                }
                count += 1;
            }
            if count > 0 {
                self.driver.refill();
            }
            self.flush_pending();
            if count < BATCH {
                break;
            }
        }
        if !self.tx_waiters.is_empty() && self.driver.tx().has_used() {
            self.driver.reclaim();
            self.tx_waiters.drain(..).for_each(|it| it.notify_all());
        }
        while let Some((at, key)) = self.closing.front().copied() {
            let closed = self
                .connections
                .get(&key)
                .is_none_or(|connection| connection.close_reason.is_some());
            if !closed && Instant::now() < at {
                break;
            }
            self.closing.pop_front();
            if !closed {
                self.send_control(key, Operation::Reset, 0);
                self.connections.remove(&key);
            }
        }
    }

    /// Handles the device's events. Like Linux, a transport reset ends the connections that are established, and
    /// those only, and the context id is read again.
    #[cold]
    fn process_events(&mut self) {
        while let Some(event) = self.driver.poll_event() {
            if event != TRANSPORT_RESET {
                self.violations.push(format!("the unknown event {event}"));
                continue;
            }
            self.transport_resets += 1;
            self.end_connections(CloseReason::TransportReset, |connection| connection.open);
            let cid = self.cid();
            if let Ok(config) = self.driver.read_config(0, 8)
                && config != cid.to_le_bytes()
            {
                self.violations
                    .push(format!("the context id is {config:?}"));
            }
        }
        self.driver.refill();
    }

    /// When the next close times out.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.closing.front().map(|(at, _)| *at)
    }

    /// Requests calls from the device before a park. True if there is work already, so that the
    /// caller must not park.
    pub(super) fn enable_notifications(&mut self) -> bool {
        let awaits_tx = !self.tx_waiters.is_empty() || !self.tx_pending.is_empty();
        let received =
            self.driver.rx().enable_notification() | self.driver.events().enable_notification();
        received || (awaits_tx && self.driver.tx().enable_notification())
    }

    /// Handles a packet. Returns whether the connection keeps its buffer.
    fn handle(&mut self, received: &Received) -> bool {
        let header = &received.header;
        if header.dst_cid != self.cid() {
            self.misrouted += 1;
            self.record_violation(header, "a packet with another destination CID");
            return false;
        }
        let (Some(kind), Some(op)) = (header.socket_kind(), header.operation()) else {
            self.record_violation(header, "an unknown type or operation");
            return false;
        };
        let key = Key {
            kind,
            port: header.dst_port,
            peer_cid: header.src_cid,
            peer_port: header.src_port,
        };
        if op != Operation::Data && received.len != 0 {
            self.record_violation(header, "a payload in a control packet");
        }
        let Some(connection) = self.connections.get_mut(&key) else {
            self.handle_unknown(key, op, header);
            return false;
        };
        // The socket is closed, with its error. Packets from before the event may still be in the queue, and the
        // device resets a connection for which a packet was in the other queue.
        if connection.close_reason == Some(CloseReason::TransportReset) {
            if op != Operation::Reset {
                self.send_control(key, Operation::Reset, 0);
            }
            return false;
        }
        let mut violation = None;
        // The reset of a connection that is unknown to the device contains no credit.
        if (connection.open && op != Operation::Reset) || op == Operation::Response {
            violation = connection.update_credit(header);
        }
        let mut kept = false;
        let mut reply = None;
        match op {
            Operation::Request => violation = Some("a second request"),
            Operation::Response if connection.open => violation = Some("a second response"),
            Operation::Response => connection.open = true,
            Operation::Reset => {
                let both = |bits| bits & shutdown::BOTH == shutdown::BOTH;
                connection.close_reason = Some(match connection.open {
                    false => CloseReason::Refused,
                    true if both(connection.shutdown_sent)
                        || both(connection.shutdown_received) =>
                    {
                        CloseReason::Clean
                    }
                    true => CloseReason::Reset,
                });
            }
            _ if !connection.open => {
                violation = Some("a packet before the response");
                reply = Some(Operation::Reset);
            }
            Operation::Shutdown => connection.shutdown_received |= header.flags,
            Operation::Data if connection.released => {}
            Operation::Data => match connection.accept_data(&self.driver, received) {
                Ok(held) => kept = held,
                Err(reason) => violation = Some(reason),
            },
            Operation::CreditUpdate => {}
            Operation::CreditRequest => reply = Some(Operation::CreditUpdate),
        }
        // Without a follower nobody waits for it, and the notification of a packet would be a system call.
        if self.followers > 0 {
            connection.changed.notify_all();
        }
        let released = connection.released;
        let closed = connection.close_reason.is_some();
        let ended = connection.shutdown_received & shutdown::BOTH == shutdown::BOTH;
        if !closed && ended && !connection.has_unread() {
            connection.close_reason = Some(CloseReason::Clean);
            reply = Some(Operation::Reset);
        }
        if let Some(reason) = violation {
            self.record_violation(header, reason);
        }
        if let Some(op) = reply {
            self.send_control(key, op, 0);
        }
        if released && (closed || reply == Some(Operation::Reset)) {
            self.connections.remove(&key);
        }
        kept
    }

    /// Handles a packet of an unknown connection: accepts a request, resets anything else.
    fn handle_unknown(&mut self, key: Key, op: Operation, header: &Header) {
        let listener = self.listeners.get_mut(&(key.kind, key.port));
        match (op, listener) {
            (Operation::Reset, _) => {}
            (Operation::Request, Some(listener)) if listener.queue.len() < listener.backlog => {
                let mut connection = Connection::new(key, self.driver.options());
                connection.open = true;
                connection.update_credit(header);
                listener.queue.push_back(key);
                listener.changed.notify_all();
                self.connections.insert(key, connection);
                self.send_control(key, Operation::Response, 0);
            }
            _ => self.enqueue(Header {
                src_cid: header.dst_cid,
                dst_cid: header.src_cid,
                src_port: header.dst_port,
                dst_port: header.src_port,
                kind: header.kind,
                op: Operation::Reset as u16,
                ..Header::default()
            }),
        }
    }

    fn record_violation(&mut self, header: &Header, reason: &str) {
        if self.violations.len() < 100 {
            self.violations.push(format!("{reason}: {header:?}"));
        }
    }

    /// Sends a packet without payload on a connection. Does nothing if the connection is unknown.
    pub(super) fn send_control(&mut self, key: Key, op: Operation, flags: u32) {
        let cid = self.cid();
        if let Some(connection) = self.connections.get_mut(&key) {
            let header = Header {
                flags,
                ..connection.header(cid, op)
            };
            self.tx_pending.push_back((Some(key), header));
            self.flush_pending();
        }
    }

    /// Sends a packet of no connection.
    fn enqueue(&mut self, header: Header) {
        self.tx_pending.push_back((None, header));
        self.flush_pending();
    }

    fn flush_pending(&mut self) {
        while let Some((key, header)) = self.tx_pending.front_mut() {
            // While it waited for a slot, data packets may have passed it with newer counts.
            if let Some(connection) = key.and_then(|key| self.connections.get_mut(&key)) {
                connection.update_credit_of(header);
            }
            if !self.driver.try_send(header, &[]) {
                break;
            }
            self.tx_pending.pop_front();
        }
        self.driver.flush();
    }

    /// Sends a connection request. Returns the condition variable that its changes notify.
    pub(super) fn start_connect(&mut self, key: Key) -> io::Result<Arc<Condvar>> {
        if self.connections.contains_key(&key) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let connection = Connection::new(key, self.driver.options());
        let changed = Arc::clone(&connection.changed);
        self.connections.insert(key, connection);
        self.send_control(key, Operation::Request, 0);
        Ok(changed)
    }

    /// The result of a connection request; `None` while it is pending.
    pub(super) fn connect_result(&mut self, key: Key) -> Option<io::Result<()>> {
        let connection = self.connections.get(&key)?;
        match connection.close_reason {
            Some(_) if !connection.open => Some(Err(io::ErrorKind::ConnectionRefused.into())),
            _ => connection.open.then_some(Ok(())),
        }
    }

    /// Reads without waiting; `None` if it would block.
    #[inline]
    pub(super) fn read(&mut self, key: Key, buffer: &mut [u8]) -> Option<io::Result<usize>> {
        let Some(connection) = self.connections.get_mut(&key) else {
            return Some(Err(io::ErrorKind::NotConnected.into()));
        };
        if connection.has_unread() {
            let (read, low_credit) = connection.read(&mut self.driver, buffer);
            self.after_read(key, low_credit);
            return Some(Ok(read));
        }
        connection.end_of_data().map(|end| end.map(|()| 0))
    }

    /// Whether [`Core::read`] would not block.
    pub(super) fn is_readable(&mut self, key: Key) -> bool {
        self.connections
            .get_mut(&key)
            .is_none_or(|connection| connection.has_unread() || connection.end_of_data().is_some())
    }

    /// Whether [`Core::write`] would not block.
    pub(super) fn is_writable(&self, key: Key) -> bool {
        self.connections.get(&key).is_none_or(|connection| {
            let is_shut = connection.shutdown_sent & shutdown::SEND != 0
                || connection.shutdown_received & shutdown::RECEIVE != 0;
            is_shut || connection.close_reason.is_some() || connection.credit() > 0
        })
    }

    /// Reads a whole message; `None` if it would block.
    pub(super) fn read_message(&mut self, key: Key) -> Option<io::Result<Message>> {
        let Some(connection) = self.connections.get_mut(&key) else {
            return Some(Err(io::ErrorKind::NotConnected.into()));
        };
        if connection.has_message() {
            let (bytes, record, low_credit) = connection.read_message(&mut self.driver);
            self.after_read(key, low_credit);
            return Some(Ok(Some((bytes, record))));
        }
        connection.end_of_data().map(|end| end.map(|()| None))
    }

    #[inline]
    fn after_read(&mut self, key: Key, send_credit_update: bool) {
        self.driver.refill();
        if send_credit_update {
            self.send_control(key, Operation::CreditUpdate, 0);
        }
        let both = shutdown::BOTH;
        let ended = self.connections.get_mut(&key).filter(|connection| {
            connection.shutdown_received & both == both
                && connection.close_reason.is_none()
                && !connection.has_unread()
        });
        if let Some(connection) = ended {
            connection.close_reason = Some(CloseReason::Clean);
            self.send_control(key, Operation::Reset, 0);
        }
    }

    /// Sends `bytes` from offset `sent` on and advances `sent`. `None` if it would block.
    ///
    /// Without `end`, a partial write succeeds. With `end`, only all bytes do, and the last packet
    /// has these flags.
    #[inline]
    pub(super) fn write(
        &mut self,
        key: Key,
        bytes: &[u8],
        sent: &mut usize,
        end: Option<u32>,
    ) -> Option<io::Result<()>> {
        let cid = self.cid();
        let Some(connection) = self.connections.get_mut(&key) else {
            return Some(Err(io::ErrorKind::NotConnected.into()));
        };
        let mut empty_message = bytes.is_empty() && end.is_some();
        let mut has_credit = true;
        while *sent < bytes.len() || empty_message {
            if connection.shutdown_sent & shutdown::SEND != 0
                || connection.shutdown_received & shutdown::RECEIVE != 0
            {
                return Some(Err(io::ErrorKind::BrokenPipe.into()));
            }
            if let Some(reason) = connection.close_reason {
                return Some(Err(match reason {
                    CloseReason::Clean => io::ErrorKind::BrokenPipe,
                    _ => io::ErrorKind::ConnectionReset,
                }
                .into()));
            }
            let rest = &bytes[*sent..];
            let len = rest.len().min(connection.credit()).min(MAX_PACKET);
            if len == 0 && !empty_message {
                has_credit = false;
                break;
            }
            let flags = if len == rest.len() { end } else { None };
            let header = Header {
                len: len as u32,
                flags: flags.unwrap_or(0),
                ..connection.header(cid, Operation::Data)
            };
            if !self.driver.try_send(&header, &rest[..len]) {
                break;
            }
            self.driver.flush();
            connection.record_sent(len);
            *sent += len;
            empty_message = false;
        }
        let done = *sent == bytes.len() && !empty_message;
        let enough = done || (end.is_none() && *sent > 0);
        let changed = &connection.changed;
        if !enough && has_credit && !self.tx_waiters.iter().any(|it| Arc::ptr_eq(it, changed)) {
            self.tx_waiters.push(Arc::clone(changed));
        }
        enough.then_some(Ok(()))
    }

    /// [`Core::write`] for a caller that never waits. Fails with `WouldBlock` instead.
    pub(super) fn try_write(&mut self, key: Key, bytes: &[u8]) -> io::Result<usize> {
        let mut sent = 0;
        let written = self.write(key, bytes, &mut sent, None);
        // No thread waits, so there is none to notify.
        if let Some(connection) = self.connections.get(&key) {
            let changed = &connection.changed;
            self.tx_waiters.retain(|it| !Arc::ptr_eq(it, changed));
        }
        match written {
            Some(result) => result.map(|()| sent),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Shuts down one direction or both (half-close).
    pub(super) fn shutdown(&mut self, key: Key, bits: u32) -> io::Result<()> {
        let connection = self.connections.get_mut(&key);
        let connection = connection.ok_or(io::ErrorKind::NotConnected)?;
        if connection.close_reason.is_some() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if connection.shutdown_sent & bits != bits {
            connection.shutdown_sent |= bits;
            let flags = connection.shutdown_sent;
            connection.changed.notify_all();
            self.send_control(key, Operation::Shutdown, flags);
        }
        Ok(())
    }

    /// Closes a connection whose last handle was dropped. Like Linux, it then waits for the peer's
    /// reset.
    pub(super) fn release(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        connection.released = true;
        connection.discard(&mut self.driver);
        let closed = connection.close_reason.is_some();
        let peer_done = connection.shutdown_received & shutdown::BOTH == shutdown::BOTH;
        if !closed && peer_done {
            self.send_control(key, Operation::Reset, 0);
        }
        if closed || peer_done {
            self.connections.remove(&key);
        } else {
            let _ = self.shutdown(key, shutdown::BOTH);
            self.closing
                .push_back((Instant::now() + CLOSE_TIMEOUT, key));
        }
        self.driver.refill();
    }

    /// Resets a connection.
    pub(super) fn reset(&mut self, key: Key) {
        self.send_control(key, Operation::Reset, 0);
        if let Some(mut connection) = self.connections.remove(&key) {
            connection.discard(&mut self.driver);
        }
        self.driver.refill();
    }

    /// Drops all state, as a guest that restarts does. Listeners stay.
    pub(super) fn restart(&mut self) {
        for connection in self.connections.values_mut() {
            connection.clear_unread();
        }
        self.end_connections(CloseReason::Restarted, |_| true);
        self.tx_pending.clear();
    }

    /// Ends connections. Listeners stay.
    fn end_connections(&mut self, reason: CloseReason, which: impl Fn(&Connection) -> bool) {
        for connection in self.connections.values_mut().filter(|it| which(it)) {
            connection.close_reason = connection.close_reason.or(Some(reason));
            connection.changed.notify_all();
        }
        self.connections
            .retain(|_, connection| !connection.released);
        for listener in self.listeners.values_mut() {
            listener.queue.clear();
        }
        self.closing.clear();
    }
}

impl Connection {
    /// What a read returns once no data is left; `None` if more may arrive.
    fn end_of_data(&self) -> Option<io::Result<()>> {
        if self.shutdown_received & shutdown::SEND != 0
            || self.shutdown_sent & shutdown::RECEIVE != 0
        {
            return Some(Ok(()));
        }
        match self.close_reason? {
            CloseReason::Clean => Some(Ok(())),
            _ => Some(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

/// The flags of the last packet of a message.
pub(super) fn message_end(record: bool) -> u32 {
    message::END | if record { message::RECORD } else { 0 }
}
