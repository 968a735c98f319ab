//! Connections: data, ends and errors.

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hvsock::{HvStream, Interest, Refusal, refusal_of};
use hvsock_endpoint::{BrokerMessage, ClientMessage, SocketOption};

use crate::fake::{Broker, BrokerSide, LONG, SHORT, disabled};

fn read(stream: &HvStream) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    (&mut &*stream).read_to_end(&mut all)?;
    Ok(all)
}

fn reset_of(error: &std::io::Error) -> &Refusal {
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    refusal_of(error).expect("a reset has a reason")
}

const GONE: &str = "the broker went away";

#[test]
fn bytes_go_both_ways() {
    let (mut stream, side) = Broker::new().connected();
    side.send(b"hello");
    let mut five = [0; 5];
    stream.read_exact(&mut five).unwrap();
    assert_eq!(&five, b"hello");
    stream.write_all(b"back").unwrap();
    drop(stream);
    assert_eq!(side.recv_all(), b"back");
}

#[test]
fn vectored_and_peeked_bytes_are_the_same_bytes() {
    let (mut stream, side) = Broker::new().connected();
    side.send(b"abc");
    let mut two = [0; 2];
    assert_eq!(stream.peek(&mut two).unwrap(), 2);
    let (mut x, mut y) = ([0; 1], [0; 5]);
    let mut slices = [IoSliceMut::new(&mut x), IoSliceMut::new(&mut y)];
    assert_eq!(stream.read_vectored(&mut slices).unwrap(), 3);
    assert_eq!((&x, &y[..2]), (b"a", &b"bc"[..]));
    let slices = [IoSlice::new(b"d"), IoSlice::new(b"ef")];
    assert_eq!(stream.write_vectored(&slices).unwrap(), 3);
    drop(stream);
    assert_eq!(side.recv_all(), b"def");
}

#[test]
fn a_try_never_waits_in_blocking_mode() {
    let (stream, side) = Broker::new().connected();
    let mut buffer = [0; 8];
    let error = stream.try_read(&mut buffer).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    side.send(b"abc");
    let (mut x, mut y) = ([0; 1], [0; 5]);
    let mut slices = [IoSliceMut::new(&mut x), IoSliceMut::new(&mut y)];
    assert_eq!(stream.try_read_vectored(&mut slices).unwrap(), 3);
    assert_eq!((&x, &y[..2]), (b"a", &b"bc"[..]));
    // The end without its kind is no end yet.
    side.end_data();
    let error = stream.try_read(&mut buffer).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    side.control.send(&BrokerMessage::Shutdown);
    assert_eq!(stream.try_read(&mut buffer).unwrap(), 0);
    let slices = [IoSlice::new(b"d"), IoSlice::new(b"ef")];
    let mut sent = stream.try_write_vectored(&slices).unwrap();
    assert_eq!(sent, 3);
    let error = loop {
        match stream.try_write(&[0; 10_000]) {
            Ok(count) => sent += count,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    drop(stream);
    assert_eq!(side.recv_all().len(), sent);
}

#[test]
fn the_pending_error_of_a_stream_is_the_reason_of_its_reset() {
    let (stream, side) = Broker::new().connected();
    assert!(stream.take_error().unwrap().is_none());
    side.control.send(&BrokerMessage::Reset(disabled()));
    let error = stream.take_error().unwrap().expect("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(matches!(refusal_of(&error), Some(Refusal::Disabled { .. })));
}

#[test]
fn an_empty_buffer_returns_at_once() {
    let (mut stream, _side) = Broker::new().connected();
    assert_eq!(stream.read(&mut []).unwrap(), 0);
    assert_eq!(stream.write(&[]).unwrap(), 0);
    assert_eq!(
        stream
            .read_vectored(&mut [IoSliceMut::new(&mut [])])
            .unwrap(),
        0
    );
}

#[test]
fn an_announced_end_is_clean_and_final() {
    let (stream, side) = Broker::new().connected();
    side.send(b"last");
    side.control.send(&BrokerMessage::Shutdown);
    side.end_data();
    assert_eq!(read(&stream).unwrap(), b"last");
    side.control.send(&BrokerMessage::Reset(disabled()));
    assert_eq!(read(&stream).unwrap(), b"");
    drop(side);
    assert_eq!(read(&stream).unwrap(), b"");
}

#[test]
fn a_peer_that_closes_for_good_after_its_end_is_no_reset() {
    for shutdown in [Shutdown::Write, Shutdown::Both] {
        let (stream, side) = Broker::new().connected();
        side.send(b"last");
        side.control.send(&BrokerMessage::Shutdown);
        drop(side);
        assert_eq!(read(&stream).unwrap(), b"last");
        stream.shutdown(shutdown).unwrap();
        assert!(stream.take_error().unwrap().is_none());
        assert_eq!(read(&stream).unwrap(), b"");
    }
    let (stream, side) = Broker::new().connected();
    side.control.send(&BrokerMessage::Shutdown);
    drop(side);
    let error = (&stream).write(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{error}");
    stream.set_connected_suspend(true).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
}

#[test]
fn a_reset_after_the_peers_end_is_the_error_of_the_own_end() {
    let (stream, side) = Broker::new().connected();
    side.control.send(&BrokerMessage::Shutdown);
    side.control.send(&BrokerMessage::Reset(disabled()));
    drop(side);
    let error = stream.shutdown(Shutdown::Write).unwrap_err();
    assert!(matches!(reset_of(&error), Refusal::Disabled { .. }));
}

#[test]
fn an_unannounced_end_waits_for_its_kind() {
    let (stream, side) = Broker::new().connected();
    side.end_data();
    let announced = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(SHORT);
            announced.store(true, Ordering::SeqCst);
            side.control.send(&BrokerMessage::Shutdown);
        });
        assert_eq!(read(&stream).unwrap(), b"");
        assert!(
            announced.load(Ordering::SeqCst),
            "it returned before the announcement"
        );
    });
}

