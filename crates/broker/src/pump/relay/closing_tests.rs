//! What one end of a relayed connection sees of the other one's close: every kind of end with every other, and every
//! way to close, wherever the broker takes its turns between the steps of it.

use std::os::fd::OwnedFd;

use hvsock_endpoint::{ClientMessage, MAX_MESSAGE};
use hvsock_sys::{message, seqpacket, set_nonblocking};

use super::*;

/// What an end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A process that announces the end of its data.
    Descriptor,
    /// A raw fd, or an attached socket.
    Raw,
    /// The same, of a process that has closed its control connection.
    RawAlone,
    /// A program of the text protocol, or one behind the socket of a VM.
    Plain,
    /// The socket of a guest's link.
    Guest,
}

const KINDS: [Kind; 5] = [
    Kind::Descriptor,
    Kind::Raw,
    Kind::RawAlone,
    Kind::Plain,
    Kind::Guest,
];

/// A step of the end that closes, or of its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The peer writes 100 bytes.
    PeerWrites,
    /// The end reads what is there.
    Reads,
    /// It writes 10 bytes.
    Writes,
    /// It announces the end of its data, if its kind does that.
    Announces,
    EndsData,
    StopsReading,
    ClosesData,
    ClosesControl,
}

use Step::{
    Announces, ClosesControl, ClosesData, EndsData, PeerWrites, Reads, StopsReading, Writes,
};

/// What a process or a guest has.
struct End {
    data: Option<OwnedFd>,
    control: Option<OwnedFd>,
}

struct World {
    relay: Relay,
    buffers: Buffers,
    counters: ByteCounters,
    /// The end that closes, then its peer.
    ends: [End; 2],
    /// The side of the end that closes.
    side: usize,
    is_over: bool,
}

/// What the peer has seen at the end.
#[derive(Debug, Default)]
struct Seen {
    bytes: usize,
    /// `s`: SHUTDOWN, `r`: RESET, in order.
    messages: String,
    /// The kernel's error at the end of the data.
    error: Option<ErrorKind>,
    /// The data has ended.
    ended: bool,
    /// A write fails.
    is_broken: bool,
}

fn end(kind: Kind) -> (RelayEnd, End) {
    let (own, theirs) = stream::pair().unwrap();
    let (control, their_control) = seqpacket::pair().unwrap();
    for fd in [&own, &theirs, &control, &their_control] {
        set_nonblocking(fd, true).unwrap();
    }
    let their_control = Some(their_control);
    let (end, control) = match kind {
        Kind::Descriptor => (RelayEnd::new(control, own, false), their_control),
        Kind::Raw => (RelayEnd::attached(control, own), their_control),
        Kind::RawAlone => (RelayEnd::attached(control, own), None),
        Kind::Plain => (RelayEnd::plain(own), None),
        Kind::Guest => (RelayEnd::of_guest(own, true), None),
    };
    let data = Some(theirs);
    (end, End { data, control })
}

impl World {
    fn new(closes: Kind, peer: Kind, side: usize) -> Self {
        let ((own, closing), (other, peer)) = (end(closes), end(peer));
        let relay = match side {
            0 => Relay::new(own, other),
            _ => Relay::new(other, own),
        };
        Self {
            relay,
            buffers: Buffers::new(),
            counters: ByteCounters::default(),
            ends: [closing, peer],
            side,
            is_over: false,
        }
    }

    fn step(&mut self, step: Step, kind: Kind) {
        let [end, peer] = &mut self.ends;
        match step {
            // It fails once the broker has shut the direction down.
            PeerWrites => drop(peer.data.as_ref().map(|fd| stream::send(fd, &[1; 100]))),
            Reads => {
                let data = end.data.as_ref().unwrap();
                while stream::recv(data, &mut [0; 64]).is_ok_and(|count| count > 0) {}
            }
            Writes => drop(end.data.as_ref().map(|fd| stream::send(fd, &[2; 10]))),
            Announces => {
                if kind == Kind::Descriptor {
                    let mut bytes = Vec::new();
                    ClientMessage::Shutdown.encode(&mut bytes);
                    message::send(end.control.as_ref().unwrap(), &bytes, &[]).unwrap();
                }
            }
            EndsData => {
                stream::shutdown(end.data.as_ref().unwrap(), Shutdown::Write).unwrap();
            }
            StopsReading => {
                stream::shutdown(end.data.as_ref().unwrap(), Shutdown::Read).unwrap();
            }
            ClosesData => drop(end.data.take()),
            ClosesControl => drop(end.control.take()),
        }
    }

