//! Tests of the broker's decisions about ring connections. Each test holds both processes' ends, sets
//! readiness by hand, and checks the broker's messages.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use hvsock_endpoint::{BrokerMessage, ClientMessage, MAX_MESSAGE, SocketOption};
use hvsock_fabric::{ConnectionEnd as Which, Refusal};
use hvsock_ring::{Monitor, Parts, RingEnd, RingError, RingSide, RingSize};
use hvsock_sys::{message, seqpacket, set_nonblocking};

use super::Connection;
use super::buffers::Buffers;
use super::turn::Turn;
use crate::data_path::ByteCounters;

/// One process: its control connection and its end of the ring.
struct Process {
    control: Option<OwnedFd>,
    end: Option<RingEnd>,
}

impl Process {
    fn send(&self, message: &ClientMessage) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        message::send(self.control.as_ref().unwrap(), &bytes, &[]).unwrap();
    }

    /// The next message of the broker, without waiting.
    fn receive(&self) -> Option<BrokerMessage> {
        let mut bytes = [0; MAX_MESSAGE];
        let received = message::recv(self.control.as_ref().unwrap(), &mut bytes).ok()?;
        (received.len > 0).then(|| BrokerMessage::decode(&bytes[..received.len]).unwrap())
    }

    fn end(&self) -> &RingEnd {
        self.end.as_ref().unwrap()
    }

    /// Closes cleanly, as a program does.
    fn close(&mut self) {
        self.end().shutdown_write();
        self.die();
    }

    /// Ends without a write shutdown, as a killed process does.
    fn die(&mut self) {
        self.end = None;
        self.control = None;
    }
}

struct Scene {
    connection: Connection,
    counters: ByteCounters,
    first: Process,
    second: Process,
    /// The shared memory, for tests that overwrite its control words.
    memory: std::fs::File,
}

impl Scene {
    fn new() -> Self {
        let Parts {
            memory,
            first,
            second,
        } = Parts::new(RingSize::MIN).unwrap();
        let monitor = Arc::new(Monitor::new(&memory).unwrap());
        let mut controls = Vec::new();
        let [second, first] =
            [(RingSide::Second, second), (RingSide::First, first)].map(|(side, doorbells)| {
                let (own, theirs) = seqpacket::pair().unwrap();
                set_nonblocking(&own, true).unwrap();
                controls.push(own);
                Process {
                    control: Some(theirs),
                    end: Some(RingEnd::open(side, &memory, doorbells).unwrap()),
                }
            });
        let controls = [(); 2].map(|()| controls.pop().unwrap().into());
        Self {
            connection: Connection::ring(
                controls,
                memory.try_clone().unwrap(),
                Arc::clone(&monitor),
            ),
            counters: ByteCounters::of_ring(monitor),
            first,
            second,
            memory: std::fs::File::from(memory),
        }
    }

    /// Runs one turn that reads both control connections.
    fn turn(&mut self) -> Turn {
        let Connection::Ring(ring) = &mut self.connection else {
            unreachable!();
        };
        for control in &mut ring.controls {
            control.readable = true;
        }
        self.connection.turn(&mut Buffers::new(), &self.counters)
    }

    #[track_caller]
    fn stays_open(&mut self) {
        let turn = self.turn();
        assert!(matches!(turn, Turn::Waiting), "{turn:?}");
    }

    /// Runs a turn that must close the connection, as the set would.
    #[track_caller]
    fn closes(&mut self) -> Option<Refusal> {
        match self.turn() {
            Turn::Closed(reason) => {
                if let Some(refusal) = &reason {
                    self.connection.reset(refusal);
                }
                reason
            }
            turn => panic!("{turn:?}"),
        }
    }

    #[track_caller]
    fn resets_because(&mut self, text: &str) {
        let reason = self.closes();
        assert!(
            matches!(&reason, Some(Refusal::Reset { cause }) if cause.contains(text)),
            "{reason:?}"
        );
    }

    fn word(&self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        self.memory.read_exact_at(&mut bytes, at).unwrap();
        u32::from_le_bytes(bytes)
    }
}

#[track_caller]
fn receives_reset(process: &Process, text: &str) {
    match process.receive() {
        Some(BrokerMessage::Reset(refused)) => assert!(refused.detail.contains(text)),
        other => panic!("{other:?}"),
    }
}

/// Reads all data, until the end or an error.
fn read_all(end: &RingEnd) -> (Vec<u8>, RingError) {
    let (mut all, mut buffer) = (Vec::new(), [0; 100]);
    loop {
        match end.try_read(&mut buffer) {
            Ok(count) => all.extend_from_slice(&buffer[..count]),
            Err(stop) => return (all, stop),
        }
    }
}

