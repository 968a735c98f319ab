//! The async stream and listener.

use std::cell::Cell;
use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::pin::pin;
use std::time::{Duration, Instant};

use hvsock::tokio::{HvListener, HvStream};
use hvsock::{ConnectOptions, Refusal, refusal_of};
use hvsock_endpoint::{BrokerMessage, ClientMessage, SocketOption};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest, Ready};
use tokio::time::timeout;

use crate::fake::{ADDRESS, Broker, BrokerSide, Client, LONG, SHORT, disabled, listening};

/// A connection of `HvStream::connect_with`, with the broker on a thread of its own.
async fn connected() -> (HvStream, BrokerSide) {
    let broker = Broker::new();
    let options = broker.connect_options();
    let broker_side = tokio::task::spawn_blocking(move || {
        let client = broker.client();
        assert!(matches!(client.recv(), ClientMessage::ConnectNamed(_)));
        client.connect()
    });
    let stream = HvStream::connect_with(&options, ("parent", "Demo"))
        .await
        .unwrap();
    (stream, broker_side.await.unwrap())
}

async fn listener() -> (HvListener, Client) {
    let broker = Broker::new();
    let options = broker.listen_options();
    let broker_side = tokio::task::spawn_blocking(move || {
        let client = broker.client();
        client.recv();
        client.send(&listening());
        client
    });
    let listener = HvListener::bind_with(&options, ADDRESS).await.unwrap();
    (listener, broker_side.await.unwrap())
}

/// The first message of a task that connects with these options.
async fn first_message(change: impl FnOnce(ConnectOptions) -> ConnectOptions) -> ClientMessage {
    let broker = Broker::new();
    let options = change(broker.connect_options());
    let broker_side = tokio::task::spawn_blocking(move || broker.client().recv_any());
    let refused = HvStream::connect_with(&options, ADDRESS).await;
    assert!(refused.is_err());
    broker_side.await.unwrap()
}

#[tokio::test]
async fn the_default_ring_of_a_task_is_larger() {
    let requested = |value| ClientMessage::SetOption {
        option: SocketOption::RingSize,
        value,
    };
    assert_eq!(first_message(|options| options).await, requested(1 << 20));
    let small = first_message(|options| options.ring_size(4096)).await;
    assert_eq!(small, requested(4096));
    for none in [
        first_message(|options| options.shared_memory(false)).await,
        first_message(|options| options.raw_fd(true)).await,
    ] {
        assert!(matches!(none, ClientMessage::Connect(_)), "{none:?}");
    }
}

#[tokio::test]
async fn bytes_go_both_ways_and_each_direction_ends_separately() {
    let (mut stream, side) = connected().await;
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(side.control.recv(), ClientMessage::Shutdown);
    assert_eq!(side.recv_all(), b"hello");
    side.send(b"back");
    let mut two = [0; 2];
    assert_eq!(stream.peek(&mut two).await.unwrap(), 2);
    side.control.send(&BrokerMessage::Shutdown);
    side.end_data();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "back");
    assert_eq!(
        stream.write(b"x").await.unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
    assert_eq!(
        (stream.peer_addr().unwrap(), stream.connection_id()),
        (ADDRESS, 7)
    );
    drop(stream);
    assert!(side.control.is_closed());
}

#[tokio::test]
async fn a_write_larger_than_the_socket_buffer_completes() {
    let (mut stream, side) = connected().await;
    let reader = tokio::task::spawn_blocking(move || side.recv_all());
    let bytes = vec![7; 3 << 20];
    stream.write_all(&bytes).await.unwrap();
    drop(stream);
    assert!(reader.await.unwrap() == bytes);
}

