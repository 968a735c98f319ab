//! The loop of a data thread.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use hvsock_fabric::{ConnectionId, Refusal};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use super::connection::{Connection, Turn};
use super::{Adopted, Command, Counters, Report, Reports};

/// The token of the thread's waker.
pub(super) const WAKE: Token = Token(usize::MAX);

/// The tokens of one connection: for each side its data descriptor, then its control descriptor.
const TOKENS: usize = 4;

/// Bytes read at once. A Unix socket's default buffer holds some 200 KiB.
const SCRATCH: usize = 64 * 1024;
/// Bytes read at once while more than [`WAITING_LIMIT`] wait in memory for slow readers.
const SCRATCH_WHEN_FULL: usize = 4 * 1024;
/// Bytes that may wait in one thread's memory before it takes only small bites. With the small
/// ones, a thread holds at most this and 8 KiB a connection.
const WAITING_LIMIT: usize = 32 * 1024 * 1024;

struct Entry {
    id: ConnectionId,
    connection: Connection,
    counters: Arc<Counters>,
    queued: bool,
    /// Its share of [`Pump::waiting`].
    waiting: usize,
}

pub(super) struct Pump {
    poll: Poll,
    commands: Receiver<Command>,
    reports: Reports,
    entries: Slab<Entry>,
    by_id: HashMap<ConnectionId, usize>,
    /// Connections that may be able to move.
    ready: VecDeque<usize>,
    /// Bytes that wait in memory, over all connections.
    waiting: usize,
    scratch: Vec<u8>,
}

impl Pump {
    pub(super) fn new(poll: Poll, commands: Receiver<Command>, reports: Reports) -> Self {
        Self {
            poll,
            commands,
            reports,
            entries: Slab::new(),
            by_id: HashMap::new(),
            ready: VecDeque::new(),
            waiting: 0,
            scratch: vec![0; SCRATCH],
        }
    }

    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        loop {
            let timeout = if self.ready.is_empty() {
                None
            } else {
                Some(Duration::ZERO)
            };
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // epoll_wait fails otherwise only for a descriptor that is not an epoll.
                Err(_) => return,
            }
            for event in &events {
                if event.token() == WAKE {
                    if !self.obey() {
                        return;
                    }
                } else {
                    self.note(event);
                }
            }
            // As many turns as connections are ready now; then new events are looked for.
            for _ in 0..self.ready.len() {
                if let Some(index) = self.ready.pop_front() {
                    self.turn(index);
                }
            }
        }
    }

    /// Carries commands out; whether to go on.
    fn obey(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Adopt(adopted)) => self.adopt(*adopted),
                Ok(Command::Cut {
                    connection,
                    refusal,
                }) => {
                    if let Some(&index) = self.by_id.get(&connection) {
                        self.close(index, Some(refusal));
                    }
                }
                Ok(Command::Suspend {
                    connection,
                    suspended,
                }) => {
                    if let Some(&index) = self.by_id.get(&connection) {
                        self.entries[index].connection.suspend(suspended);
                        self.enqueue(index);
                    }
                }
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => {
                    let cause = "the broker has stopped".into();
                    let refusal = Refusal::Reset { cause };
                    self.entries
                        .iter()
                        .for_each(|(_, entry)| entry.connection.reset(&refusal));
                    return false;
                }
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    fn adopt(&mut self, adopted: Adopted) {
        let Adopted {
            connection: id,
            from,
            to,
            counters,
        } = adopted;
        let connection = Connection::new(from, to);
        let entry = Entry {
            id,
            connection,
            counters,
            queued: false,
            waiting: 0,
        };
        let index = self.entries.insert(entry);
        self.by_id.insert(id, index);
        match self.watch(index) {
            Ok(()) => self.enqueue(index),
            Err(error) => {
                let which = format!("descriptors watched by a data thread ({error})");
                self.close(index, Some(Refusal::LimitReached { which }));
            }
        }
    }

    fn watch(&self, index: usize) -> io::Result<()> {
        let registry = self.poll.registry();
        let both = Interest::READABLE | Interest::WRITABLE;
        for (side, token) in self.entries[index].connection.sides().iter().zip([0, 2]) {
            let token = index * TOKENS + token;
            registry.register(&mut SourceFd(&side.data.as_raw_fd()), Token(token), both)?;
            let control = side.control.as_raw_fd();
            registry.register(
                &mut SourceFd(&control),
                Token(token + 1),
                Interest::READABLE,
            )?;
        }
        Ok(())
    }

    /// Takes an event. One for a connection that ended in the same batch may meet its successor
    /// in the slab, which then merely tries once in vain.
    fn note(&mut self, event: &mio::event::Event) {
        let (index, which) = (event.token().0 / TOKENS, event.token().0 % TOKENS);
        let Some(entry) = self.entries.get_mut(index) else {
            return;
        };
        if which % 2 == 0 {
            entry.connection.data_ready(which / 2, event);
            self.enqueue(index);
            return;
        }
        match entry.connection.read_control(which / 2) {
            Ok(()) => self.enqueue(index),
            Err(refusal) => self.close(index, Some(refusal)),
        }
    }

    fn enqueue(&mut self, index: usize) {
        if let Some(entry) = self.entries.get_mut(index)
            && !entry.queued
        {
            entry.queued = true;
            self.ready.push_back(index);
        }
    }

    fn turn(&mut self, index: usize) {
        let Some(entry) = self.entries.get_mut(index) else {
            return;
        };
        entry.queued = false;
        let bite = if self.waiting > WAITING_LIMIT {
            SCRATCH_WHEN_FULL
        } else {
            SCRATCH
        };
        let turn = entry
            .connection
            .turn(&mut self.scratch[..bite], &entry.counters);
        let waiting = entry.connection.waiting();
        self.waiting = self.waiting - entry.waiting + waiting;
        entry.waiting = waiting;
        while let Some((end, value)) = entry.connection.take_option() {
            let connection = entry.id;
            self.reports.send(Report::ConnectedSuspend {
                connection,
                end,
                value,
            });
        }
        match turn {
            Turn::Waiting => {}
            Turn::Again => self.enqueue(index),
            Turn::Over(reason) => self.close(index, reason),
        }
    }

    fn close(&mut self, index: usize, reason: Option<Refusal>) {
        let Some(entry) = self.entries.try_remove(index) else {
            return;
        };
        self.by_id.remove(&entry.id);
        self.waiting -= entry.waiting;
        if let Some(refusal) = &reason {
            entry.connection.reset(refusal);
        }
        self.reports.send(Report::Closed {
            connection: entry.id,
            reason,
        });
    }
}