#[test]
fn a_clean_close_is_announced_and_the_peer_stays_open() {
    let mut scene = Scene::new();
    scene.first.end().try_write(b"all of it").unwrap();
    scene.stays_open();
    scene.first.close();
    scene.stays_open();
    assert_eq!(scene.second.receive(), Some(BrokerMessage::Shutdown));
    assert_eq!(scene.second.receive(), None);
    let read = read_all(scene.second.end());
    assert_eq!(read, (b"all of it".to_vec(), RingError::EndOfStream));
    assert_eq!(
        scene.second.end().try_write(b"?"),
        Err(RingError::PeerClosed)
    );
    // The second end may stay open for any time.
    scene.stays_open();
    scene.second.close();
    assert_eq!(scene.closes(), None);
}

#[test]
fn a_half_close_does_not_involve_the_broker() {
    let mut scene = Scene::new();
    scene.second.end().shutdown_write();
    scene.stays_open();
    assert_eq!(scene.first.receive(), None);
    assert_eq!(read_all(scene.first.end()).1, RingError::EndOfStream);
    scene.first.end().try_write(b"still here").unwrap();
    assert_eq!(read_all(scene.second.end()).0, b"still here");
}

#[test]
fn a_death_resets_the_peer_after_all_bytes() {
    for first_dies in [true, false] {
        let mut scene = Scene::new();
        let (gone, left) = match first_dies {
            true => (&mut scene.first, &scene.second),
            false => (&mut scene.second, &scene.first),
        };
        gone.end().try_write(b"last words").unwrap();
        gone.die();
        assert_eq!(left.receive(), None);
        scene.resets_because("without closing");
        let left = if first_dies {
            &scene.second
        } else {
            &scene.first
        };
        receives_reset(left, "without closing");
        let read = read_all(left.end());
        assert_eq!(read, (b"last words".to_vec(), RingError::Reset));
    }
}

#[test]
fn closing_with_unread_data_resets_the_writer() {
    let mut scene = Scene::new();
    scene.second.end().try_write(b"unread").unwrap();
    scene.first.close();
    scene.resets_because("without reading");
    receives_reset(&scene.second, "without reading");
    assert_eq!(scene.second.end().try_write(b"more"), Err(RingError::Reset));
}

/// No process is left that could see a reset.
#[test]
fn both_ends_may_close_with_unread_data() {
    let mut scene = Scene::new();
    scene.first.end().try_write(b"unread").unwrap();
    scene.second.end().try_write(b"as well").unwrap();
    scene.first.close();
    scene.second.close();
    assert_eq!(scene.closes(), None);

    let mut scene = Scene::new();
    scene.first.end().try_write(b"unread").unwrap();
    scene.first.close();
    scene.stays_open();
    scene.second.close();
    assert_eq!(scene.closes(), None);

    // A death is still reported, for the operator.
    let mut scene = Scene::new();
    scene.first.close();
    scene.second.die();
    scene.resets_because("without closing");
}

#[test]
fn a_reset_is_visible_only_after_its_reason_was_sent() {
    for _ in 0..1000 {
        let scene = Scene::new();
        let (first, second) = (&scene.first, &scene.second);
        let both_run = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            let watching = scope.spawn(|| {
                both_run.wait();
                while scene.word(0) & 1 == 0 {
                    std::hint::spin_loop();
                }
                [first, second].map(|process| receives_reset(process, "operator"))
            });
            both_run.wait();
            // The watching thread is reading the word by then, most times.
            for _ in 0..200 {
                std::hint::spin_loop();
            }
            let cause = "an operator closed it".into();
            scene.connection.reset(&Refusal::Reset { cause });
            watching.join().unwrap();
        });
        for process in [first, second] {
            assert_eq!(read_all(process.end()), (Vec::new(), RingError::Reset));
        }
    }
}

#[test]
fn a_suspended_connection_moves_no_data_until_it_is_resumed() {
    let mut scene = Scene::new();
    scene.first.end().try_write(b"suspended").unwrap();
    scene.connection.suspend(true);
    scene.stays_open();
    for process in [&scene.first, &scene.second] {
        let message = process.receive();
        assert_eq!(message, Some(BrokerMessage::Suspended { on: true }));
    }
    assert_eq!(
        read_all(scene.second.end()),
        (Vec::new(), RingError::WouldBlock)
    );
    // The broker never waits for a process that does not read its messages.
    for on in [true, false].repeat(2000) {
        scene.connection.suspend(on);
    }
    let last = std::iter::from_fn(|| scene.second.receive()).last();
    assert!(matches!(last, Some(BrokerMessage::Suspended { .. })));
    let read = read_all(scene.second.end());
    assert_eq!(read, (b"suspended".to_vec(), RingError::WouldBlock));
}

