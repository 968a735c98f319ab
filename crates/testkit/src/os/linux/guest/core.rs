//! A guest's half of the protocol, in Linux's habits: what it does about each packet.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar};
use std::time::{Duration, Instant};

use hvsock_virtio::{Header, Operation, SocketKind, message, shutdown};

use super::connection::{Connection, Key, Over};
use super::driver::{Driver, MAX_PACKET, Received};

/// As long Linux waits for the answer to a close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(8);
/// Packets that are looked at before what they change is acted on.
const BATCH: usize = 64;

/// A message and whether it ended a record; `None` at the end of all messages.
pub type Message = Option<(Vec<u8>, bool)>;

/// Who looks at the queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leader {
    Nobody,
    Worker,
    /// A thread that waits for something.
    User,
}

#[derive(Debug)]
pub(super) struct Core {
    pub(super) driver: Driver,
    pub(super) connections: HashMap<Key, Connection>,
    pub(super) listeners: HashMap<(SocketKind, u32), Listening>,
    /// Packets for which there was no room.
    waiting: VecDeque<Header>,
    /// When to give up waiting for the answer to a close, the oldest first.
    closing: VecDeque<(Instant, Key)>,
    next_port: u32,
    pub(super) leader: Leader,
    /// How often a thread became the leader.
    pub(super) terms: u64,
    /// The leader sleeps and has to be woken.
    pub(super) asleep: bool,
    pub(super) followers: usize,
    pub(super) worker_rests: bool,
    /// Who waits for room in the queue from the guest.
    pub(super) want_room: Vec<Arc<Condvar>>,
    pub(super) ended: bool,
    /// What the device did that it must not do.
    pub(super) faults: Vec<String>,
    /// Packets for other guests.
    pub(super) strays: u64,
}

