//! Hostile guests that perform random operations, decoded from random bytes.

use std::io::{Read, Write};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use hvsock::{HvListener, HvStream};
use hvsock_testkit::guest::virtqueue::Descriptor;
use hvsock_testkit::guest::{Driver, Guest, GuestStream, HOST, Layout, Options};
use hvsock_testkit::world::{PORT, World};
use hvsock_virtio::{Header, features};

const HOSTILE_CID: u64 = 42;
const GOOD_CID: u64 = 77;
/// The most operations of one run.
const MAX_STEPS: usize = 200;

/// A broker with a working machine and a hostile one. All runs share it.
struct Fixture {
    world: World,
    // Accepts some of the hostile guest's requests.
    listener: HvListener,
    _good: Guest,
    inside: GuestStream,
    outside: HvStream,
}

impl Fixture {
    fn new() -> Self {
        let world = World::new();
        world.vm("bad", HOSTILE_CID, &[]);
        world.vm("good", GOOD_CID, &[]);
        world.register(PORT);
        let listener = world.listen();
        let good = world.guest_of("good", Options::new(GOOD_CID));
        let (inside, outside) = world.pair(&good, &listener);
        Self {
            world,
            listener,
            _good: good,
            inside,
            outside,
        }
    }

    fn check(&self) {
        let (mut inside, mut outside) = (&self.inside, &self.outside);
        let mut buffer = [0; 4];
        inside.write_all(b"ping").expect("the guest writes");
        outside.read_exact(&mut buffer).expect("the host reads");
        outside.write_all(&buffer).expect("the host writes");
        inside.read_exact(&mut buffer).expect("the guest reads");
        assert_eq!(&buffer, b"ping");
    }
}

/// The bytes that select the operations.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// A number that is small, near `edge`, large or random.
    fn number(&mut self, edge: u64) -> u64 {
        let any = |it: &mut Self| u64::from_le_bytes([(); 8].map(|()| it.byte()));
        match self.byte() % 8 {
            0..3 => u64::from(self.byte()),
            3 => edge.wrapping_sub(u64::from(self.byte())),
            4 => edge.wrapping_add(u64::from(self.byte())),
            5 => u64::from(self.word()),
            6 => u64::MAX - u64::from(self.byte()),
            _ => any(self),
        }
    }
}

/// Runs one script, then asserts that the other machine's connection still works.
pub fn run_script(script: &[u8]) {
    static FIXTURE: OnceLock<Mutex<Fixture>> = OnceLock::new();
    let fixture = FIXTURE.get_or_init(|| Mutex::new(Fixture::new()));
    let fixture = fixture.lock().unwrap_or_else(PoisonError::into_inner);
    let mut script = Script(script);
    let features = match script.byte() % 4 {
        0 => 0,
        1 => features::EVENT_IDX,
        2 => features::INDIRECT_DESC,
        _ => features::EVENT_IDX | features::INDIRECT_DESC,
    };
    let size = 1 << (2 + script.byte() % 6);
    let options = Options {
        queue_size: size,
        tx_slots: size,
        rx_buffer: 45 + usize::from(script.word() % 8000),
        hostile: true,
        timeout: Duration::from_millis(10),
        ..Options::new(HOSTILE_CID).without(features)
    };
    let path = fixture.world.socket("bad");
    let Ok(mut driver) = Driver::new(&path, options) else {
        return;
    };
    if driver.connect().is_err() {
        // The device has not noticed yet that the previous VMM has disconnected.
        return fixture.check();
    }
    let mut accepted = Vec::new();
    for _ in 0..MAX_STEPS {
        if script.0.is_empty() {
            break;
        }
        step(&mut script, &mut driver);
        if script.byte().is_multiple_of(4)
            && let Ok((stream, _)) = fixture.listener.accept_timeout(Duration::ZERO)
        {
            accepted.push(stream);
        }
        if script.byte().is_multiple_of(32) {
            accepted.clear();
        }
    }
    fixture.check();
}

fn step(script: &mut Script<'_>, driver: &mut Driver) {
    let edge = driver.memory().end();
    let tx = script.byte().is_multiple_of(2);
    match script.byte() % 12 {
        0..4 => {
            let header = header(script);
            let len = usize::from(script.word()) >> (script.byte() % 8);
            let layout = match script.byte() % 4 {
                0 => Layout::Together,
                1 => Layout::Apart,
                2 => Layout::Paged(1 + usize::from(script.word() % 5000)),
                _ => Layout::Split((0..8).map(|_| usize::from(script.byte())).collect()),
            };
            let _ = driver.send(&header, &vec![7; len], &layout);
        }
        4 => driver.refill(),
        5 => {
            while let Some(received) = driver.poll_receive() {
                driver.recycle(received.buffer);
            }
            let queue = if tx { driver.tx() } else { driver.rx() };
            queue.kick();
        }
        6 | 7 => {
            let descriptor = Descriptor {
                address: script.number(edge),
                len: script.number(4096) as u32,
                flags: script.word() & 7,
                next: script.number(u64::from(driver.options().queue_size)) as u16,
            };
            let (index, table) = (script.word(), script.byte().is_multiple_of(4));
            let queue = if tx { driver.tx() } else { driver.rx() };
            let index = index % queue.size();
            if table {
                let address =
                    queue.write_indirect(index, usize::from(script.byte() % 40), &descriptor);
                let whole = Descriptor {
                    address,
                    len: 640,
                    flags: 4,
                    next: 0,
                };
                queue.write_descriptor(index, &whole);
            } else {
                queue.write_descriptor(index, &descriptor);
            }
            let number = script.word();
            queue.write_available(number, index);
        }
        8 => {
            let number = script.number(0) as u16;
            let queue = if tx { driver.tx() } else { driver.rx() };
            let ahead = queue.available_index().wrapping_add(number);
            queue.set_available_index(ahead);
            queue.kick();
        }
        9 => {
            let (at, len) = (usize::from(script.word()), usize::from(script.byte()));
            let noise: Vec<u8> = (0..len).map(|_| script.byte()).collect();
            let queue = if tx { driver.tx() } else { driver.rx() };
            let ring = if len.is_multiple_of(2) {
                queue.used_ring()
            } else {
                queue.available_ring()
            };
            ring.put(at % ring.len(), &noise);
        }
        10 => {
            if let Ok(bases) = driver.stop_queues() {
                let _ = driver.start_queues(match script.byte() % 4 {
                    0 => [script.word(), script.word()],
                    _ => bases,
                });
            }
        }
        _ => {
            let _ = driver.reboot();
        }
    }
}

fn header(script: &mut Script<'_>) -> Header {
    let usual = !script.byte().is_multiple_of(8);
    Header {
        src_cid: if usual {
            HOSTILE_CID
        } else {
            script.number(HOSTILE_CID)
        },
        dst_cid: if usual { HOST } else { script.number(HOST) },
        src_port: u32::from(script.byte() % 8),
        dst_port: if script.byte().is_multiple_of(8) {
            script.number(0) as u32
        } else {
            PORT
        },
        len: script.number(1 << 16) as u32,
        kind: if usual { 1 } else { script.word() },
        op: u16::from(script.byte() % 9),
        flags: u32::from(script.byte() % 4),
        buf_alloc: script.number(256 << 10) as u32,
        fwd_cnt: script.number(0) as u32,
    }
}

#[test]
fn random_operations_of_a_guest_affect_no_other_machine() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    for _ in 0..150 {
        let script: Vec<u8> = (0..200).flat_map(|_| random()).collect();
        run_script(&script);
    }
}