#[test]
fn every_waiting_thread_gets_the_kind_of_the_end() {
    let (stream, side) = Broker::new().connected();
    side.end_data();
    thread::scope(|scope| {
        let readers: Vec<_> = (0..4).map(|_| scope.spawn(|| read(&stream))).collect();
        thread::sleep(SHORT);
        side.control.send(&BrokerMessage::Shutdown);
        for reader in readers {
            assert_eq!(reader.join().unwrap().unwrap(), b"");
        }
    });
}

#[test]
fn a_reset_has_a_reason_and_is_final() {
    let (stream, side) = Broker::new().connected();
    side.send(b"part");
    side.control.send(&BrokerMessage::Reset(disabled()));
    drop(side);
    let mut four = [0; 4];
    (&stream).read_exact(&mut four).unwrap();
    for _ in 0..2 {
        let error = read(&stream).unwrap_err();
        assert_eq!(
            reset_of(&error),
            &Refusal::Disabled {
                by: "enabled = false".into()
            }
        );
        let error = (&stream).write(b"x").unwrap_err();
        assert_eq!(
            reset_of(&error),
            &Refusal::Disabled {
                by: "enabled = false".into()
            }
        );
    }
}

#[test]
fn a_dead_broker_is_a_reset_and_not_an_end() {
    let (stream, side) = Broker::new().connected();
    side.send(b"part");
    drop(side);
    let mut four = [0; 4];
    (&stream).read_exact(&mut four).unwrap();
    let error = read(&stream).unwrap_err();
    assert_eq!(reset_of(&error), &Refusal::Reset { cause: GONE.into() });
    let error = (&stream).write(b"x").unwrap_err();
    assert_eq!(reset_of(&error), &Refusal::Reset { cause: GONE.into() });
}

#[test]
fn a_dead_broker_with_unread_bytes_is_a_reset() {
    let (mut stream, side) = Broker::new().connected();
    stream.write_all(b"never read").unwrap();
    drop(side);
    let error = read(&stream).unwrap_err();
    assert_eq!(reset_of(&error), &Refusal::Reset { cause: GONE.into() });
}

