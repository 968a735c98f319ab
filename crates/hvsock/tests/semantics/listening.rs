//! Listeners: accepted connections, and the end of a listener.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::thread;
use std::time::Instant;

use hvsock::{Refusal, ServiceId, VmId, refusal_of};
use hvsock_endpoint::{Bound, BrokerMessage, ClientMessage, Listening, Refused};

use crate::fake::{ADDRESS, Broker, SHORT, disabled, incoming};

#[test]
fn a_connection_is_accepted_and_acknowledged() {
    let (listener, client) = Broker::new().listening();
    assert_eq!(listener.local_addr().unwrap(), ADDRESS);
    assert_eq!((listener.backlog(), listener.listener_id()), (5, 3));
    let side = client.incoming(11);
    let (mut stream, peer) = listener.accept().unwrap();
    assert_eq!(client.recv(), ClientMessage::Accepted { connection: 11 });
    assert_eq!((peer.vm, peer.service), (VmId::CHILDREN, ServiceId::ZERO));
    assert_eq!(stream.connection_id(), 11);
    let peer_process = stream.peer().unwrap();
    assert_eq!(
        (peer_process.partition(), peer_process.pid()),
        ("web", Some(42))
    );
    assert_eq!((peer_process.uid(), peer_process.gid()), (Some(1000), None));
    side.send(b"hi");
    side.control.send(&BrokerMessage::Shutdown);
    side.end_data();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hi");
    stream.write_all(b"ho").unwrap();
    drop(stream);
    assert_eq!(side.control.recv(), ClientMessage::Shutdown);
    assert_eq!(side.recv_all(), b"ho");
}

#[test]
fn a_listen_by_name_is_one_message_and_its_reply_has_the_address() {
    let broker = Broker::new();
    let options = broker.listen_options().backlog(9);
    let (listener, client) = broker.with_client(
        || options.listen(("any", "HV Socket Demo")),
        |broker| {
            let client = broker.client();
            let ClientMessage::ListenNamed(listen) = client.recv() else {
                panic!("no LISTEN_NAMED")
            };
            assert_eq!(listen.backlog, 9);
            let bound = Bound {
                listening: Listening {
                    backlog: 5,
                    listener: 3,
                },
                address: ADDRESS,
            };
            client.send(&BrokerMessage::Bound(bound));
            client
        },
    );
    let listener = listener.unwrap();
    assert_eq!(listener.local_addr().unwrap(), ADDRESS);
    assert_eq!((listener.backlog(), listener.listener_id()), (5, 3));
    assert!(client.is_idle() && !broker.has_client());
}

#[test]
fn accept_waits_up_to_its_timeout() {
    let (listener, client) = Broker::new().listening();
    let start = Instant::now();
    let error = listener.accept_timeout(SHORT).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(start.elapsed() >= SHORT);
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    let _side = client.incoming(1);
    listener.accept().unwrap();
    listener.set_nonblocking(false).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(SHORT);
            client.incoming(2)
        });
        listener.accept().unwrap();
    });
}

#[test]
fn every_accept_after_the_end_of_a_listener_reports_the_reason() {
    let (listener, client) = Broker::new().listening();
    let _side = client.incoming(1);
    client.send(&BrokerMessage::Reset(disabled()));
    drop(client);
    // A connection that arrived before the end is still accepted.
    let mut incoming = listener.incoming();
    incoming.next().unwrap().unwrap();
    for _ in 0..2 {
        let error = listener.accept().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(
            refusal_of(&error),
            Some(&Refusal::Disabled {
                by: "enabled = false".into()
            })
        );
    }
    incoming.next().unwrap().unwrap_err();
    assert!(incoming.next().is_none());
}

#[test]
fn every_accepting_thread_is_woken_by_the_end_of_the_listener() {
    let (listener, client) = Broker::new().listening();
    thread::scope(|scope| {
        let accepting: Vec<_> = (0..4).map(|_| scope.spawn(|| listener.accept())).collect();
        thread::sleep(SHORT);
        client.send(&BrokerMessage::Reset(disabled()));
        drop(client);
        for thread in accepting {
            let error = thread.join().unwrap().unwrap_err();
            assert!(
                matches!(refusal_of(&error), Some(Refusal::Disabled { .. })),
                "{error}"
            );
        }
    });
}

#[test]
fn a_broker_that_dies_ends_the_listener() {
    let (listener, client) = Broker::new().listening();
    drop(client);
    let error = listener.accept().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(
        error.to_string().contains("the broker went away"),
        "{error}"
    );
}

#[test]
fn a_listen_that_could_never_receive_fails() {
    let broker = Broker::new();
    let options = broker
        .listen_options()
        .backlog(9)
        .raw_fd(true)
        .connected_suspend(true);
    let (result, ()) = broker.with_client(
        || options.listen(ADDRESS),
        |broker| {
            let client = broker.client();
            assert!(matches!(client.recv(), ClientMessage::SetOption { .. }));
            let ClientMessage::Listen(listen) = client.recv() else {
                panic!()
            };
            assert!(listen.flags.raw_fd);
            assert_eq!((listen.backlog, listen.address), (9, ADDRESS));
            let refused = Refused {
                code: 1,
                errno: 111,
                detail: String::new(),
            };
            client.send(&BrokerMessage::Refused(refused));
        },
    );
    assert_eq!(
        refusal_of(&result.unwrap_err()),
        Some(&Refusal::Unregistered)
    );
}

#[test]
fn a_connection_without_its_descriptors_is_an_error_and_the_listener_goes_on() {
    let (listener, client) = Broker::new().listening();
    client.send(&incoming(1));
    client.send_with(&incoming(2), &[client.socket.as_fd()]);
    client.send_bytes(&[1, 0x85, 0, 0, 1], &[]).unwrap();
    client.send(&BrokerMessage::Shutdown);
    for _ in 0..4 {
        assert_eq!(
            listener.accept().unwrap_err().kind(),
            ErrorKind::InvalidData
        );
    }
    // Their slots in the backlog are free again.
    for connection in [1, 2] {
        assert_eq!(client.recv(), ClientMessage::Accepted { connection });
    }
    let _side = client.incoming(3);
    listener.accept().unwrap();
}

#[test]
fn a_broker_that_does_not_read_its_endpoint_does_not_stop_accepting() {
    let (listener, client) = Broker::new().listening();
    thread::scope(|scope| {
        scope.spawn(|| client.flood(2000));
        for connection in 0..2000 {
            assert_eq!(listener.accept().unwrap().0.connection_id(), connection);
        }
        // The next call sends the last of them.
        assert!(listener.accept_timeout(SHORT * 10).is_err());
    });
}
