//! Guest and device, joined by short queues, under virtual time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hvsock_virtio::{Cid, Config, GuestCid, Key, SocketKind, shutdown};

use crate::device::Device;
use crate::flows::{Direction, Flows, Packet};
use crate::guest::{self, Guest, State};

#[derive(Clone, Debug)]
pub struct Setup {
    /// First value of the credit counters.
    pub first_count: u32,
    /// Bytes of data in each of the guest's rx buffers.
    pub buffer_len: usize,
    /// Buffers in the rx queue.
    pub rx: usize,
    /// Packets in the tx queue.
    pub tx: usize,
    pub max_connections: usize,
    pub max_replies: usize,
}

#[derive(Debug)]
pub struct Pair {
    pub guest: Guest,
    pub device: Device,
    pub flows: Flows,
    pub now: Instant,
    pub setup: Setup,
    rx: VecDeque<Packet>,
    tx: VecDeque<Packet>,
    next_port: u32,
}

impl Pair {
    pub fn new(setup: Setup) -> Self {
        let config = Config {
            max_connections: setup.max_connections,
            max_replies: setup.max_replies,
            ..Config::new(GuestCid::try_from(guest::CID).expect("a guest's CID"))
        };
        let now = Instant::now();
        Self {
            guest: Guest::new(setup.first_count),
            device: Device::new(config, setup.first_count, now),
            flows: Flows::default(),
            now,
            setup,
            rx: VecDeque::new(),
            tx: VecDeque::new(),
            next_port: 1024,
        }
    }

    /// A program in the guest connects, from a port that may have been used before.
    pub fn connect_from_guest(&mut self, kind: SocketKind, port: u32) -> usize {
        let flow = self.flows.add(kind);
        let name = (port, Cid::HOST.0, 5000, kind as u16);
        if !self.guest.connect(self.now, flow, name) {
            self.flows.abort(flow);
        }
        flow
    }

    pub fn connect_from_device(&mut self, kind: SocketKind) -> usize {
        let flow = self.flows.add(kind);
        self.next_port += 1;
        let key = Key {
            guest_port: 22,
            peer: Cid::HOST,
            peer_port: self.next_port,
            kind,
        };
        let timeout = Duration::from_secs(2);
        if !self.device.connect(self.now, flow, key, timeout) {
            self.flows.abort(flow);
        }
        flow
    }

    /// The device takes packets of the tx queue and fills buffers of the rx queue. Returns whether it did
    /// anything.
    pub fn poll_device(&mut self, packets: usize) -> bool {
        let mut is_busy = false;
        for _ in 0..packets {
            if !self.device.muxer.may_receive() {
                break;
            }
            let Some(packet) = self.tx.pop_front() else {
                break;
            };
            self.device.receive(self.now, &mut self.flows, &packet);
            is_busy = true;
        }
        while self.rx.len() < self.setup.rx {
            let Some(packet) = self.device.transmit(self.now, self.setup.buffer_len) else {
                assert!(
                    !self.device.muxer.has_transmit(),
                    "has_transmit without a packet"
                );
                break;
            };
            assert!(packet.payload.len() <= self.setup.buffer_len);
            self.rx.push_back(packet);
            is_busy = true;
        }
        self.flush_guest();
        is_busy
    }

    /// The guest takes buffers of the rx queue.
    pub fn poll_guest(&mut self, packets: usize) -> bool {
        let mut is_busy = false;
        for _ in 0..packets {
            let Some(packet) = self.rx.pop_front() else {
                break;
            };
            self.guest.receive(&mut self.flows, packet);
            is_busy = true;
        }
        self.flush_guest() || is_busy
    }

    fn flush_guest(&mut self) -> bool {
        let mut is_busy = false;
        while self.tx.len() < self.setup.tx {
            let Some(packet) = self.guest.outgoing.pop_front() else {
                break;
            };
            self.tx.push_back(packet);
            is_busy = true;
        }
        is_busy
    }