#[test]
fn waiting_for_the_kind_of_an_end_times_out() {
    let (stream, side) = Broker::new().connected();
    side.end_data();
    stream.set_read_timeout(Some(SHORT)).unwrap();
    let start = Instant::now();
    assert_eq!(read(&stream).unwrap_err().kind(), ErrorKind::TimedOut);
    assert!(start.elapsed() >= SHORT);
    stream.set_nonblocking(true).unwrap();
    assert_eq!(read(&stream).unwrap_err().kind(), ErrorKind::WouldBlock);
    let ready = stream.poll(Interest::READABLE, Some(SHORT)).unwrap();
    assert!(ready.is_empty());
    side.control.send(&BrokerMessage::Shutdown);
    let ready = stream.poll(Interest::READABLE, Some(LONG)).unwrap();
    assert!(ready.is_readable());
    assert_eq!(read(&stream).unwrap(), b"");
}

#[test]
fn timeouts_are_timed_out_and_nonblocking_would_block() {
    let (mut stream, _side) = Broker::new().connected();
    assert_eq!(stream.read_timeout().unwrap(), None);
    stream.set_read_timeout(Some(SHORT)).unwrap();
    stream.set_write_timeout(Some(SHORT)).unwrap();
    assert_eq!(stream.read_timeout().unwrap(), Some(SHORT));
    assert_eq!(stream.write_timeout().unwrap(), Some(SHORT));
    assert_eq!(
        stream.read(&mut [0]).unwrap_err().kind(),
        ErrorKind::TimedOut
    );
    let full = loop {
        if let Err(error) = stream.write_all(&[0; 65_536]) {
            break error;
        }
    };
    assert_eq!(full.kind(), ErrorKind::TimedOut);
    stream.set_nonblocking(true).unwrap();
    assert_eq!(
        stream.read(&mut [0]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    assert_eq!(
        stream.write(&[0]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    let zero = stream.set_read_timeout(Some(Duration::ZERO)).unwrap_err();
    assert_eq!(zero.kind(), ErrorKind::InvalidInput);
}

#[test]
fn shutdown_is_announced_before_the_data_ends() {
    let (mut stream, side) = Broker::new().connected();
    stream.write_all(b"all").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    // Nothing but the announcement, which comes before the end.
    assert_eq!(side.control.recv(), ClientMessage::Shutdown);
    assert_eq!(side.recv_all(), b"all");
    let error = stream.write(b"more").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    assert!(error.to_string().contains("this end"), "{error}");
    // The other direction still works.
    side.send(b"still here");
    side.control.send(&BrokerMessage::Shutdown);
    side.end_data();
    assert_eq!(read(&stream).unwrap(), b"still here");
    stream.shutdown(Shutdown::Write).unwrap();
    drop(stream);
    assert!(side.control.is_closed(), "the end is announced once");
}

#[test]
fn shutdown_for_reading_ends_local_reads() {
    let (stream, side) = Broker::new().connected();
    thread::scope(|scope| {
        let reader = scope.spawn(|| read(&stream));
        thread::sleep(SHORT);
        stream.shutdown(Shutdown::Read).unwrap();
        assert_eq!(reader.join().unwrap().unwrap(), b"");
    });
    (&stream).write_all(b"x").unwrap();
    stream.shutdown(Shutdown::Both).unwrap();
    assert_eq!(side.control.recv(), ClientMessage::Shutdown);
    assert_eq!(side.recv_all(), b"x");
}

#[test]
fn dropping_the_last_handle_ends_the_connection_cleanly() {
    let (stream, side) = Broker::new().connected();
    let mut clone = stream.try_clone().unwrap();
    drop(stream);
    assert!(side.control.is_idle());
    clone.write_all(b"kept").unwrap();
    drop(clone);
    assert_eq!(side.control.recv(), ClientMessage::Shutdown);
    assert_eq!(side.recv_all(), b"kept");
    assert!(side.control.is_closed());
}

#[test]
fn writing_to_a_closed_peer_is_a_broken_pipe() {
    let (mut stream, BrokerSide { control, data }) = Broker::new().connected();
    control.send(&BrokerMessage::Shutdown);
    drop(data);
    let error = stream.write(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    assert_eq!(refusal_of(&error), None);
}

#[test]
fn a_failed_write_waits_for_its_reason() {
    let (mut stream, BrokerSide { control, data }) = Broker::new().connected();
    drop(data);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(20));
            control.send(&BrokerMessage::Reset(disabled()));
        });
        let error = stream.write(b"x").unwrap_err();
        assert_eq!(
            reset_of(&error),
            &Refusal::Disabled {
                by: "enabled = false".into()
            }
        );
    });
}

