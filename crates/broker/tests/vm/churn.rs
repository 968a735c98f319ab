//! Many connections of every kind that come and go at once: over rings and descriptors, to and from
//! guests and between siblings.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hvsock::{HvListener, HvStream, ServiceId, VmId};
use hvsock_testkit::guest::{Guest, GuestStream, Options};
use hvsock_virtio::SocketKind;

use crate::traffic::{read_all, write_all};
use hvsock_testkit::StopOnDrop;
use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{World, bounded, limited};

/// How long new connections are made.
const TIME: Duration = Duration::from_secs(2);

/// A deterministic pseudorandom generator (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % bound
    }
}

/// One end of a connection, on the host or in a guest.
trait Stream: Sized {
    fn write_some(&self, bytes: u64, size: usize) -> std::io::Result<()>;
    fn read_some(&self) -> std::io::Result<u64>;
    fn read_little(&self);
    fn end(&self);
}

impl Stream for GuestStream {
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

impl Stream for HvStream {
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

/// Sends a random count of bytes and expects as many back, or closes early.
fn request(stream: &(impl Stream + Sync), random: &mut Random) {
    let magnitude = 6 + random.below(14);
    let bytes = 1 + random.below(1 << magnitude);
    let size = 1 + random.below(70_000) as usize;
    match random.below(6) {
        // Closes before or during the exchange.
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
            assert_eq!(read.expect("a clean end"), bytes);
        }
    }
}

/// Echoes until end of file.
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

fn serve_host(listener: &HvListener, done: &AtomicBool) {
    thread::scope(|scope| {
        while !done.load(Ordering::Relaxed) {
            if let Ok((stream, _)) = listener.accept_timeout(Duration::from_millis(50)) {
                let stream = limited(stream);
                scope.spawn(move || echo(&&stream, || stream.end()));
            }
        }
    });
}

fn serve_guest(guest: &Guest, port: u32, done: &AtomicBool) {
    let listener = guest.listen(port).expect("listening");
    thread::scope(|scope| {
        while !done.load(Ordering::Relaxed) {
            if let Ok(stream) = listener.accept(Duration::from_millis(50)) {
                let stream = bounded(stream);
                scope.spawn(move || echo(&&stream, || stream.end()));
            }
        }
    });
}

#[test]
fn connections_of_every_kind_at_once_lose_no_bytes() {
    let world = World::with_web(|_| ());
    let (ring, descriptor, inside, sibling) = (7100, 7101, 7102, 7103);
    for port in [ring, descriptor, inside, sibling] {
        world.register(port);
    }
    let listeners = [(ring, true), (descriptor, false)].map(|(port, shared)| {
        let listener = HvListener::options()
            .endpoint(world.host().endpoint())
            .backlog(128)
            .shared_memory(shared)
            .listen((VmId::CHILDREN, ServiceId::from_port(port)));
        listener.expect("listening")
    });
    world.vm("one", 101, &["family"]);
    world.vm("two", 102, &["family"]);
    let one = world.guest_of("one", Options::new(101));
    let two = world.guest_of("two", Options::new(102));
    // Servers run until all clients have ended.
    let done = &AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop_servers = StopOnDrop(done);
        for listener in &listeners {
            scope.spawn(move || serve_host(listener, done));
        }
        let (one, two, world) = (&one, &two, &world);
        scope.spawn(move || serve_guest(one, inside, done));
        scope.spawn(move || serve_guest(two, sibling, done));
        eventually("the guests listen", || {
            let to_one = world.connect_to("one", inside).is_ok();
            to_one
                && one
                    .connect_to(SocketKind::Stream, 102, sibling, TIMEOUT)
                    .is_ok()
        });
        let until = Instant::now() + TIME;
        thread::scope(|scope| {
            for seed in 1..=3_u64 {
                for port in [ring, descriptor] {
                    scope.spawn(move || {
                        let mut random = Random(seed * u64::from(port));
                        while Instant::now() < until {
                            let stream = bounded(one.connect(port).expect("connected"));
                            request(&stream, &mut random);
                        }
                    });
                }
                scope.spawn(move || {
                    let mut random = Random(seed * 7919);
                    while Instant::now() < until {
                        let stream = world.connect_to("one", inside).expect("connected");
                        request(&stream, &mut random);
                    }
                });
                scope.spawn(move || {
                    let mut random = Random(seed * 104_729);
                    while Instant::now() < until {
                        let stream = one.connect_to(SocketKind::Stream, 102, sibling, TIMEOUT);
                        request(&bounded(stream.expect("connected")), &mut random);
                    }
                });
            }
        });
    });
    world.has_connections(0);
    assert_eq!(one.protocol_violations(), [""; 0]);
    assert_eq!(two.protocol_violations(), [""; 0]);
    eventually("the guests have no connections", || {
        one.connections() + two.connections() == 0
    });
}