#[derive(Debug)]
pub(super) struct Listening {
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
            waiting: VecDeque::new(),
            closing: VecDeque::new(),
            next_port: 49152,
            leader: Leader::Nobody,
            terms: 0,
            asleep: false,
            followers: 0,
            worker_rests: false,
            want_room: Vec::new(),
            ended: false,
            faults: Vec::new(),
            strays: 0,
        }
    }

    fn cid(&self) -> u64 {
        self.driver.options().cid
    }

    /// A port that nothing uses.
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

    /// Looks at everything that has come.
    pub(super) fn turn(&mut self) {
        if !self.asleep {
            self.driver.rx().want_no_call();
        }
        loop {
            let mut count = 0;
            while count < BATCH {
                let Some(received) = self.driver.poll_receive() else {
                    break;
                };
                if !self.handle(&received) {
                    self.driver.give_back(received.buffer);
                }
                count += 1;
            }
            if count > 0 {
                self.driver.refill();
            }
            self.send_waiting();
            if count < BATCH {
                break;
            }
        }
        if !self.want_room.is_empty() && self.driver.tx().has_used() {
            self.driver.reclaim();
            self.want_room.drain(..).for_each(|it| it.notify_all());
        }
        while let Some((at, key)) = self.closing.front().copied() {
            let over = self
                .connections
                .get(&key)
                .is_none_or(|connection| connection.over.is_some());
            if !over && Instant::now() < at {
                break;
            }
            self.closing.pop_front();
            if !over {
                self.tell(key, Operation::Reset, 0);
                self.connections.remove(&key);
            }
        }
    }

    /// When to look again even if nothing comes.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.closing.front().map(|(at, _)| *at)
    }

    /// Asks to be called. True if there is something already.
    pub(super) fn arm(&mut self) -> bool {
        let wants_room = !self.want_room.is_empty() || !self.waiting.is_empty();
        let came = self.driver.rx().want_call();
        came || (wants_room && self.driver.tx().want_call())
    }

    /// Handles a packet; whether its buffer is kept.
    fn handle(&mut self, received: &Received) -> bool {
        let header = &received.header;
        if header.dst_cid != self.cid() {
            self.strays += 1;
            self.fault(header, "a packet for somebody else");
            return false;
        }
        let (Some(kind), Some(op)) = (header.socket_kind(), header.operation()) else {
            self.fault(header, "neither kind nor operation");
            return false;
        };
        let key = Key {
            kind,
            port: header.dst_port,
            peer_cid: header.src_cid,
            peer_port: header.src_port,
        };
        if op != Operation::Data && received.len != 0 {
            self.fault(header, "data where none belongs");
        }
        let Some(connection) = self.connections.get_mut(&key) else {
            self.handle_new(key, op, header);
            return false;
        };
        let mut fault = None;
        // A reset of a connection that its sender has forgotten knows of no credit.
        if (connection.open && op != Operation::Reset) || op == Operation::Response {
            fault = connection.hear_credit(header);
        }
        let mut kept = false;
        let mut answer = None;
        match op {
            Operation::Request => fault = Some("a second request"),
            Operation::Response if connection.open => fault = Some("a second response"),
            Operation::Response => connection.open = true,
            Operation::Reset => {
                let both = |bits| bits & shutdown::BOTH == shutdown::BOTH;
                connection.over = Some(match connection.open {
                    false => Over::Refused,
                    true if both(connection.said) || both(connection.heard) => Over::Clean,
                    true => Over::Reset,
                });
            }
            _ if !connection.open => {
                fault = Some("a packet before the response");
                answer = Some(Operation::Reset);
            }
            Operation::Shutdown => connection.heard |= header.flags,
            Operation::Data if connection.released => {}
            Operation::Data => match connection.take(&self.driver, received) {
                Ok(held) => kept = held,
                Err(wrong) => fault = Some(wrong),
            },
            Operation::CreditUpdate => {}
            Operation::CreditRequest => answer = Some(Operation::CreditUpdate),
        }
        connection.changed.notify_all();
        let released = connection.released;
        let over = connection.over.is_some();
        let ended = connection.heard & shutdown::BOTH == shutdown::BOTH;
        if !over && ended && !connection.has_unread() {
            connection.over = Some(Over::Clean);
            answer = Some(Operation::Reset);
        }
        if let Some(wrong) = fault {
            self.fault(header, wrong);
        }
        if let Some(op) = answer {
            self.tell(key, op, 0);
        }
        if released && (over || answer == Some(Operation::Reset)) {
            self.connections.remove(&key);
        }
        kept
    }

    /// A packet of no connection.
    fn handle_new(&mut self, key: Key, op: Operation, header: &Header) {
        let listener = self.listeners.get_mut(&(key.kind, key.port));
        match (op, listener) {
            (Operation::Reset, _) => {}
            (Operation::Request, Some(listener)) if listener.queue.len() < listener.backlog => {
                let mut connection = Connection::new(key, self.driver.options());
                connection.open = true;
                connection.hear_credit(header);
                listener.queue.push_back(key);
                listener.changed.notify_all();
                self.connections.insert(key, connection);
                self.tell(key, Operation::Response, 0);
            }
            _ => self.push(Header {
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

    fn fault(&mut self, header: &Header, wrong: &str) {
        if self.faults.len() < 100 {
            self.faults.push(format!("{wrong}: {header:?}"));
        }
    }

    /// Sends a packet without data on a connection that is known.
    pub(super) fn tell(&mut self, key: Key, op: Operation, flags: u32) {
        let cid = self.cid();
        if let Some(connection) = self.connections.get_mut(&key) {
            let header = Header {
                flags,
                ..connection.header(cid, op)
            };
            self.push(header);
        }
    }

    fn push(&mut self, header: Header) {
        self.waiting.push_back(header);
        self.send_waiting();
    }

    fn send_waiting(&mut self) {
        while let Some(header) = self.waiting.front() {
            if !self.driver.try_send(header, &[]) {
                break;
            }
            self.waiting.pop_front();
        }
        self.driver.flush();
    }

    /// Asks for a connection.
    pub(super) fn request(&mut self, key: Key) -> io::Result<Arc<Condvar>> {
        if self.connections.contains_key(&key) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let connection = Connection::new(key, self.driver.options());
        let changed = Arc::clone(&connection.changed);
        self.connections.insert(key, connection);
        self.tell(key, Operation::Request, 0);
        Ok(changed)
    }

    /// Whether a connection that was asked for stands; `None` while that is open.
    pub(super) fn connected(&mut self, key: Key) -> Option<io::Result<()>> {
        let connection = self.connections.get(&key)?;
        match connection.over {
            Some(_) if !connection.open => Some(Err(io::ErrorKind::ConnectionRefused.into())),
            _ => connection.open.then_some(Ok(())),
        }
    }

    /// Reads; `None` where it would wait.
    #[inline]
    pub(super) fn read(&mut self, key: Key, buffer: &mut [u8]) -> Option<io::Result<usize>> {
        let Some(connection) = self.connections.get_mut(&key) else {
            return Some(Err(io::ErrorKind::NotConnected.into()));
        };
        if connection.has_unread() {
            let (read, tell) = connection.read(&mut self.driver, buffer);
            self.after_read(key, tell);
            return Some(Ok(read));
        }
        connection.end_of_data().map(|end| end.map(|()| 0))
    }

    /// Whether [`Core::read`] would not wait.
    pub(super) fn is_readable(&mut self, key: Key) -> bool {
        self.connections
            .get_mut(&key)
            .is_none_or(|connection| connection.has_unread() || connection.end_of_data().is_some())
    }

    /// Whether [`Core::write`] would not wait.
    pub(super) fn is_writable(&self, key: Key) -> bool {
        self.connections.get(&key).is_none_or(|connection| {
            let is_shut =
                connection.said & shutdown::SEND != 0 || connection.heard & shutdown::RECEIVE != 0;
            is_shut || connection.over.is_some() || connection.credit() > 0
        })
    }

    /// Takes a message; `None` where it would wait.
    pub(super) fn read_message(&mut self, key: Key) -> Option<io::Result<Message>> {
        let Some(connection) = self.connections.get_mut(&key) else {
            return Some(Err(io::ErrorKind::NotConnected.into()));
        };
        if connection.has_message() {
            let (bytes, record, tell) = connection.read_message(&mut self.driver);
            self.after_read(key, tell);
            return Some(Ok(Some((bytes, record))));
        }
        connection.end_of_data().map(|end| end.map(|()| None))
    }

    #[inline]
    fn after_read(&mut self, key: Key, tell: bool) {
        self.driver.refill();
        if tell {
            self.tell(key, Operation::CreditUpdate, 0);
        }
        let both = shutdown::BOTH;
        let ended = self.connections.get_mut(&key).filter(|connection| {
            connection.heard & both == both && connection.over.is_none() && !connection.has_unread()
        });
        if let Some(connection) = ended {
            connection.over = Some(Over::Clean);
            self.tell(key, Operation::Reset, 0);
        }
    }

    /// Writes from `sent` on and moves it; `None` where it would wait. With `end`, the last packet
    /// carries these flags, and nothing less than all is done.
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
            if connection.said & shutdown::SEND != 0 || connection.heard & shutdown::RECEIVE != 0 {
                return Some(Err(io::ErrorKind::BrokenPipe.into()));
            }
            if let Some(over) = connection.over {
                return Some(Err(match over {
                    Over::Clean => io::ErrorKind::BrokenPipe,
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
            let told = connection.header(cid, Operation::Data);
            let header = Header {
                len: len as u32,
                flags: flags.unwrap_or(0),
                ..told
            };
            if !self.driver.try_send(&header, &rest[..len]) {
                break;
            }
            self.driver.flush();
            connection.has_sent(len);
            *sent += len;
            empty_message = false;
        }
        let done = *sent == bytes.len() && !empty_message;
        let enough = done || (end.is_none() && *sent > 0);
        let changed = &connection.changed;
        if !enough && has_credit && !self.want_room.iter().any(|it| Arc::ptr_eq(it, changed)) {
            self.want_room.push(Arc::clone(changed));
        }
        enough.then_some(Ok(()))
    }

    /// [`Core::write`] for a caller that does not wait for room, whatever came of it.
    pub(super) fn try_write(&mut self, key: Key, bytes: &[u8]) -> io::Result<usize> {
        let mut sent = 0;
        let written = self.write(key, bytes, &mut sent, None);
        // Nobody waits for it.
        if let Some(connection) = self.connections.get(&key) {
            let changed = &connection.changed;
            self.want_room.retain(|it| !Arc::ptr_eq(it, changed));
        }
        match written {
            Some(result) => result.map(|()| sent),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Ends one direction or both, for good.
    pub(super) fn shutdown(&mut self, key: Key, bits: u32) -> io::Result<()> {
        let connection = self.connections.get_mut(&key);
        let connection = connection.ok_or(io::ErrorKind::NotConnected)?;
        if connection.over.is_some() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if connection.said & bits != bits {
            connection.said |= bits;
            let said = connection.said;
            connection.changed.notify_all();
            self.tell(key, Operation::Shutdown, said);
        }
        Ok(())
    }

    /// Lets go of a connection; Linux closes it in its own time.
    pub(super) fn release(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        connection.released = true;
        connection.discard(&mut self.driver);
        let (over, heard) = (connection.over, connection.heard);
        if over.is_none() && heard & shutdown::BOTH == shutdown::BOTH {
            self.tell(key, Operation::Reset, 0);
        }
        if over.is_some() || heard & shutdown::BOTH == shutdown::BOTH {
            self.connections.remove(&key);
        } else {
            let _ = self.shutdown(key, shutdown::BOTH);
            self.closing
                .push_back((Instant::now() + CLOSE_TIMEOUT, key));
        }
        self.driver.refill();
    }

    /// Ends a connection without more ado.
    pub(super) fn reset(&mut self, key: Key) {
        self.tell(key, Operation::Reset, 0);
        if let Some(mut connection) = self.connections.remove(&key) {
            connection.discard(&mut self.driver);
        }
        self.driver.refill();
    }

    /// The guest begins anew: nothing that was is.
    pub(super) fn forget(&mut self) {
        for connection in self.connections.values_mut() {
            connection.forget();
            connection.over = Some(Over::Restarted);
            connection.changed.notify_all();
        }
        self.connections
            .retain(|_, connection| !connection.released);
        for listener in self.listeners.values_mut() {
            listener.queue.clear();
        }
        self.waiting.clear();
        self.closing.clear();
    }
}

impl Connection {
    /// What a reader finds who finds no data; `None` where more may come.
    fn end_of_data(&self) -> Option<io::Result<()>> {
        if self.heard & shutdown::SEND != 0 || self.said & shutdown::RECEIVE != 0 {
            return Some(Ok(()));
        }
        match self.over? {
            Over::Clean => Some(Ok(())),
            _ => Some(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

/// The flags of a message's last packet.
pub(super) fn message_end(record: bool) -> u32 {
    message::END | if record { message::RECORD } else { 0 }
}