#[test]
fn garbage_from_the_broker_is_an_error_and_not_an_end() {
    let long = vec![1; hvsock_endpoint::MAX_MESSAGE + 1];
    let listening = [1, 0x83, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    for garbage in [&[0xff; 5][..], &[1], &[1, 0x88, 0, 0, 1], &long, &listening] {
        let (stream, side) = Broker::new().connected();
        side.control.send_bytes(garbage, &[]).unwrap();
        side.end_data();
        for _ in 0..2 {
            let error = read(&stream).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{garbage:?}: {error}");
        }
    }
}

#[test]
fn readiness_covers_data_free_space_and_ends() {
    let (stream, side) = Broker::new().connected();
    let both = Interest::READABLE | Interest::WRITABLE;
    let ready = stream.poll(both, Some(LONG)).unwrap();
    assert!(ready.is_writable() && !ready.is_readable());
    assert!(
        stream
            .poll(Interest::READABLE, Some(SHORT))
            .unwrap()
            .is_empty()
    );
    side.send(b"x");
    let ready = stream.poll(both, Some(LONG)).unwrap();
    assert!(ready.is_writable() && ready.is_readable());
    assert_eq!((&stream).read(&mut [0]).unwrap(), 1);
    drop(side);
    let ready = stream.poll(both, None).unwrap();
    assert!(ready.is_writable() && ready.is_readable());
    assert!(stream.poll(Interest::READABLE, None).unwrap().is_readable());
    assert!(stream.poll(Interest::WRITABLE, None).unwrap().is_writable());
}

#[test]
fn connected_suspend_can_be_set_at_any_time() {
    let (stream, side) = Broker::new().connected();
    for on in [true, false] {
        stream.set_connected_suspend(on).unwrap();
        let option = SocketOption::ConnectedSuspend;
        let want = ClientMessage::SetOption {
            option,
            value: on.into(),
        };
        assert_eq!(side.control.recv(), want);
    }
    side.control.send(&BrokerMessage::Reset(disabled()));
    drop(side);
    let error = stream.set_connected_suspend(true).unwrap_err();
    assert_eq!(
        reset_of(&error),
        &Refusal::Disabled {
            by: "enabled = false".into()
        }
    );
}

#[test]
fn a_connection_converts_to_descriptors_for_another_program() {
    let broker = Broker::new();
    let (stream, side) = broker.connected();
    let mut file = std::fs::File::from(stream.into_owned_fds().unwrap().data);
    // A thread copies its bytes, and announces their end for the program.
    file.write_all(b"as a file").unwrap();
    side.send(b"back");
    let mut back = [0; 4];
    file.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"back");
    drop(file);
    assert_eq!(side.recv_all(), b"as a file");
    assert_eq!(side.control.recv(), ClientMessage::Shutdown);

    let options = broker.connect_options().raw_fd(true);
    let (stream, side) = broker.with_client(
        || options.connect(crate::fake::ADDRESS),
        |broker| {
            let client = broker.client();
            let ClientMessage::Connect(connect) = client.recv() else {
                panic!()
            };
            assert!(connect.flags.raw_fd);
            client.connect()
        },
    );
    let stream = stream.unwrap();
    stream.set_nonblocking(true).unwrap();
    let fds = stream.into_owned_fds().unwrap();
    let mut file = std::fs::File::from(fds.data);
    file.write_all(b"as a file").unwrap();
    drop(file);
    assert_eq!(side.recv_all(), b"as a file");
    assert!(side.control.is_idle());
    drop(fds.control);
    assert!(side.control.is_closed());
}