    pub fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(at) = self.next_timeout().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.handle_timeouts();
        }
        self.now = until;
    }

    fn next_timeout(&self) -> Option<Instant> {
        let timeouts = [self.device.muxer.poll_timeout(), self.guest.next_timeout()];
        timeouts.into_iter().flatten().min()
    }

    fn handle_timeouts(&mut self) {
        self.device.handle_timeout(self.now, &mut self.flows);
        let next = self.device.muxer.poll_timeout();
        assert!(
            next.is_none_or(|at| at > self.now),
            "an expired timeout stays armed"
        );
        self.guest.handle_timeout(self.now, &mut self.flows);
    }

    /// The guest's program reads, and notes the end of the data.
    pub fn read_at_guest(&mut self, flow: usize, limit: usize) -> usize {
        if !self.guest.sockets.contains_key(&flow) {
            return 0;
        }
        let read = self.guest.read(&mut self.flows, flow, limit);
        let is_shut = |it: &guest::Socket| it.own_shut & shutdown::RECEIVE != 0;
        let may_end = self.guest.sockets.get(&flow).is_some_and(|it| !is_shut(it));
        let is_at_end = self.flows.all()[flow].to_guest.is_at_end;
        if may_end && !is_at_end && self.guest.is_at_end(flow) {
            self.flows.end(flow, Direction::ToGuest);
        }
        read
    }

    pub fn read_at_device(&mut self, flow: usize, limit: usize) -> usize {
        self.device.read(&mut self.flows, flow, limit)
    }

    /// Polls both sides and reads everything until nothing moves. No time passes, so no progress may
    /// depend on a timeout.
    pub fn settle(&mut self) {
        for _ in 0..1_000_000 {
            let mut is_busy = self.poll_device(usize::MAX);
            is_busy |= self.poll_guest(usize::MAX);
            let flows: Vec<usize> = self.guest.sockets.keys().copied().collect();
            for flow in flows {
                is_busy |= self.read_at_guest(flow, usize::MAX) > 0;
            }
            let flows: Vec<usize> = self.device.links.keys().copied().collect();
            for flow in flows {
                is_busy |= self.read_at_device(flow, usize::MAX) > 0;
            }
            if !is_busy && self.rx.is_empty() && self.tx.is_empty() {
                return;
            }
        }
        panic!("packets keep moving");
    }

    /// After [`settle`](Self::settle): all data was read, except on aborted flows.
    pub fn assert_all_is_read(&self) {
        for flow in self.flows.all().iter().filter(|flow| !flow.is_aborted) {
            for direction in [Direction::ToDevice, Direction::ToGuest] {
                let all = self.flows.is_all_read(flow.number, direction);
                assert!(
                    all,
                    "{direction:?}: {flow:?}\n{:?}",
                    self.device.links.get(&flow.number)
                );
            }
        }
        let links = self.device.links.values();
        for link in links.filter(|it| it.is_open && !it.guest_reads_no_more) {
            let established = self.guest.sockets.get(&link.flow);
            if established.is_some_and(|it| it.state == State::Established) {
                assert!(link.is_drained(), "{link:?}");
                let is_blocked = self.guest.is_blocked(link.flow);
                assert!(
                    !is_blocked || link.has_shut_read || link.is_closing,
                    "{link:?}"
                );
            }
        }
    }

    /// Closes every connection from a random side, and asserts that nothing is left.
    pub fn end(&mut self, mut by_guest: impl FnMut() -> bool) {
        let flows: Vec<usize> = self.flows.all().iter().map(|flow| flow.number).collect();
        self.guest.accepts = false;
        for flow in flows {
            while let Some(at) = self.device.requests.iter().position(|it| it.0 == flow) {
                self.device.answer(&mut self.flows, at, false);
            }
            if by_guest() {
                self.guest.close(self.now, &mut self.flows, flow);
            } else {
                self.device.close(self.now, &mut self.flows, flow);
            }
        }
        self.settle();
        self.assert_all_is_read();
        let left: Vec<usize> = self.guest.sockets.keys().copied().collect();
        for flow in left {
            self.guest.close(self.now, &mut self.flows, flow);
        }
        self.settle();
        // No close waited for a timeout.
        assert!(self.guest.sockets.is_empty(), "{:?}", self.guest.sockets);
        assert!(self.device.links.is_empty(), "{:?}", self.device.links);
        assert_eq!(self.device.muxer.connections(), 0);
        assert_eq!(self.device.muxer.poll_timeout(), None);
        assert!(!self.device.muxer.has_transmit());
        assert_eq!(self.device.muxer.poll_event(), None);
    }
}
