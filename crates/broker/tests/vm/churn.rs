//! Many connections that come and go in every way at once.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use hvsock::{HvListener, HvStream, ServiceId, VmId};
use hvsock_testkit::guest::{Guest, GuestStream, Options};
use hvsock_virtio::SocketKind;

use crate::world::{PATIENCE, World, bounded, eventually, limited, read_all, write_all};

const TIME: Duration = Duration::from_secs(2);

/// Numbers that differ enough from each other.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % bound
    }
}

/// One end of a connection, wherever it is.
trait Ends: Sized {
    fn write_some(&self, bytes: u64, size: usize) -> std::io::Result<()>;
    fn read_some(&self) -> std::io::Result<u64>;
    fn read_little(&self);
    fn end(&self);
}

impl Ends for GuestStream {
    fn write_some(&self, bytes: u64, size: usize) -> std::io::Result<()> {
        write_all(self, bytes, size)
    }

    fn read_some(&self) -> std::io::Result<u64> {
        read_all(self, 9000)
    }

    fn read_little(&self) {
        let mut this = self;
        let _ = this.read(&mut [0; 10]);
    }

    fn end(&self) {
        let _ = self.shutdown(Shutdown::Write);
    }
}

impl Ends for HvStream {
    fn write_some(&self, bytes: u64, size: usize) -> std::io::Result<()> {
        write_all(self, bytes, size)
    }

    fn read_some(&self) -> std::io::Result<u64> {
        read_all(self, 9000)
    }

    fn read_little(&self) {
        let mut this = self;
        let _ = this.read(&mut [0; 10]);
    }

    fn end(&self) {
        let _ = self.shutdown(Shutdown::Write);
    }
}

/// Says how much comes, sends it, and gets as much back; or leaves early.
fn ask(stream: &(impl Ends + Sync), chance: &mut Chance) {
    let magnitude = 6 + chance.below(14);
    let bytes = 1 + chance.below(1 << magnitude);
    let size = 1 + chance.below(70_000) as usize;
    match chance.below(6) {
        // It leaves without a word, or in the middle.
        0 => {}
        1 => {
            let _ = stream.write_some(bytes.min(1000), size);
            stream.read_little();
        }
        _ => {
            let read = thread::scope(|scope| {
                scope.spawn(|| {
                    stream.write_some(bytes, size).expect("the other end reads");
                    stream.end();
                });
                stream.read_some()
            });
            assert_eq!(read.expect("an end, and no error"), bytes);
        }
    }
}

/// Gives back what comes.
fn echo(stream: &(impl Read + Write + Copy), end: impl FnOnce()) {
    let (mut from, mut to) = (*stream, *stream);
    let mut buffer = [0; 5000];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) if to.write_all(&buffer[..read]).is_ok() => {}
            _ => return,
        }
    }
    end();
}

fn serve_host(listener: &HvListener, until: Instant) {
    thread::scope(|scope| {
        while Instant::now() < until {
            if let Ok((stream, _)) = listener.accept_timeout(Duration::from_millis(50)) {
                let stream = limited(stream);
                scope.spawn(move || echo(&&stream, || stream.end()));
            }
        }
    });
}

fn serve_guest(guest: &Guest, port: u32, until: Instant) {
    let listener = guest.listen(port).expect("listening");
    thread::scope(|scope| {
        while Instant::now() < until {
            if let Ok(stream) = listener.accept(Duration::from_millis(50)) {
                let stream = bounded(stream);
                scope.spawn(move || echo(&&stream, || stream.end()));
            }
        }
    });
}

#[test]
fn connections_come_and_go_in_every_way_at_once_and_lose_nothing() {
    let world = World::new();
    let (ring, descriptor, inside, sibling) = (7100, 7101, 7102, 7103);
    for port in [ring, descriptor, inside, sibling] {
        world.register(port);
    }
    let listeners = [(ring, true), (descriptor, false)].map(|(port, shared)| {
        let listener = HvListener::options()
            .endpoint(world.endpoint())
            .backlog(128)
            .shared_memory(shared)
            .listen((VmId::CHILDREN, ServiceId::from_port(port)));
        listener.expect("listening")
    });
    world.add("one", 101, &["family"]);
    world.add("two", 102, &["family"]);
    let one = world.guest_of("one", Options::new(101));
    let two = world.guest_of("two", Options::new(102));
    let until = Instant::now() + TIME;
    // Those who serve go on until all who ask have ended.
    let later = until + Duration::from_secs(1);
    thread::scope(|scope| {
        for listener in &listeners {
            scope.spawn(move || serve_host(listener, later));
        }
        let (one, two, world) = (&one, &two, &world);
        scope.spawn(move || serve_guest(one, inside, later));
        scope.spawn(move || serve_guest(two, sibling, later));
        eventually("the guests listen", || {
            let to_one = world.connect_to("one", inside).is_ok();
            to_one
                && one
                    .connect_to(SocketKind::Stream, 102, sibling, PATIENCE)
                    .is_ok()
        });
        for seed in 1..=3_u64 {
            for port in [ring, descriptor] {
                scope.spawn(move || {
                    let mut chance = Chance(seed * u64::from(port));
                    while Instant::now() < until {
                        ask(&bounded(one.connect(port).expect("connected")), &mut chance);
                    }
                });
            }
            scope.spawn(move || {
                let mut chance = Chance(seed * 7919);
                while Instant::now() < until {
                    let stream = world.connect_to("one", inside).expect("connected");
                    ask(&stream, &mut chance);
                }
            });
            scope.spawn(move || {
                let mut chance = Chance(seed * 104_729);
                while Instant::now() < until {
                    let stream = one.connect_to(SocketKind::Stream, 102, sibling, PATIENCE);
                    ask(&bounded(stream.expect("connected")), &mut chance);
                }
            });
        }
    });
    world.settles_at(0);
    assert_eq!(one.faults(), [""; 0]);
    assert_eq!(two.faults(), [""; 0]);
    eventually("the guests have forgotten all", || {
        one.connections() + two.connections() == 0
    });
}
