//! Connections whose bytes go through shared memory, as a program sees them.

use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use hvsock::{HvStream, Interest, Transport};
use hvsock_broker::model::PartitionState;
use hvsock_sys::poll::{self, PollFd, PollFlags};

use crate::world::{LONG, World};

/// How much a stream takes whose peer does not read.
fn room(stream: &HvStream) -> usize {
    stream.set_nonblocking(true).unwrap();
    let mut taken = 0;
    loop {
        match (&*stream).write(&[0; 1000]) {
            Ok(count) => taken += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return taken,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn memory_is_shared_unless_an_end_says_no_and_as_much_as_the_ends_wish() {
    let world = World::new();
    let (a, b) = world.pair(&world.at_web());
    assert_eq!(
        (a.transport(), b.transport()),
        (Transport::Ring, Transport::Ring)
    );
    assert_eq!(room(&a), 256 * 1024);
    let (a, b) = world.pair(&world.at_web().ring_size(20_000));
    // The other end wished for the default, which is more.
    assert_eq!((room(&a), room(&b)), (256 * 1024, 256 * 1024));
    let (a, b) = world.pair(&world.at_web().ring_size(1_000_000));
    assert_eq!((room(&a), room(&b)), (1 << 20, 1 << 20));
    for options in [
        world.at_web().shared_memory(false),
        world.at_web().plain(true),
    ] {
        let (a, b) = world.pair(&options);
        assert_eq!(
            (a.transport(), b.transport()),
            (Transport::Descriptor, Transport::Descriptor)
        );
        assert!(a.ring_stats().is_none());
        assert_eq!(a.fill().unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(a.reserve(1).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}

#[test]
fn files_go_through_without_a_copy_of_ones_own() {
    let world = World::new();
    let (from, to) = world.pair(&world.at_web());
    let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let (mut source, mut sink) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    source.write_all(&bytes).unwrap();
    source.rewind().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                let mut room = from.reserve(100_000).unwrap();
                let count = room.read_from(&source, 0).unwrap();
                room.commit(count).unwrap();
                if count == 0 {
                    break from.shutdown(Shutdown::Write).unwrap();
                }
            }
        });
        while let Some(bytes) = to.fill().unwrap() {
            let count = bytes.write_to(&sink, 0).unwrap();
            bytes.consume(count).unwrap();
        }
    });
    let mut copy = Vec::new();
    sink.seek(SeekFrom::Start(0)).unwrap();
    sink.read_to_end(&mut copy).unwrap();
    assert!(copy == bytes, "{} bytes", copy.len());
    to.set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    drop(to);
    assert_eq!(from.reserve(1).unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(from.reserve(0).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_child_process_can_have_one_that_this_process_pumps() {
    let world = World::new();
    let (near, far) = world.pair(&world.at_web());
    let fds = far.into_owned_fds().unwrap();
    let (input, output) = (fds.data.try_clone().unwrap(), fds.data);
    let mut child = Command::new("cat")
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(output))
        .spawn()
        .unwrap();
    let bytes: Vec<u8> = (0..1_000_000u32).map(|i| (i % 241) as u8).collect();
    let mut back = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            (&near).write_all(&bytes).unwrap();
            near.shutdown(Shutdown::Write).unwrap();
        });
        (&near).read_to_end(&mut back).unwrap();
    });
    assert!(back == bytes);
    assert!(child.wait().unwrap().success());
    // A child that is gone reads no more, and its peer learns of it without writing much.
    let (near, far) = world.pair(&world.at_web());
    let fds = far.into_owned_fds().unwrap();
    let mut child = Command::new("true")
        .stdin(Stdio::from(fds.data))
        .spawn()
        .unwrap();
    child.wait().unwrap();
    assert_eq!((&near).read(&mut [0]).unwrap(), 0);
    let start = Instant::now();
    let error = loop {
        match (&near).write(b"x") {
            Ok(_) => assert!(start.elapsed() < LONG, "it goes on taking bytes"),
            Err(error) => break error,
        }
        thread::sleep(Duration::from_millis(5));
    };
    assert!(
        matches!(
            error.kind(),
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
        ),
        "{error}"
    );
}

#[test]
fn a_program_that_closes_with_data_unread_has_not_ended_well() {
    let world = World::new();
    for shared in [true, false] {
        let (near, far) = world.pair(&world.at_web().shared_memory(shared));
        let fds = far.into_owned_fds().unwrap();
        (&near).write_all(b"unread").unwrap();
        let mut fds = [PollFd::new(&fds.data, PollFlags::IN)];
        assert!(poll::wait(&mut fds, Some(Instant::now() + LONG)).unwrap());
        drop(fds);
        let error = (&near).read(&mut [0]).unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::ConnectionReset,
            "{shared}: {error}"
        );
    }
}