#[test]
fn a_suspended_connection_reports_a_peers_end_after_the_resume() {
    let mut scene = Scene::new();
    scene.first.end().try_write(b"before the pause").unwrap();
    scene.connection.suspend(true);
    scene.first.close();
    scene.stays_open();
    scene.connection.suspend(false);
    scene.stays_open();
    let messages: Vec<_> = std::iter::from_fn(|| scene.second.receive()).collect();
    let want = [
        BrokerMessage::Suspended { on: true },
        BrokerMessage::Suspended { on: false },
        BrokerMessage::Shutdown,
    ];
    assert_eq!(messages, want);
    let read = read_all(scene.second.end());
    assert_eq!(read, (b"before the pause".to_vec(), RingError::EndOfStream));

    let mut scene = Scene::new();
    scene.connection.suspend(true);
    scene.second.die();
    scene.stays_open();
    assert_eq!(read_all(scene.first.end()).1, RingError::WouldBlock);
    scene.connection.suspend(false);
    scene.resets_because("without closing");
    assert_eq!(read_all(scene.first.end()).1, RingError::Reset);
}

#[test]
fn options_are_reported_and_an_announcement_has_no_effect() {
    let mut scene = Scene::new();
    let set = |option, value| ClientMessage::SetOption { option, value };
    scene.first.send(&ClientMessage::Shutdown);
    scene.first.send(&set(SocketOption::RingSize, 1 << 20));
    scene.second.send(&set(SocketOption::ConnectedSuspend, 9));
    scene.stays_open();
    assert_eq!(scene.connection.take_option(), Some((Which::Server, true)));
    assert_eq!(scene.connection.take_option(), None);
    // The announcement does not make the death a clean end.
    scene.first.die();
    scene.resets_because("without closing");
}

#[test]
fn a_protocol_violation_resets_both_ends() {
    let mut scene = Scene::new();
    message::send(scene.first.control.as_ref().unwrap(), b"GET /", &[]).unwrap();
    scene.resets_because("protocol");
    receives_reset(&scene.first, "protocol");
    receives_reset(&scene.second, "protocol");

    let mut scene = Scene::new();
    scene
        .second
        .send(&ClientMessage::Accepted { connection: 7 });
    scene.resets_because("unexpected");

    let mut scene = Scene::new();
    let mut bytes = Vec::new();
    ClientMessage::Shutdown.encode(&mut bytes);
    let control = scene.first.control.as_ref().unwrap();
    message::send(control, &bytes, &[control.as_fd()]).unwrap();
    scene.resets_because("descriptors");
}

/// A bounded turn keeps a flood of messages from starving other connections.
#[test]
fn many_messages_of_one_process_are_read_over_several_turns() {
    let mut scene = Scene::new();
    for value in 0..40 {
        let option = SocketOption::ConnectedSuspend;
        scene
            .first
            .send(&ClientMessage::SetOption { option, value });
    }
    assert!(matches!(scene.turn(), Turn::Again));
    assert!(matches!(scene.turn(), Turn::Again));
    scene.stays_open();
}

#[test]
fn published_byte_counts_are_reported_and_never_decrease() {
    let scene = Scene::new();
    let counted = || (scene.counters.sent(), scene.counters.received());
    assert_eq!(counted(), (0, 0));
    scene.first.end().try_write(&[1; 700]).unwrap();
    scene.second.end().try_write(&[1; 30]).unwrap();
    assert_eq!(counted(), (700, 30));
    read_all(scene.second.end());
    scene.first.end().try_write(&[1; 4000]).unwrap();
    assert_eq!(counted(), (4700, 30));
    // The head index of the first end's ring, which any process with the memory can overwrite.
    let publish = |head: u64| scene.memory.write_all_at(&head.to_le_bytes(), 128).unwrap();
    publish(12);
    assert_eq!(counted(), (4700, 30));
    publish(1 << 62);
    assert_eq!(counted(), (1 << 62, 30));
    // Counts are modulo 2^64: more than half of that ahead is behind.
    for behind in [0, u64::MAX] {
        publish(behind);
        assert_eq!(counted(), (1 << 62, 30));
    }
}