    /// The broker handles all events, until there are none.
    fn turns(&mut self) {
        for _ in 0..8 {
            if self.is_over {
                return;
            }
            for end in &mut self.relay.ends {
                (end.readable, end.writable) = (true, true);
                end.hung_up = stream::is_hung_up(&end.data);
                if let Some(control) = &mut end.control {
                    control.readable = true;
                }
            }
            if let Turn::Closed(reason) = self.relay.turn(&mut self.buffers, &self.counters) {
                // As the set of connections does.
                let relay = std::mem::replace(
                    &mut self.relay,
                    Relay::new(end(Kind::Plain).0, end(Kind::Plain).0),
                );
                let connection = crate::pump::Connection::Relay(relay);
                if let Some(reason) = &reason {
                    connection.reset(reason);
                }
                self.is_over = true;
            }
        }
    }

    /// What the peer sees by now.
    fn look(&self, seen: &mut Seen) {
        let peer = &self.ends[1];
        let data = peer.data.as_ref().unwrap();
        let mut buffer = [0; 64];
        while !seen.ended {
            match stream::recv(data, &mut buffer) {
                Ok(0) => seen.ended = true,
                Ok(count) => seen.bytes += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => (seen.ended, seen.error) = (true, Some(error.kind())),
            }
        }
        let Some(control) = &peer.control else { return };
        let mut bytes = [0; MAX_MESSAGE];
        loop {
            match message::recv(control, &mut bytes) {
                Ok(received) if received.len > 0 => {
                    match BrokerMessage::decode(&bytes[..received.len]).unwrap() {
                        BrokerMessage::Shutdown => seen.messages.push('s'),
                        BrokerMessage::Reset(_) => seen.messages.push('r'),
                        other => panic!("{other:?}"),
                    }
                }
                // What was sent before is behind it.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                _ => return,
            }
        }
    }
}

/// Runs the steps, with turns of the broker after those whose bit is set, for each kind of end and of peer.
fn check(steps: &[Step], verdict: impl Fn(Kind, Kind, &Seen) -> bool) {
    for closes in KINDS {
        for peer in KINDS {
            for side in 0..2 {
                for turns in 0..1u32 << steps.len() {
                    let mut world = World::new(closes, peer, side);
                    let mut seen = Seen::default();
                    for (at, step) in steps.iter().enumerate() {
                        // There is nothing to read before the broker has moved it.
                        if *step == Reads {
                            world.turns();
                        }
                        world.step(*step, closes);
                        if turns >> at & 1 == 1 {
                            world.turns();
                            world.look(&mut seen);
                        }
                    }
                    world.turns();
                    world.look(&mut seen);
                    let data = world.ends[1].data.as_ref().unwrap();
                    seen.is_broken = stream::send(data, b"?").is_err();
                    assert!(
                        verdict(closes, peer, &seen),
                        "{closes:?} to {peer:?}, client closes: {}, turns {turns:b}: {seen:?}",
                        world.side == 0
                    );
                }
            }
        }
    }
}

fn has_messages(kind: Kind) -> bool {
    matches!(kind, Kind::Descriptor | Kind::Raw)
}

/// The messages, of a peer that gets any, are one of these.
fn is_told(peer: Kind, seen: &Seen, messages: &[&str]) -> bool {
    !has_messages(peer) || messages.contains(&seen.messages.as_str())
}

