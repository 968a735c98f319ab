//! `SIGKILL` at random points: the survivor gets what was written, all of it and right, and then
//! an error, soon; never an end, never a wrong byte.

use std::env;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use hvsock_ring::{End, Interest, Monitor, Parts, RingSize, Side, Stop};

use super::{give, start, take};

/// By when a survivor must know.
const SOON: Duration = Duration::from_secs(1);

/// The byte at a place of a stream.
fn byte_at(place: u64) -> u8 {
    (place.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

fn bytes_at(place: u64, count: usize) -> Vec<u8> {
    (place..place + count as u64).map(byte_at).collect()
}

/// Numbers that look random, and are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Writes until there is an error; how much went in.
fn write_on(mut end: &End, random: &mut Random) -> (u64, io::Error) {
    let mut place = 0;
    loop {
        let count = 1 + random.below(3000) as usize;
        match end.write(&bytes_at(place, count)) {
            Ok(written) => place += written as u64,
            Err(error) => return (place, error),
        }
    }
}

/// Reads until there is an error, and looks at every byte.
fn read_on(mut end: &End, random: &mut Random) -> (u64, io::Error) {
    let (mut place, mut buffer) = (0, vec![0; 5000]);
    loop {
        let count = 1 + random.below(5000) as usize;
        match end.read(&mut buffer[..count]) {
            Ok(0) => panic!("a clean end after {place} bytes of a writer that was killed"),
            Ok(read) => {
                assert_eq!(buffer[..read], bytes_at(place, read), "at {place}");
                place += read as u64;
            }
            Err(error) => return (place, error),
        }
    }
}

/// Likewise, as an event loop that is told by the bell.
fn read_on_by_bell(end: &End, random: &mut Random) -> (u64, io::Error) {
    use hvsock_sys::poll::{self, PollFd, PollFlags};
    let (mut place, mut buffer) = (0, vec![0; 5000]);
    loop {
        let count = 1 + random.below(5000) as usize;
        match end.try_read(&mut buffer[..count]) {
            Ok(read) => {
                assert_eq!(buffer[..read], bytes_at(place, read), "at {place}");
                place += read as u64;
            }
            Err(Stop::WouldBlock) => {
                if end.arm(Interest::READ) {
                    let mut fds = [PollFd::from_borrowed_fd(end.bell(), PollFlags::IN)];
                    poll::wait(&mut fds, None).unwrap();
                    end.hear();
                }
            }
            Err(stop) => {
                assert_ne!(stop, Stop::End);
                return (place, stop.into());
            }
        }
    }
}

pub(super) fn write_until_killed(socket: &impl AsFd) {
    let end = take(socket).unwrap();
    write_on(&end, &mut Random(77));
}

pub(super) fn read_until_killed(socket: &impl AsFd) {
    let end = take(socket).unwrap();
    read_on(&end, &mut Random(78));
}

pub(super) fn echo_until_killed(socket: &impl AsFd) {
    let end = take(socket).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| write_on(&end, &mut Random(79)));
        read_on(&end, &mut Random(80));
    });
}

/// What is killed, and what is left.
fn kill_one(number: u64) {
    let mut random = Random(number.wrapping_mul(0x2545_F491_4F6C_DD1D) | 1);
    (0..10).for_each(|_| _ = random.below(2));
    let role = ["write", "read", "echo"][random.below(3) as usize];
    let size = [RingSize::MIN, RingSize::DEFAULT][random.below(2) as usize];
    let starts = [0, u64::from(u32::MAX) - 9000, u64::MAX - 9000];
    let starts = [(); 2].map(|()| starts[random.below(3) as usize]);
    let ours = Side::BOTH[random.below(2) as usize];
    let by_bell = random.below(2) == 0;
    let delay = Duration::from_micros(random.below(3000));

    let (mut process, socket) = start(role);
    let parts = Parts::new(size).unwrap();
    // So that it is so before either end is there.
    let memory = File::from(parts.memory.try_clone().unwrap());
    for (direction, start) in (0..).zip(starts) {
        for word in [128, 256] {
            let at = word + 640 * direction;
            memory.write_all_at(&start.to_ne_bytes(), at).unwrap();
        }
    }
    let monitor = Monitor::new(&parts.memory).unwrap();
    let (mine, theirs) = match ours {
        Side::First => (parts.first, parts.second),
        Side::Second => (parts.second, parts.first),
    };
    let end = End::open_at(ours, &parts.memory, mine, starts).unwrap();
    give(&socket, ours.other(), &parts.memory, &theirs, starts);
    drop((socket, memory, parts.memory, theirs));
    // Some spin for long and some do not.
    end.set_spin(Duration::from_micros(random.below(40)));

    let killed = thread::scope(|scope| {
        let reads = (role != "read").then(|| {
            let mut random = Random(number | 1 << 40);
            let end = &end;
            scope.spawn(move || {
                let (place, error) = match by_bell {
                    true => read_on_by_bell(end, &mut random),
                    false => read_on(end, &mut random),
                };
                (place, error, Instant::now())
            })
        });
        let writes = (role != "write").then(|| {
            let mut random = Random(number | 1 << 41);
            let end = &end;
            scope.spawn(move || {
                let (place, error) = write_on(end, &mut random);
                (place, error, Instant::now())
            })
        });
        // The point is random in the stream, and not in the start of the process.
        let moves = Instant::now() + Duration::from_secs(20);
        let (writer, most) = match role {
            // Once the ring has been full, there is a reader.
            "read" => (ours, u64::from(size.bytes())),
            _ => (ours.other(), 0),
        };
        let first = starts[usize::from(writer == Side::Second)];
        while monitor.written(writer).wrapping_sub(first) <= most {
            assert!(Instant::now() < moves, "nothing moves");
            thread::yield_now();
        }
        thread::sleep(delay);
        process.kill().unwrap();
        let killed = Instant::now();
        if let Some(reads) = reads {
            let (place, error, at) = reads.join().unwrap();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            assert!(at.saturating_duration_since(killed) < SOON);
            let first = starts[usize::from(ours == Side::First)];
            // All that it has written, to the last byte.
            assert_eq!(first.wrapping_add(place), monitor.written(ours.other()));
        }
        if let Some(writes) = writes {
            let (_, error, at) = writes.join().unwrap();
            let kind = error.kind();
            let known = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
            assert!(known.contains(&kind), "{error}");
            assert!(at.saturating_duration_since(killed) < SOON);
        }
        killed
    });
    assert!(killed.elapsed() < SOON, "{number}: {:?}", killed.elapsed());
}

/// How many: `HVSOCK_RING_KILLS`, or a hundred.
#[test]
fn a_survivor_of_a_kill_has_every_byte_and_then_an_error() {
    let kills = env::var("HVSOCK_RING_KILLS").map_or(100, |kills| kills.parse().unwrap());
    (0..kills).for_each(kill_one);
}
