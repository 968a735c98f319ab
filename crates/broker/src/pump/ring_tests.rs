//! What the broker decides about connections whose ends share memory, in this process's hands: it
//! is told what came, and what it says is looked at.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use hvsock_endpoint::{BrokerMessage, ClientMessage, MAX_MESSAGE, SocketOption};
use hvsock_fabric::{End as Which, Refusal};
use hvsock_ring::{End, Monitor, Parts, RingSize, Side, Stop};
use hvsock_sys::{message, seqpacket, set_nonblocking};

use super::connection::Turn;
use super::{Connection, Counters};

/// One process: its control connection and its end of the ring.
struct Process {
    control: Option<OwnedFd>,
    end: Option<End>,
}

impl Process {
    fn say(&self, said: &ClientMessage) {
        let mut bytes = Vec::new();
        said.encode(&mut bytes);
        message::send(self.control.as_ref().unwrap(), &bytes, &[]).unwrap();
    }

    /// What the broker has said by now, which does not wait.
    fn hear(&self) -> Option<BrokerMessage> {
        let mut bytes = [0; MAX_MESSAGE];
        let received = message::recv(self.control.as_ref().unwrap(), &mut bytes).ok()?;
        (received.len > 0).then(|| BrokerMessage::decode(&bytes[..received.len]).unwrap())
    }

    fn end(&self) -> &End {
        self.end.as_ref().unwrap()
    }

    /// Ends as a program does that closes its connection.
    fn close(&mut self) {
        self.end().shutdown_write();
        self.vanish();
    }

    /// Ends without having said that it writes no more.
    fn vanish(&mut self) {
        self.end = None;
        self.control = None;
    }
}

struct Scene {
    connection: Connection,
    counters: Counters,
    first: Process,
    second: Process,
    /// The memory, for tests that write in it what they like.
    words: std::fs::File,
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
            [(Side::Second, second), (Side::First, first)].map(|(side, bells)| {
                let (own, theirs) = seqpacket::pair().unwrap();
                set_nonblocking(&own, true).unwrap();
                controls.push(own);
                Process {
                    control: Some(theirs),
                    end: Some(End::open(side, &memory, bells).unwrap()),
                }
            });
        let controls = [controls.pop().unwrap(), controls.pop().unwrap()];
        Self {
            connection: Connection::ring(controls, Arc::clone(&monitor)),
            counters: Counters::of_ring(monitor),
            first,
            second,
            words: std::fs::File::from(memory),
        }
    }

    /// One turn, in which both control connections are looked at.
    fn turn(&mut self) -> Turn {
        let Connection::Ring(ring) = &mut self.connection else {
            unreachable!();
        };
        for control in &mut ring.controls {
            control.readable = true;
        }
        self.connection.turn(&mut [], &self.counters)
    }

    #[track_caller]
    fn goes_on(&mut self) {
        let turn = self.turn();
        assert!(matches!(turn, Turn::Waiting), "{turn:?}");
    }

    /// Has a turn that ends the connection, as the set would.
    #[track_caller]
    fn ends(&mut self) -> Option<Refusal> {
        match self.turn() {
            Turn::Over(reason) => {
                if let Some(refusal) = &reason {
                    self.connection.reset(refusal);
                }
                reason
            }
            turn => panic!("{turn:?}"),
        }
    }

    #[track_caller]
    fn ends_because(&mut self, text: &str) {
        let reason = self.ends();
        assert!(
            matches!(&reason, Some(Refusal::Reset { cause }) if cause.contains(text)),
            "{reason:?}"
        );
    }

    fn word(&self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        self.words.read_exact_at(&mut bytes, at).unwrap();
        u32::from_le_bytes(bytes)
    }
}

#[track_caller]
fn hears_reset(process: &Process, text: &str) {
    match process.hear() {
        Some(BrokerMessage::Reset(refused)) => assert!(refused.detail.contains(text)),
        other => panic!("{other:?}"),
    }
}

/// Reads all, to the end of whatever kind.
fn read_all(end: &End) -> (Vec<u8>, Stop) {
    let (mut all, mut buffer) = (Vec::new(), [0; 100]);
    loop {
        match end.try_read(&mut buffer) {
            Ok(count) => all.extend_from_slice(&buffer[..count]),
            Err(stop) => return (all, stop),
        }
    }
}