#[tokio::test]
async fn an_async_read_waits_for_the_kind_of_the_end() {
    let (mut stream, side) = connected().await;
    side.end_data();
    let mut buffer = [0; 1];
    // Cancelled once while it waits; the next read waits again.
    assert!(timeout(SHORT, stream.read(&mut buffer)).await.is_err());
    let announced = Cell::new(false);
    let read = async {
        let count = stream.read(&mut buffer).await.unwrap();
        (count, announced.get())
    };
    let (read, ()) = tokio::join!(read, async {
        tokio::time::sleep(SHORT).await;
        announced.set(true);
        side.control.send(&BrokerMessage::Shutdown);
    });
    assert_eq!(read, (0, true), "it returned before the announcement");
    assert_eq!(stream.read(&mut buffer).await.unwrap(), 0);
}

#[tokio::test]
async fn every_waiting_handle_gets_the_kind_of_the_end() {
    let broker = Broker::new();
    let (stream, side) = tokio::task::spawn_blocking(move || broker.connected())
        .await
        .unwrap();
    // Three handles on one descriptor in one runtime, and one that blocks a thread.
    let handles: Vec<_> = (0..3).map(|_| stream.try_clone().unwrap()).collect();
    let mut tasks = Vec::new();
    for handle in handles {
        let mut handle = HvStream::from_std(handle).unwrap();
        tasks.push(tokio::spawn(async move { handle.read(&mut [0]).await }));
    }
    tokio::time::sleep(SHORT).await;
    side.end_data();
    tokio::time::sleep(SHORT).await;
    side.control.send(&BrokerMessage::Shutdown);
    for task in tasks {
        assert_eq!(timeout(LONG, task).await.unwrap().unwrap().unwrap(), 0);
    }
}

#[tokio::test]
async fn a_reset_has_a_reason_and_a_dead_broker_is_a_reset() {
    let (mut stream, side) = connected().await;
    side.control.send(&BrokerMessage::Reset(disabled()));
    drop(side);
    let error = stream.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(matches!(refusal_of(&error), Some(Refusal::Disabled { .. })));
    let error = stream.write(b"x").await.unwrap_err();
    assert!(matches!(refusal_of(&error), Some(Refusal::Disabled { .. })));

    let (mut stream, side) = connected().await;
    drop(side);
    let error = stream.read(&mut [0]).await.unwrap_err();
    assert!(matches!(refusal_of(&error), Some(Refusal::Reset { .. })));
}

#[tokio::test]
async fn halves_work_independently_and_can_be_reunited() {
    let (mut stream, side) = connected().await;
    {
        let (mut read, mut write) = stream.split();
        side.send(b"x");
        let mut byte = [0; 1];
        let (read, write) = tokio::join!(read.read_exact(&mut byte), write.write_all(b"y"));
        read.unwrap();
        write.unwrap();
    }
    let (read, write) = stream.into_split();
    let stream = read.reunite(write).unwrap();
    assert!(side.control.is_idle());

    let (mut read, mut write) = stream.into_split();
    let reader = tokio::spawn(async move {
        let mut all = Vec::new();
        read.read_to_end(&mut all).await.map(|_| all)
    });
    write.write_all(b"z").await.unwrap();
    drop(write);
    assert_eq!(side.control.recv(), ClientMessage::Shutdown);
    assert_eq!(side.recv_all(), b"yz");
    side.send(b"later");
    side.control.send(&BrokerMessage::Shutdown);
    side.end_data();
    assert_eq!(reader.await.unwrap().unwrap(), b"later");
    let (other, _side) = connected().await;
    let (read, _) = other.into_split();
    let (another, _side) = connected().await;
    let (_, write) = another.into_split();
    assert!(read.reunite(write).is_err());
}

#[tokio::test]
async fn connecting_times_out_and_reports_refusals() {
    let broker = Broker::new();
    let options = broker.connect_options().timeout(SHORT);
    let start = Instant::now();
    for _ in 0..20 {
        let error = HvStream::connect_with(&options, ADDRESS).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    }
    assert!(start.elapsed() < LONG);

    let broker = Broker::new();
    let options = broker.connect_options();
    let broker_side = tokio::task::spawn_blocking(move || {
        let client = broker.client();
        client.recv();
        client.send(&BrokerMessage::Refused(disabled()));
    });
    let error = HvStream::connect_with(&options, ADDRESS).await.unwrap_err();
    assert!(matches!(refusal_of(&error), Some(Refusal::Disabled { .. })));
    broker_side.await.unwrap();
}