#[test]
fn a_close_with_bytes_unread_is_a_reset_and_no_clean_end_before_it() {
    let closes = [Announces, ClosesData, ClosesControl];
    let steps = [&[PeerWrites, Writes], &closes[..]].concat();
    check(&steps, |_, peer, seen| {
        seen.bytes == 10 && seen.ended && seen.is_broken && is_told(peer, seen, &["r"])
    });
}

#[test]
fn a_close_after_all_bytes_were_read_is_a_clean_end() {
    let closes = [Announces, ClosesData, ClosesControl];
    let steps = [&[PeerWrites, Reads, Writes], &closes[..]].concat();
    check(&steps, |_, peer, seen| {
        let is_clean = seen.ended && seen.error.is_none() && seen.is_broken;
        seen.bytes == 10 && is_clean && is_told(peer, seen, &["s"])
    });
}

#[test]
fn a_close_with_bytes_unread_after_a_half_close_is_a_reset_after_the_clean_end() {
    let closes = [Announces, EndsData, ClosesData, ClosesControl];
    let steps = [&[PeerWrites, Writes], &closes[..]].concat();
    check(&steps, |_, peer, seen| {
        // Where the broker sees all at once, there is no clean end.
        let is_told = is_told(peer, seen, &["sr", "r"]);
        seen.bytes == 10 && seen.ended && seen.is_broken && is_told
    });
}

#[test]
fn a_half_close_and_then_a_clean_close_is_no_reset() {
    let closes = [Announces, EndsData, Reads, ClosesData, ClosesControl];
    let steps = [&[PeerWrites, Writes], &closes[..]].concat();
    check(&steps, |_, peer, seen| {
        let is_clean = seen.ended && seen.error.is_none() && seen.is_broken;
        seen.bytes == 10 && is_clean && is_told(peer, seen, &["s"])
    });
}

#[test]
fn an_end_that_stops_reading_breaks_the_writers_pipe_and_still_sends() {
    // `Reads` has the broker take its turns: an end that shuts both directions down at once is as one that closes.
    let steps = [StopsReading, PeerWrites, Reads, Writes, Announces, EndsData];
    check(&steps, |closes, peer, seen| {
        let is_clean = seen.ended && seen.error.is_none() && seen.is_broken;
        // The socket alone shows no difference between that and a close.
        let told: &[&str] = match closes {
            Kind::Descriptor => &["s"],
            _ => &["s", "sr"],
        };
        seen.bytes == 10 && is_clean && is_told(peer, seen, told)
    });
    // What it has not taken is an error for the writer in every case: of its next write, or of the connection when the
    // end closes.
    let closes = [Announces, EndsData, ClosesData, ClosesControl];
    let steps = [&[StopsReading, PeerWrites, Writes], &closes[..]].concat();
    check(&steps, |_, peer, seen| {
        seen.bytes == 10 && seen.is_broken && is_told(peer, seen, &["sr", "r", "s"])
    });
}

#[test]
fn a_process_that_is_killed_is_a_reset_after_all_its_data() {
    let steps = [PeerWrites, Reads, Writes, ClosesData, ClosesControl];
    check(&steps, |closes, peer, seen| {
        // Of the others the end of file is all that there is.
        let told = match closes {
            Kind::Descriptor => "r",
            _ => "s",
        };
        seen.bytes == 10 && seen.is_broken && is_told(peer, seen, &[told])
    });
}

#[test]
fn a_peer_without_messages_gets_the_kernels_reset_if_its_bytes_are_unread_in_the_broker() {
    let steps = [PeerWrites, Writes, Announces, ClosesData, ClosesControl];
    for closes in KINDS {
        for peer in [Kind::RawAlone, Kind::Plain, Kind::Guest] {
            let mut world = World::new(closes, peer, 1);
            let mut seen = Seen::default();
            for step in steps {
                world.step(step, closes);
            }
            world.turns();
            world.look(&mut seen);
            assert_eq!(seen.error, Some(ErrorKind::ConnectionReset), "{closes:?}");
        }
    }
}