/// A level-triggered loop over the descriptor of [`AsFd`], as any program has that knows poll:
/// what it reads goes back.
fn echo(stream: &HvStream) -> usize {
    stream.set_nonblocking(true).unwrap();
    let (mut buffer, mut from, mut to) = (vec![0; 10_000], 0, 0);
    let (mut ended, mut turns) = (false, 0);
    loop {
        turns += 1;
        let mut moved = false;
        if from == to && !ended {
            match (&*stream).read(&mut buffer) {
                Ok(0) => ended = true,
                Ok(count) => (from, to, moved) = (0, count, true),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
        }
        if from < to {
            match (&*stream).write(&buffer[from..to]) {
                Ok(count) => (from, moved) = (from + count, true),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
        }
        if ended && from == to {
            stream.shutdown(Shutdown::Write).unwrap();
            return turns;
        }
        if !moved {
            let mut fds = [PollFd::new(stream, PollFlags::IN)];
            assert!(
                poll::wait(&mut fds, Some(Instant::now() + LONG)).unwrap(),
                "a lost wake-up"
            );
        }
    }
}

#[test]
fn poll_on_the_descriptor_loses_no_wake_up_and_does_not_run_in_vain() {
    let world = World::new();
    let (near, far) = world.pair(&world.at_web());
    let bytes: Vec<u8> = (0..5_000_000u32).map(|i| (i % 239) as u8).collect();
    let mut back = Vec::new();
    thread::scope(|scope| {
        let echo = scope.spawn(move || echo(&far));
        scope.spawn(|| {
            let (first, second) = bytes.split_at(2_500_000);
            (&near).write_all(first).unwrap();
            thread::sleep(Duration::from_millis(300));
            (&near).write_all(second).unwrap();
            near.shutdown(Shutdown::Write).unwrap();
        });
        (&near).read_to_end(&mut back).unwrap();
        let turns = echo.join().unwrap();
        // A turn for every piece, and a few for every sleep; idle, it makes none.
        assert!(turns < 100_000, "{turns} turns");
    });
    assert!(back == bytes);
}

#[test]
fn the_descriptor_tells_of_a_cut_too() {
    let world = World::new();
    let (near, far) = world.pair(&world.at_web());
    far.set_nonblocking(true).unwrap();
    assert_eq!(
        (&far).read(&mut [0]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    let mut fds = [PollFd::from_borrowed_fd(far.as_fd(), PollFlags::IN)];
    assert!(!poll::wait(&mut fds, Some(Instant::now())).unwrap());
    world.broker.handle().cut(near.connection_id()).unwrap();
    assert!(poll::wait(&mut fds, Some(Instant::now() + LONG)).unwrap());
    assert_eq!(
        (&far).read(&mut [0]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
}

#[test]
fn the_descriptor_is_quiet_while_a_connection_stands_still() {
    let world = World::new();
    let (near, far) = world.pair(&world.at_web().connected_suspend(true));
    near.set_nonblocking(true).unwrap();
    let would_block = || (&near).read(&mut [0]).unwrap_err().kind() == ErrorKind::WouldBlock;
    let ready_within = |time| {
        let mut fds = [PollFd::new(&near, PollFlags::IN)];
        poll::wait(&mut fds, Some(Instant::now() + time)).unwrap()
    };
    assert!(would_block());
    world.set_web(PartitionState::Paused);
    while ready_within(Duration::from_millis(50)) {
        assert!(would_block());
    }
    (&far).write_all(b"bye").unwrap();
    drop(far);
    // It may be woken by what happened, to find that there is nothing for it yet.
    let wakes = (0..10).filter(|_| {
        let woken = ready_within(Duration::from_millis(20));
        assert!(would_block());
        woken
    });
    assert!(wakes.count() <= 3);
    world.set_web(PartitionState::Running);
    assert!(ready_within(LONG));
    let mut text = String::new();
    near.set_nonblocking(false).unwrap();
    (&near).read_to_string(&mut text).unwrap();
    assert_eq!(text, "bye");
}

#[test]
fn another_thread_can_wake_one_that_reads() {
    let world = World::new();
    let (near, _far) = world.pair(&world.at_web());
    near.set_read_timeout(None).unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(|| (&near).read(&mut [0]).unwrap());
        let poller = scope.spawn(|| near.poll(Interest::READABLE, Some(LONG)).unwrap());
        thread::sleep(Duration::from_millis(100));
        near.shutdown(Shutdown::Read).unwrap();
        assert_eq!(reader.join().unwrap(), 0);
        assert!(poller.join().unwrap().is_readable());
    });
}

#[test]
fn the_bell_is_not_rung_for_a_peer_that_is_awake() {
    let world = World::new();
    let (near, far) = world.pair(&world.at_web());
    let rings = || near.ring_stats().unwrap().rings;
    (&near).write_all(b"first").unwrap();
    assert_eq!(rings(), 1);
    (&far).read_exact(&mut [0; 5]).unwrap();
    for _ in 0..1000 {
        (&near).write_all(b"more").unwrap();
        (&far).read_exact(&mut [0; 4]).unwrap();
    }
    assert_eq!(rings(), 1);
    // One that has found nothing sleeps, or is about to.
    far.set_nonblocking(true).unwrap();
    assert!((&far).read(&mut [0]).is_err());
    (&near).write_all(b"wake up").unwrap();
    (&near).write_all(b"at last").unwrap();
    assert_eq!(rings(), 2);
}

#[test]
fn an_idle_connection_costs_no_time() {
    let world = World::new();
    let (near, far) = world.pair(&world.at_web());
    let reader = |stream: HvStream| {
        thread::spawn(move || {
            let _ = (&stream).read(&mut [0]);
            stream
        })
    };
    near.set_read_timeout(None).unwrap();
    far.set_read_timeout(None).unwrap();
    let (a, b) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    let readers = [reader(a), reader(b)];
    thread::sleep(Duration::from_millis(100));
    let before = [&near, &far].map(|end| end.ring_stats().unwrap());
    thread::sleep(Duration::from_millis(500));
    assert_eq!([&near, &far].map(|end| end.ring_stats().unwrap()), before);
    near.shutdown(Shutdown::Both).unwrap();
    far.shutdown(Shutdown::Both).unwrap();
    for reader in readers {
        reader.join().unwrap();
    }
}