#[tokio::test]
async fn accept_is_cancel_safe() {
    let (listener, client) = listener().await;
    assert_eq!(
        (listener.local_addr().unwrap(), listener.backlog()),
        (ADDRESS, 5)
    );
    for connection in 0..100 {
        let mut accept = pin!(listener.accept());
        // Polled once and then dropped, as by a `select!` where another branch completes.
        let early = timeout(Duration::ZERO, accept.as_mut()).await;
        assert!(early.is_err());
        let _side = client.incoming(connection);
        if connection % 2 == 0 {
            let (stream, _) = accept.await.unwrap();
            assert_eq!(stream.connection_id(), connection);
        } else {
            let (stream, _) = listener.accept().await.unwrap();
            assert_eq!(stream.connection_id(), connection);
            assert_eq!(stream.peer().unwrap().partition(), "web");
        }
        assert_eq!(client.recv(), ClientMessage::Accepted { connection });
    }
}

#[tokio::test]
async fn a_reset_listener_reports_the_reason() {
    let (listener, client) = listener().await;
    let waiting = tokio::spawn(async move { (listener.accept().await.map(drop), listener) });
    tokio::time::sleep(SHORT).await;
    client.send(&BrokerMessage::Reset(disabled()));
    drop(client);
    let (result, listener) = waiting.await.unwrap();
    assert!(matches!(
        refusal_of(&result.unwrap_err()),
        Some(Refusal::Disabled { .. })
    ));
    let std = listener.into_std();
    assert_eq!(std.accept().unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn acknowledgements_wait_for_free_space() {
    let (listener, client) = listener().await;
    let broker = tokio::task::spawn_blocking(move || {
        client.flood(2000);
        client
    });
    for connection in 0..2000 {
        let (stream, _) = timeout(LONG, listener.accept()).await.unwrap().unwrap();
        assert_eq!(stream.connection_id(), connection);
    }
    // The next call sends the last of them.
    assert!(timeout(SHORT * 10, listener.accept()).await.is_err());
    drop(broker.await.unwrap());
}

#[tokio::test]
async fn a_task_waits_for_either_direction_and_tries() {
    let (stream, side) = connected().await;
    let both = Interest::READABLE | Interest::WRITABLE;
    assert_eq!(stream.ready(both).await.unwrap(), Ready::WRITABLE);
    let readable = timeout(SHORT, stream.ready(Interest::READABLE)).await;
    assert!(readable.is_err(), "{readable:?}");
    side.send(b"abc");
    let ready = stream.ready(Interest::READABLE).await.unwrap();
    assert!(ready.is_readable() && !ready.is_writable());
    let (mut x, mut y) = ([0; 1], [0; 5]);
    let mut slices = [IoSliceMut::new(&mut x), IoSliceMut::new(&mut y)];
    assert_eq!(stream.try_read_vectored(&mut slices).unwrap(), 3);
    assert_eq!((&x, &y[..2]), (b"a", &b"bc"[..]));
    let slices = [IoSlice::new(b"d"), IoSlice::new(b"ef")];
    assert_eq!(stream.try_write_vectored(&slices).unwrap(), 3);
    let error = stream.ready(Interest::PRIORITY).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(stream.take_error().unwrap().is_none());
    side.control.send(&BrokerMessage::Reset(disabled()));
    assert!(stream.take_error().unwrap().is_some());
}

#[tokio::test]
async fn an_operation_of_another_library_clears_the_readiness() {
    let (stream, side) = connected().await;
    side.send(b"abc");
    stream.readable().await.unwrap();
    let recv = |buffer: &mut [u8]| {
        stream.try_io(Interest::READABLE, || {
            hvsock_sys::stream::recv(&stream, buffer)
        })
    };
    let mut buffer = [0; 8];
    assert_eq!(recv(&mut buffer).unwrap(), 3);
    assert_eq!(recv(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
    // Not ready any more, so the operation is not called.
    let called = stream.try_io(Interest::READABLE, || Ok(()));
    assert_eq!(called.unwrap_err().kind(), ErrorKind::WouldBlock);
    side.send(b"d");
    stream.readable().await.unwrap();
    assert_eq!(recv(&mut buffer).unwrap(), 1);
}

#[tokio::test]
async fn code_that_gave_its_listener_away_learns_that_it_ended() {
    let (listener, client) = listener().await;
    let (ended, dropped) = (listener.ended(), listener.ended());
    let accepting = tokio::spawn(async move { listener.accept().await.map(drop) });
    client.send(&BrokerMessage::Reset(disabled()));
    assert!(accepting.await.unwrap().is_err());
    // The listener was dropped after its end.
    assert!(timeout(LONG, ended).await.unwrap().is_none());
    assert!(timeout(LONG, dropped).await.unwrap().is_none());
}

#[tokio::test]
async fn the_end_of_a_listener_has_its_reason() {
    let (listener, client) = listener().await;
    let ended = listener.ended();
    client.send(&BrokerMessage::Reset(disabled()));
    assert!(listener.accept().await.is_err());
    let error = timeout(LONG, ended).await.unwrap().expect("it has ended");
    assert!(matches!(refusal_of(&error), Some(Refusal::Disabled { .. })));
}

#[cfg(feature = "stream")]
#[tokio::test]
async fn a_stream_of_connections_ends_with_the_listener() {
    use futures_util::stream::{FusedStream, StreamExt};

    let (listener, client) = listener().await;
    let _one = client.incoming(1);
    let mut borrowed = listener.incoming();
    assert_eq!(borrowed.next().await.unwrap().unwrap().connection_id(), 1);
    assert!(!borrowed.is_terminated());
    let mut incoming = listener.into_incoming();
    let _two = client.incoming(2);
    assert_eq!(incoming.next().await.unwrap().unwrap().connection_id(), 2);
    client.send(&BrokerMessage::Reset(disabled()));
    assert!(incoming.next().await.unwrap().is_err());
    assert!(incoming.next().await.is_none() && incoming.is_terminated());
}

#[tokio::test]
async fn a_task_asks_an_older_broker_for_names_and_explanation() {
    let broker = Broker::new();
    let options = broker.connect_options().explain_refusal(true);
    let broker_side = tokio::task::spawn_blocking(move || {
        let client = broker.client();
        let ClientMessage::ConnectNamed(connect) = client.recv() else {
            panic!("no CONNECT_NAMED")
        };
        assert!(connect.flags.explain);
        let mut refused = disabled();
        refused.code = 17;
        refused.detail = "the process violated the endpoint protocol".into();
        client.send(&BrokerMessage::Refused(refused));
        let found = BrokerMessage::Found {
            guid: crate::fake::SERVICE.to_guid_bytes(),
        };
        for dry_run in [false, true] {
            let client = broker.client();
            assert!(matches!(client.recv(), ClientMessage::Lookup { .. }));
            client.send(&found);
            let ClientMessage::Connect(connect) = client.recv() else {
                panic!("no CONNECT")
            };
            assert_eq!(connect.flags.dry_run, dry_run);
            client.send(&match dry_run {
                true => BrokerMessage::Explained(disabled()),
                false => BrokerMessage::Refused(disabled()),
            });
        }
    });
    let refused = HvStream::connect_with(&options, ("parent", "Demo")).await;
    let error = refused.unwrap_err();
    assert!(matches!(refusal_of(&error), Some(Refusal::Disabled { .. })));
    let explanation = hvsock::explanation_of(&error).expect("an explanation");
    assert!(matches!(
        explanation.refusal(),
        Some(Refusal::Disabled { .. })
    ));
    broker_side.await.unwrap();
}
