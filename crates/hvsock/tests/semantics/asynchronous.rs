//! The pair for tokio.

use std::io::ErrorKind;
use std::pin::pin;
use std::time::{Duration, Instant};

use hvsock::tokio::{HvListener, HvStream};
use hvsock::{ConnectOptions, Refusal, refusal_of};
use hvsock_endpoint::{BrokerMessage, ClientMessage, SocketOption};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::fake::{ADDRESS, Broker, Client, LONG, SHORT, Side, disabled, listening};

/// A connection made by `HvStream::connect_with`, with the broker on a thread of its own.
async fn connected() -> (HvStream, Side) {
    let broker = Broker::new();
    let options = broker.connect_options();
    let played = tokio::task::spawn_blocking(move || {
        let client = broker.client();
        assert!(matches!(client.hear(), ClientMessage::Lookup { .. }));
        client.say(&BrokerMessage::Found {
            guid: crate::fake::SERVICE.to_guid_bytes(),
        });
        assert!(matches!(client.hear(), ClientMessage::Connect(_)));
        client.connect()
    });
    let stream = HvStream::connect_with(&options, ("parent", "Demo"))
        .await
        .unwrap();
    (stream, played.await.unwrap())
}

async fn listener() -> (HvListener, Client) {
    let broker = Broker::new();
    let options = broker.listen_options();
    let played = tokio::task::spawn_blocking(move || {
        let client = broker.client();
        client.hear();
        client.say(&listening());
        client
    });
    let listener = HvListener::bind_with(&options, ADDRESS).await.unwrap();
    (listener, played.await.unwrap())
}

/// What a task says first that connects with these options.
async fn first_words(change: impl FnOnce(ConnectOptions) -> ConnectOptions) -> ClientMessage {
    let broker = Broker::new();
    let options = change(broker.connect_options());
    let played = tokio::task::spawn_blocking(move || broker.client().hear_all());
    let refused = HvStream::connect_with(&options, ADDRESS).await;
    assert!(refused.is_err());
    played.await.unwrap()
}

#[tokio::test]
async fn a_ring_between_tasks_holds_what_memory_moves_during_a_wake_up() {
    let wish = |value| ClientMessage::SetOption {
        option: SocketOption::RingSize,
        value,
    };
    assert_eq!(first_words(|options| options).await, wish(1 << 20));
    let small = first_words(|options| options.ring_size(4096)).await;
    assert_eq!(small, wish(4096));
    for none in [
        first_words(|options| options.shared_memory(false)).await,
        first_words(|options| options.plain(true)).await,
    ] {
        assert!(matches!(none, ClientMessage::Connect(_)), "{none:?}");
    }
}

#[tokio::test]
async fn bytes_go_both_ways_and_each_way_ends_by_itself() {
    let (mut stream, side) = connected().await;
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(side.control.hear(), ClientMessage::Shutdown);
    assert_eq!(side.recv_all(), b"hello");
    side.send(b"back");
    let mut two = [0; 2];
    assert_eq!(stream.peek(&mut two).await.unwrap(), 2);
    side.control.say(&BrokerMessage::Shutdown);
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
    assert!(side.control.hears_end());
}

#[tokio::test]
async fn more_than_the_kernel_holds_goes_through() {
    let (mut stream, side) = connected().await;
    let reader = tokio::task::spawn_blocking(move || side.recv_all());
    let bytes = vec![7; 3 << 20];
    stream.write_all(&bytes).await.unwrap();
    drop(stream);
    assert!(reader.await.unwrap() == bytes);
}

#[tokio::test]
async fn the_end_waits_for_the_word_without_blocking_anyone() {
    let (mut stream, side) = connected().await;
    side.end_data();
    let mut buffer = [0; 1];
    assert!(timeout(SHORT, stream.read(&mut buffer)).await.is_err());
    assert!(timeout(SHORT, stream.read(&mut buffer)).await.is_err());
    let (read, ()) = tokio::join!(stream.read(&mut buffer), async {
        tokio::time::sleep(SHORT).await;
        side.control.say(&BrokerMessage::Shutdown);
    });
    assert_eq!(read.unwrap(), 0);
    assert_eq!(stream.read(&mut buffer).await.unwrap(), 0);
}

#[tokio::test]
async fn every_handle_that_waits_for_the_word_gets_it() {
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
    side.control.say(&BrokerMessage::Shutdown);
    for task in tasks {
        assert_eq!(timeout(LONG, task).await.unwrap().unwrap().unwrap(), 0);
    }
}

#[tokio::test]
async fn a_reset_says_why_and_a_dead_broker_is_one() {
    let (mut stream, side) = connected().await;
    side.control.say(&BrokerMessage::Reset(disabled()));
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
async fn halves_work_apart_and_can_be_reunited() {
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
    assert!(side.control.hears_nothing());

    let (mut read, mut write) = stream.into_split();
    let reader = tokio::spawn(async move {
        let mut all = Vec::new();
        read.read_to_end(&mut all).await.map(|_| all)
    });
    write.write_all(b"z").await.unwrap();
    drop(write);
    assert_eq!(side.control.hear(), ClientMessage::Shutdown);
    assert_eq!(side.recv_all(), b"yz");
    side.send(b"later");
    side.control.say(&BrokerMessage::Shutdown);
    side.end_data();
    assert_eq!(reader.await.unwrap().unwrap(), b"later");
    let (other, _side) = connected().await;
    let (read, _) = other.into_split();
    let (another, _side) = connected().await;
    let (_, write) = another.into_split();
    assert!(read.reunite(write).is_err());
}

#[tokio::test]
async fn connecting_is_bounded_and_refusals_arrive() {
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
    let played = tokio::task::spawn_blocking(move || {
        let client = broker.client();
        client.hear();
        client.say(&BrokerMessage::Refused(disabled()));
    });
    let error = HvStream::connect_with(&options, ADDRESS).await.unwrap_err();
    assert!(matches!(refusal_of(&error), Some(Refusal::Disabled { .. })));
    played.await.unwrap();
}

#[tokio::test]
async fn accepting_can_be_cancelled_and_loses_nothing() {
    let (listener, client) = listener().await;
    assert_eq!(
        (listener.local_addr().unwrap(), listener.backlog()),
        (ADDRESS, 5)
    );
    for connection in 0..100 {
        let mut accept = pin!(listener.accept());
        // Polled once and then dropped, as by a `select!` that another branch wins.
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
        assert_eq!(client.hear(), ClientMessage::Accepted { connection });
    }
}

#[tokio::test]
async fn a_listener_that_is_cut_says_why() {
    let (listener, client) = listener().await;
    let waiting = tokio::spawn(async move { (listener.accept().await.map(drop), listener) });
    tokio::time::sleep(SHORT).await;
    client.say(&BrokerMessage::Reset(disabled()));
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
async fn acknowledgements_that_find_no_room_are_sent_later() {
    let (listener, client) = listener().await;
    let broker = tokio::task::spawn_blocking(move || {
        client.flood(2000);
        client
    });
    for connection in 0..2000 {
        let (stream, _) = timeout(LONG, listener.accept()).await.unwrap().unwrap();
        assert_eq!(stream.connection_id(), connection);
    }
    // The last of them go out with the next call.
    assert!(timeout(SHORT * 10, listener.accept()).await.is_err());
    drop(broker.await.unwrap());
}