#[test]
fn who_closes_well_is_announced_and_the_other_goes_on() {
    let mut scene = Scene::new();
    scene.first.end().try_write(b"all of it").unwrap();
    scene.goes_on();
    scene.first.close();
    scene.goes_on();
    assert_eq!(scene.second.hear(), Some(BrokerMessage::Shutdown));
    assert_eq!(scene.second.hear(), None);
    let said = read_all(scene.second.end());
    assert_eq!(said, (b"all of it".to_vec(), Stop::End));
    assert_eq!(scene.second.end().try_write(b"?"), Err(Stop::Closed));
    // It is there for as long as it likes.
    scene.goes_on();
    scene.second.close();
    assert_eq!(scene.ends(), None);
}

#[test]
fn a_half_close_is_between_the_ends() {
    let mut scene = Scene::new();
    scene.second.end().shutdown_write();
    scene.goes_on();
    assert_eq!(scene.first.hear(), None);
    assert_eq!(read_all(scene.first.end()).1, Stop::End);
    scene.first.end().try_write(b"still here").unwrap();
    assert_eq!(read_all(scene.second.end()).0, b"still here");
}

#[test]
fn who_ends_without_a_word_resets_the_other_after_all_bytes() {
    for first_goes in [true, false] {
        let mut scene = Scene::new();
        let (gone, left) = match first_goes {
            true => (&mut scene.first, &scene.second),
            false => (&mut scene.second, &scene.first),
        };
        gone.end().try_write(b"last words").unwrap();
        gone.vanish();
        assert_eq!(left.hear(), None);
        scene.ends_because("without closing");
        let left = if first_goes {
            &scene.second
        } else {
            &scene.first
        };
        hears_reset(left, "without closing");
        let said = read_all(left.end());
        assert_eq!(said, (b"last words".to_vec(), Stop::Cut));
    }
}

#[test]
fn who_closes_with_data_unread_resets_its_writer() {
    let mut scene = Scene::new();
    scene.second.end().try_write(b"unread").unwrap();
    scene.first.close();
    scene.ends_because("without reading");
    hears_reset(&scene.second, "without reading");
    assert_eq!(scene.second.end().try_write(b"more"), Err(Stop::Cut));
}

/// Nobody is left to whom it could matter.
#[test]
fn both_may_leave_at_once_and_leave_data_unread() {
    let mut scene = Scene::new();
    scene.first.end().try_write(b"unread").unwrap();
    scene.second.end().try_write(b"as well").unwrap();
    scene.first.close();
    scene.second.close();
    assert_eq!(scene.ends(), None);

    let mut scene = Scene::new();
    scene.first.end().try_write(b"unread").unwrap();
    scene.first.close();
    scene.goes_on();
    scene.second.close();
    assert_eq!(scene.ends(), None);

    // Only that an operator may want to know.
    let mut scene = Scene::new();
    scene.first.close();
    scene.second.vanish();
    scene.ends_because("without closing");
}

#[test]
fn a_cut_is_seen_by_nobody_before_its_reason() {
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
                [first, second].map(|process| hears_reset(process, "operator"))
            });
            both_run.wait();
            // The other one is looking by then, most times.
            for _ in 0..200 {
                std::hint::spin_loop();
            }
            let cause = "an operator cut it".into();
            scene.connection.reset(&Refusal::Reset { cause });
            watching.join().unwrap();
        });
        for process in [first, second] {
            assert_eq!(read_all(process.end()), (Vec::new(), Stop::Cut));
        }
    }
}

#[test]
fn a_connection_stands_still_and_moves_again() {
    let mut scene = Scene::new();
    scene.first.end().try_write(b"patience").unwrap();
    scene.connection.suspend(true);
    scene.goes_on();
    for process in [&scene.first, &scene.second] {
        let said = process.hear();
        assert_eq!(said, Some(BrokerMessage::Suspended { on: true }));
    }
    assert_eq!(read_all(scene.second.end()), (Vec::new(), Stop::WouldBlock));
    // Where nobody reads what it says, the broker waits for nobody.
    for on in [true, false].repeat(2000) {
        scene.connection.suspend(on);
    }
    let heard = std::iter::from_fn(|| scene.second.hear()).last();
    assert!(matches!(heard, Some(BrokerMessage::Suspended { .. })));
    let said = read_all(scene.second.end());
    assert_eq!(said, (b"patience".to_vec(), Stop::WouldBlock));
}

