//! Connections through shared memory.

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Seek, SeekFrom, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use hvsock::{HvStream, Interest, Transport};
use hvsock_broker::model::PartitionState;
use hvsock_sys::poll::{self, PollFd, PollFlags};

use hvsock_testkit::wait::{TIMEOUT, eventually};

use crate::world::World;

/// How many bytes a stream takes whose peer does not read.
fn free_space(stream: &HvStream) -> usize {
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
fn the_ring_has_the_larger_requested_size_unless_an_end_disables_it() {
    let world = World::new();
    let (a, b) = world.pair(&world.at_web());
    assert_eq!(
        (a.transport(), b.transport()),
        (Transport::Ring, Transport::Ring)
    );
    assert_eq!(free_space(&a), 256 * 1024);
    let (a, b) = world.pair(&world.at_web().ring_size(20_000));
    // The other end requested the default, which is larger.
    assert_eq!((free_space(&a), free_space(&b)), (256 * 1024, 256 * 1024));
    let (a, b) = world.pair(&world.at_web().ring_size(1_000_000));
    assert_eq!((free_space(&a), free_space(&b)), (1 << 20, 1 << 20));
    for options in [
        world.at_web().shared_memory(false),
        world.at_web().raw_fd(true),
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
fn a_try_never_waits_at_a_ring_in_blocking_mode() {
    let world = World::new();
    let (a, b) = world.pair(&world.at_web());
    let would_block = |result: std::io::Result<usize>| {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::WouldBlock);
    };
    would_block(b.try_read(&mut [0; 8]));
    let slices = [IoSlice::new(b"d"), IoSlice::new(b"ef")];
    assert_eq!(a.try_write_vectored(&slices).unwrap(), 3);
    let (mut x, mut y) = ([0; 1], [0; 5]);
    let mut slices = [IoSliceMut::new(&mut x), IoSliceMut::new(&mut y)];
    assert_eq!(b.try_read_vectored(&mut slices).unwrap(), 3);
    assert_eq!((&x, &y[..2]), (b"d", &b"ef"[..]));
    assert_eq!(a.try_write(&[7; 1 << 20]).unwrap(), 256 * 1024);
    would_block(a.try_write(&[7]));
    drop(b);
    let deadline = Instant::now() + TIMEOUT;
    while a.take_error().unwrap().is_none() {
        assert!(Instant::now() < deadline, "no reason for the reset");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn files_are_sent_and_received_zero_copy() {
    let world = World::new();
    let (from, to) = world.pair(&world.at_web());
    let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let (mut source, mut sink) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    source.write_all(&bytes).unwrap();
    source.rewind().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                let mut reserved = from.reserve(100_000).unwrap();
                let count = reserved.read_from(&source, 0).unwrap();
                reserved.commit(count).unwrap();
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
fn a_child_process_gets_a_connection_that_threads_copy() {
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
    // A child that has exited does not read. Its peer gets an error before it has written much.
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
            Ok(_) => assert!(start.elapsed() < TIMEOUT, "it still accepts bytes"),
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
fn a_program_that_closes_with_unread_data_resets_the_connection() {
    let world = World::new();
    for shared in [true, false] {
        let (near, far) = world.pair(&world.at_web().shared_memory(shared));
        let fds = far.into_owned_fds().unwrap();
        (&near).write_all(b"unread").unwrap();
        let mut poll_fds = [PollFd::new(&fds.data, PollFlags::IN)];
        assert!(poll::wait(&mut poll_fds, Some(Instant::now() + TIMEOUT)).unwrap());
        drop(fds);
        let error = (&near).read(&mut [0]).unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::ConnectionReset,
            "{shared}: {error}"
        );
    }
}

/// Echoes data with a level-triggered poll loop over the descriptor of [`AsFd`]. Returns the number
/// of polls.
fn echo(stream: &HvStream) -> u64 {
    stream.set_nonblocking(true).unwrap();
    let (mut buffer, mut from, mut to) = (vec![0; 10_000], 0, 0);
    let (mut ended, mut polls) = (false, 0);
    loop {
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
            return polls;
        }
        if !moved {
            polls += 1;
            let mut fds = [PollFd::new(stream, PollFlags::IN)];
            assert!(
                poll::wait(&mut fds, Some(Instant::now() + TIMEOUT)).unwrap(),
                "a lost wakeup"
            );
        }
    }
}

#[test]
fn polling_the_descriptor_loses_no_wakeup_and_does_not_spin() {
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
        let polls = echo.join().unwrap();
        // One poll for each notification, and a few for messages of the broker; idle, none.
        let notifications = near.ring_stats().unwrap().notifications;
        assert!(
            polls <= notifications + 10,
            "{polls} polls for {notifications} notifications"
        );
    });
    assert!(back == bytes);
}

#[test]
fn the_descriptor_signals_a_reset() {
    let world = World::new();
    let (near, far) = world.pair(&world.at_web());
    far.set_nonblocking(true).unwrap();
    assert_eq!(
        (&far).read(&mut [0]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    let mut fds = [PollFd::from_borrowed_fd(far.as_fd(), PollFlags::IN)];
    assert!(!poll::wait(&mut fds, Some(Instant::now())).unwrap());
    world
        .host
        .handle()
        .close_connection(near.connection_id())
        .unwrap();
    assert!(poll::wait(&mut fds, Some(Instant::now() + TIMEOUT)).unwrap());
    assert_eq!(
        (&far).read(&mut [0]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
}

#[test]
fn the_descriptor_is_quiet_while_a_connection_is_suspended() {
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
    // An earlier event may wake it once more, without any data.
    let wakes = (0..10).filter(|_| {
        let woken = ready_within(Duration::from_millis(20));
        assert!(would_block());
        woken
    });
    assert!(wakes.count() <= 3);
    world.set_web(PartitionState::Running);
    assert!(ready_within(TIMEOUT));
    let mut text = String::new();
    near.set_nonblocking(false).unwrap();
    (&near).read_to_string(&mut text).unwrap();
    assert_eq!(text, "bye");
}

#[test]
fn a_shutdown_wakes_a_blocked_reader() {
    let world = World::new();
    let (near, _far) = world.pair(&world.at_web());
    near.set_read_timeout(None).unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(|| (&near).read(&mut [0]).unwrap());
        let poller = scope.spawn(|| near.poll(Interest::READABLE, Some(TIMEOUT)).unwrap());
        thread::sleep(Duration::from_millis(100));
        near.shutdown(Shutdown::Read).unwrap();
        assert_eq!(reader.join().unwrap(), 0);
        assert!(poller.join().unwrap().is_readable());
    });
}

#[test]
fn no_notification_is_sent_to_an_awake_peer() {
    let world = World::new();
    let (near, far) = world.pair(&world.at_web());
    let notifications = || near.ring_stats().unwrap().notifications;
    (&near).write_all(b"first").unwrap();
    assert_eq!(notifications(), 1);
    (&far).read_exact(&mut [0; 5]).unwrap();
    for _ in 0..1000 {
        (&near).write_all(b"more").unwrap();
        (&far).read_exact(&mut [0; 4]).unwrap();
    }
    assert_eq!(notifications(), 1);
    // A reader that found nothing requests a wakeup.
    far.set_nonblocking(true).unwrap();
    assert!((&far).read(&mut [0]).is_err());
    (&near).write_all(b"wake up").unwrap();
    (&near).write_all(b"at last").unwrap();
    assert_eq!(notifications(), 2);
}

#[test]
fn an_idle_connection_uses_no_cpu() {
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
    let stats = || [&near, &far].map(|end| end.ring_stats().unwrap());
    eventually("both readers sleep", || {
        stats().iter().all(|stats| stats.parks > 0)
    });
    let before = stats();
    thread::sleep(Duration::from_millis(500));
    assert_eq!(stats(), before);
    near.shutdown(Shutdown::Both).unwrap();
    far.shutdown(Shutdown::Both).unwrap();
    for reader in readers {
        reader.join().unwrap();
    }
}
