//! `SIGKILL` at random points: the survivor reads every byte that was written and then an error. It
//! never reads a clean end of the stream or a wrong byte.

use std::env;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use hvsock_ring::{Interest, Monitor, Parts, RingEnd, RingError, RingSide, RingSize};

use super::{recv_end, send_end, start};

/// The byte at a position of the test stream.
fn byte_at(position: u64) -> u8 {
    (position.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

fn bytes_at(position: u64, count: usize) -> Vec<u8> {
    (position..position + count as u64).map(byte_at).collect()
}

/// A deterministic xorshift generator.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Writes until there is an error. Returns the number of bytes written.
fn write_on(mut end: &RingEnd, random: &mut Random) -> (u64, io::Error) {
    let mut position = 0;
    loop {
        let count = 1 + random.below(3000) as usize;
        match end.write(&bytes_at(position, count)) {
            Ok(written) => position += written as u64,
            Err(error) => return (position, error),
        }
    }
}

/// Reads until there is an error, and checks every byte.
fn read_on(mut end: &RingEnd, random: &mut Random) -> (u64, io::Error) {
    let (mut position, mut buffer) = (0, vec![0; 5000]);
    loop {
        let count = 1 + random.below(5000) as usize;
        match end.read(&mut buffer[..count]) {
            Ok(0) => panic!("a clean end after {position} bytes of a writer that was killed"),
            Ok(read) => {
                assert_eq!(buffer[..read], bytes_at(position, read), "at {position}");
                position += read as u64;
            }
            Err(error) => return (position, error),
        }
    }
}

/// As [`read_on`], with an event loop that polls the doorbell.
fn read_on_by_doorbell(end: &RingEnd, random: &mut Random) -> (u64, io::Error) {
    use hvsock_sys::poll::{self, PollFd, PollFlags};
    let (mut position, mut buffer) = (0, vec![0; 5000]);
    loop {
        let count = 1 + random.below(5000) as usize;
        match end.try_read(&mut buffer[..count]) {
            Ok(read) => {
                assert_eq!(buffer[..read], bytes_at(position, read), "at {position}");
                position += read as u64;
            }
            Err(RingError::WouldBlock) => {
                if end.arm(Interest::READ) {
                    let mut fds = [PollFd::from_borrowed_fd(end.doorbell(), PollFlags::IN)];
                    poll::wait(&mut fds, None).unwrap();
                    end.drain_notifications();
                }
            }
            Err(stop) => {
                assert_ne!(stop, RingError::EndOfStream);
                return (position, stop.into());
            }
        }
    }
}

pub(super) fn write_until_killed(socket: &impl AsFd) {
    let end = recv_end(socket).unwrap();
    write_on(&end, &mut Random(77));
}

pub(super) fn read_until_killed(socket: &impl AsFd) {
    let end = recv_end(socket).unwrap();
    read_on(&end, &mut Random(78));
}

pub(super) fn echo_until_killed(socket: &impl AsFd) {
    let end = recv_end(socket).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| write_on(&end, &mut Random(79)));
        read_on(&end, &mut Random(80));
    });
}

/// Kills one child with a random role at a random time, and checks what the survivor gets.
fn kill_one(number: u64) {
    let mut random = Random(number.wrapping_mul(0x2545_F491_4F6C_DD1D) | 1);
    (0..10).for_each(|_| _ = random.below(2));
    let role = ["write", "read", "echo"][random.below(3) as usize];
    let size = [RingSize::MIN, RingSize::DEFAULT][random.below(2) as usize];
    let starts = [0, u64::from(u32::MAX) - 9000, u64::MAX - 9000];
    let starts = [(); 2].map(|()| starts[random.below(3) as usize]);
    let own_side = RingSide::BOTH[random.below(2) as usize];
    let polls_doorbell = random.below(2) == 0;
    let delay = Duration::from_micros(random.below(3000));

    let (mut process, socket) = start(role);
    let parts = Parts::new(size).unwrap();
    // Before either end is opened.
    let memory = File::from(parts.memory.try_clone().unwrap());
    for (direction, start) in (0..).zip(starts) {
        for word in [128, 256] {
            let at = word + 640 * direction;
            memory.write_all_at(&start.to_ne_bytes(), at).unwrap();
        }
    }
    let monitor = Monitor::new(&parts.memory).unwrap();
    let (mine, theirs) = match own_side {
        RingSide::First => (parts.first, parts.second),
        RingSide::Second => (parts.second, parts.first),
    };
    let end = RingEnd::open_at(own_side, &parts.memory, mine, starts).unwrap();
    send_end(&socket, own_side.other(), &parts.memory, &theirs, starts);
    drop((socket, memory, parts.memory, theirs));
    // Some spin long and some do not.
    end.set_spin(Duration::from_micros(random.below(40)));

    thread::scope(|scope| {
        let reads = (role != "read").then(|| {
            let mut random = Random(number | 1 << 40);
            let end = &end;
            scope.spawn(move || match polls_doorbell {
                true => read_on_by_doorbell(end, &mut random),
                false => read_on(end, &mut random),
            })
        });
        let writes = (role != "write").then(|| {
            let mut random = Random(number | 1 << 41);
            let end = &end;
            scope.spawn(move || write_on(end, &mut random))
        });
        // The kill comes at a random point of the stream, not of the start of the process.
        let moves = Instant::now() + Duration::from_secs(20);
        let (writer, most) = match role {
            // Once more than a full ring was written, the child has read.
            "read" => (own_side, u64::from(size.bytes())),
            _ => (own_side.other(), 0),
        };
        let first = starts[usize::from(writer == RingSide::Second)];
        while monitor.written(writer).wrapping_sub(first) <= most {
            assert!(Instant::now() < moves, "no bytes are transferred");
            thread::yield_now();
        }
        thread::sleep(delay);
        process.kill().unwrap();
        // The process is reaped, so its descriptors are closed and the doorbell has hung up.
        let parks = end.stats().parks;
        if let Some(reads) = reads {
            let (position, error) = reads.join().unwrap();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            let first = starts[usize::from(own_side == RingSide::First)];
            // Every byte that the child wrote.
            assert_eq!(
                first.wrapping_add(position),
                monitor.written(own_side.other())
            );
        }
        if let Some(writes) = writes {
            let (_, error) = writes.join().unwrap();
            let kind = error.kind();
            let known = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
            assert!(known.contains(&kind), "{error}");
        }
        // Each of the two threads parks at most once more: the hangup ends that park.
        let later = end.stats().parks - parks;
        assert!(later <= 2, "{number}: {later} parks after the kill");
    });
}

/// Kills `HVSOCK_RING_KILLS` children, by default 100.
#[test]
fn a_survivor_of_a_kill_reads_every_byte_and_then_an_error() {
    let kills = env::var("HVSOCK_RING_KILLS").map_or(100, |kills| kills.parse().unwrap());
    (0..kills).for_each(kill_one);
}