#[test]
fn one_that_stands_still_ends_when_it_moves_again() {
    let mut scene = Scene::new();
    scene.first.end().try_write(b"before the pause").unwrap();
    scene.connection.suspend(true);
    scene.first.close();
    scene.goes_on();
    scene.connection.suspend(false);
    scene.goes_on();
    let heard: Vec<_> = std::iter::from_fn(|| scene.second.hear()).collect();
    let want = [
        BrokerMessage::Suspended { on: true },
        BrokerMessage::Suspended { on: false },
        BrokerMessage::Shutdown,
    ];
    assert_eq!(heard, want);
    let said = read_all(scene.second.end());
    assert_eq!(said, (b"before the pause".to_vec(), Stop::End));

    let mut scene = Scene::new();
    scene.connection.suspend(true);
    scene.second.vanish();
    scene.goes_on();
    assert_eq!(read_all(scene.first.end()).1, Stop::WouldBlock);
    scene.connection.suspend(false);
    scene.ends_because("without closing");
    assert_eq!(read_all(scene.first.end()).1, Stop::Cut);
}

#[test]
fn options_are_taken_and_an_announcement_says_nothing() {
    let mut scene = Scene::new();
    let set = |option, value| ClientMessage::SetOption { option, value };
    scene.first.say(&ClientMessage::Shutdown);
    scene.first.say(&set(SocketOption::RingSize, 1 << 20));
    scene.second.say(&set(SocketOption::ConnectedSuspend, 9));
    scene.goes_on();
    assert_eq!(scene.connection.take_option(), Some((Which::Server, true)));
    assert_eq!(scene.connection.take_option(), None);
    // It has announced its end and has not ended.
    scene.first.vanish();
    scene.ends_because("without closing");
}

#[test]
fn who_breaks_the_protocol_resets_both() {
    let mut scene = Scene::new();
    message::send(scene.first.control.as_ref().unwrap(), b"GET /", &[]).unwrap();
    scene.ends_because("protocol");
    hears_reset(&scene.first, "protocol");
    hears_reset(&scene.second, "protocol");

    let mut scene = Scene::new();
    scene.second.say(&ClientMessage::Accepted { connection: 7 });
    scene.ends_because("no place here");

    let mut scene = Scene::new();
    let mut bytes = Vec::new();
    ClientMessage::Shutdown.encode(&mut bytes);
    let control = scene.first.control.as_ref().unwrap();
    message::send(control, &bytes, &[control.as_fd()]).unwrap();
    scene.ends_because("descriptors");
}

/// It has its turns with others, and they have theirs.
#[test]
fn a_process_that_never_stops_talking_is_heard_in_pieces() {
    let mut scene = Scene::new();
    for value in 0..40 {
        let option = SocketOption::ConnectedSuspend;
        scene.first.say(&ClientMessage::SetOption { option, value });
    }
    assert!(matches!(scene.turn(), Turn::Again));
    assert!(matches!(scene.turn(), Turn::Again));
    scene.goes_on();
}

#[test]
fn its_bytes_are_counted_as_the_ends_say_and_never_backwards() {
    let scene = Scene::new();
    let counted = || (scene.counters.sent(), scene.counters.received());
    assert_eq!(counted(), (0, 0));
    scene.first.end().try_write(&[1; 700]).unwrap();
    scene.second.end().try_write(&[1; 30]).unwrap();
    assert_eq!(counted(), (700, 30));
    read_all(scene.second.end());
    scene.first.end().try_write(&[1; 4000]).unwrap();
    assert_eq!(counted(), (4700, 30));
    // The head of what the first end writes, which anyone with the memory can change.
    let says = |head: u64| scene.words.write_all_at(&head.to_le_bytes(), 128).unwrap();
    says(12);
    assert_eq!(counted(), (4700, 30));
    says(u64::MAX);
    assert_eq!(counted(), (u64::MAX, 30));
    says(0);
    assert_eq!(counted(), (u64::MAX, 30));
}
