//! The WinSock calls: the states that permit them, and the resulting state.

use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use hvsock::{
    AF_HYPERV, HV_PROTOCOL_RAW, HvSocket, Interest, Refusal, SOCK_STREAM, SocketOption, refusal_of,
};
use hvsock_endpoint::{self as endpoint, BrokerMessage, ClientMessage};
use hvsock_sys::errno::{
    EAFNOSUPPORT, EINVAL, EISCONN, ENOTCONN, EPROTONOSUPPORT, ESOCKTNOSUPPORT,
};

use crate::fake::{ADDRESS, Broker, BrokerSide, Client, LONG, SHORT, disabled, listening};

fn socket(broker: &Broker) -> HvSocket {
    let mut socket = HvSocket::new(AF_HYPERV, SOCK_STREAM, HV_PROTOCOL_RAW).unwrap();
    socket.set_endpoint(broker.endpoint());
    socket
}

fn errno<T>(result: io::Result<T>) -> i32 {
    let error = result.err().expect("the call should fail");
    error
        .raw_os_error()
        .unwrap_or_else(|| panic!("{error} has no errno"))
}

fn connected(broker: &Broker) -> (HvSocket, BrokerSide) {
    let mut socket = socket(broker);
    let (result, side) = broker.with_client(
        || socket.connect(ADDRESS),
        |broker| {
            let client = broker.client();
            client.recv();
            client.connect()
        },
    );
    result.unwrap();
    (socket, side)
}

fn listening_at(broker: &Broker, socket: &mut HvSocket) -> Client {
    let (result, client) = broker.with_client(
        || socket.listen(4),
        |broker| {
            let client = broker.client();
            let ClientMessage::Listen(listen) = client.recv() else {
                panic!()
            };
            assert_eq!((listen.backlog, listen.address), (4, ADDRESS));
            client.send(&listening());
            client
        },
    );
    result.unwrap();
    client
}

/// A non-blocking connect, and the broker's side of it.
fn connecting(broker: &Broker) -> (HvSocket, Client) {
    let mut socket = socket(broker);
    socket.set_nonblocking(true).unwrap();
    assert_eq!(
        socket.connect(ADDRESS).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    let client = broker.client();
    assert!(matches!(client.recv(), ClientMessage::Connect(_)));
    (socket, client)
}

#[test]
fn only_hyper_v_stream_sockets_can_be_created() {
    assert_eq!(
        errno(HvSocket::new(2, SOCK_STREAM, HV_PROTOCOL_RAW)),
        EAFNOSUPPORT
    );
    assert_eq!(
        errno(HvSocket::new(AF_HYPERV, 2, HV_PROTOCOL_RAW)),
        ESOCKTNOSUPPORT
    );
    assert_eq!(
        errno(HvSocket::new(AF_HYPERV, SOCK_STREAM, 0)),
        EPROTONOSUPPORT
    );
}

#[test]
fn a_new_socket_can_only_be_bound_once() {
    let broker = Broker::new();
    let mut socket = socket(&broker);
    assert_eq!(errno(socket.local_addr()), EINVAL);
    assert_eq!(errno(socket.peer_addr()), ENOTCONN);
    assert_eq!(errno(socket.listen(1)), EINVAL);
    assert_eq!(errno(socket.accept()), EINVAL);
    assert_eq!(errno(socket.send(b"x")), ENOTCONN);
    assert_eq!(errno(socket.recv(&mut [0])), ENOTCONN);
    assert_eq!(errno(socket.shutdown(Shutdown::Both)), ENOTCONN);
    assert_eq!(errno(socket.poll(Interest::READABLE, None)), ENOTCONN);
    assert_eq!(errno(socket.fd()), ENOTCONN);
    assert!(socket.take_error().unwrap().is_none());
    assert!(socket.peer().is_none());
    socket.bind(ADDRESS).unwrap();
    assert_eq!(socket.local_addr().unwrap(), ADDRESS);
    assert_eq!(errno(socket.bind(ADDRESS)), EINVAL);
    assert_eq!(errno(socket.into_stream()), ENOTCONN);
}

#[test]
fn accepted_sockets_inherit_the_options_of_the_listener() {
    let broker = Broker::new();
    let mut socket = socket(&broker);
    socket.bind(ADDRESS).unwrap();
    socket.set_option(SocketOption::RecvTimeout, 50).unwrap();
    let client = listening_at(&broker, &mut socket);
    socket.listen(4).unwrap();
    assert_eq!(errno(socket.bind(ADDRESS)), EINVAL);
    assert_eq!(errno(socket.connect(ADDRESS)), EINVAL);
    assert_eq!(errno(socket.send(b"x")), ENOTCONN);
    assert!(
        socket
            .poll(Interest::READABLE, Some(SHORT))
            .unwrap()
            .is_empty()
    );
    socket
        .set_option(SocketOption::ConnectedSuspend, 1)
        .unwrap();
    let option = endpoint::SocketOption::ConnectedSuspend;
    assert_eq!(client.recv(), ClientMessage::SetOption { option, value: 1 });

    let side = client.incoming(9);
    assert!(
        socket
            .poll(Interest::READABLE, Some(LONG))
            .unwrap()
            .is_readable()
    );
    let (accepted, peer) = socket.accept().unwrap();
    assert_eq!(accepted.peer_addr().unwrap(), peer);
    assert_eq!(accepted.local_addr().unwrap(), ADDRESS);
    assert_eq!(accepted.peer().unwrap().partition(), "web");
    assert_eq!(accepted.option(SocketOption::ConnectedSuspend), 1);
    assert_eq!(
        accepted.recv(&mut [0]).unwrap_err().kind(),
        ErrorKind::TimedOut
    );
    assert_eq!(accepted.send(b"hi").unwrap(), 2);
    drop(accepted);
    assert_eq!(side.recv_all(), b"hi");

    socket.set_nonblocking(true).unwrap();
    assert_eq!(socket.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    let listener = socket.into_listener().unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_connected_socket_sends_receives_and_shuts_down() {
    let broker = Broker::new();
    let (mut socket, side) = connected(&broker);
    assert_eq!(errno(socket.connect(ADDRESS)), EISCONN);
    assert_eq!(errno(socket.listen(1)), EISCONN);
    assert_eq!(errno(socket.bind(ADDRESS)), EINVAL);
    assert_eq!(socket.peer_addr().unwrap(), ADDRESS);
    side.send(b"hello");
    let mut buffer = [0; 9];
    assert_eq!(socket.recv(&mut buffer).unwrap(), 5);
    assert_eq!(socket.send(b"ok").unwrap(), 2);
    socket.shutdown(Shutdown::Write).unwrap();
    assert_eq!(socket.send(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(side.recv_all(), b"ok");
    assert!(socket.take_error().unwrap().is_none());
    side.control.send(&BrokerMessage::Reset(disabled()));
    let error = socket.take_error().unwrap().unwrap();
    assert!(matches!(refusal_of(&error), Some(Refusal::Disabled { .. })));
}

#[test]
fn options_have_their_values_and_limits() {
    let broker = Broker::new();
    let fresh = socket(&broker);
    assert_eq!(
        errno(fresh.set_option(SocketOption::ConnectTimeout, 300_001)),
        EINVAL
    );
    for option in [
        SocketOption::ConnectTimeout,
        SocketOption::ContainerPassthru,
        SocketOption::ConnectedSuspend,
        SocketOption::HighVtl,
        SocketOption::RecvTimeout,
        SocketOption::SendTimeout,
    ] {
        assert_eq!(fresh.option(option), 0);
        fresh.set_option(option, 300).unwrap();
        assert_eq!(fresh.option(option), 300);
    }
    let (socket, side) = connected(&broker);
    assert_eq!(errno(socket.set_option(SocketOption::HighVtl, 1)), EINVAL);
    assert_eq!(
        errno(socket.set_option(SocketOption::ContainerPassthru, 1)),
        EINVAL
    );
    socket
        .set_option(SocketOption::ConnectedSuspend, 7)
        .unwrap();
    let option = endpoint::SocketOption::ConnectedSuspend;
    assert_eq!(
        side.control.recv(),
        ClientMessage::SetOption { option, value: 1 }
    );
    socket.set_option(SocketOption::RecvTimeout, 10).unwrap();
    assert_eq!(
        socket.recv(&mut [0]).unwrap_err().kind(),
        ErrorKind::TimedOut
    );
    socket.set_option(SocketOption::RecvTimeout, 0).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(SHORT);
            side.send(b"x");
        });
        assert_eq!(socket.recv(&mut [0]).unwrap(), 1);
    });
}

#[test]
fn a_nonblocking_connect_becomes_writable_and_connected() {
    let broker = Broker::new();
    let (socket, client) = connecting(&broker);
    assert_eq!(errno(socket.send(b"x")), ENOTCONN);
    assert_eq!(errno(socket.local_addr()), ENOTCONN);
    assert!(socket.take_error().unwrap().is_none());
    assert!(
        socket
            .poll(Interest::WRITABLE, Some(SHORT))
            .unwrap()
            .is_empty()
    );
    let side = client.connect();
    assert!(
        socket
            .poll(Interest::WRITABLE, Some(LONG))
            .unwrap()
            .is_writable()
    );
    assert!(socket.take_error().unwrap().is_none());
    assert_eq!(socket.send(b"hi").unwrap(), 2);
    assert_eq!(
        socket.recv(&mut [0]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    side.send(b"x");
    assert!(
        socket
            .poll(Interest::READABLE, Some(LONG))
            .unwrap()
            .is_readable()
    );
    let stream = socket.into_stream().unwrap();
    assert_eq!((&stream).read(&mut [0]).unwrap(), 1);
    drop(stream);
    assert_eq!(side.recv_all(), b"hi");
}

#[test]
fn a_second_connect_reports_the_progress_of_the_first() {
    let broker = Broker::new();
    let (mut socket, client) = connecting(&broker);
    assert_eq!(
        socket.connect(ADDRESS).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    assert_eq!(errno(socket.listen(1)), EISCONN);
    let endpoint = socket.fd().unwrap().as_fd().try_clone_to_owned().unwrap();
    let _side = client.connect();
    socket.connect(ADDRESS).unwrap();
    assert_eq!(errno(socket.connect(ADDRESS)), EISCONN);
    // The descriptor to watch has changed.
    assert!(hvsock_sys::stream::send(socket.fd().unwrap(), b"x").is_ok());
    drop(endpoint);
}

#[test]
fn a_failed_nonblocking_connect_reports_its_error_once_and_can_be_retried() {
    let broker = Broker::new();
    let (mut socket, client) = connecting(&broker);
    client.send(&BrokerMessage::Refused(disabled()));
    assert!(
        socket
            .poll(Interest::WRITABLE, Some(LONG))
            .unwrap()
            .is_writable()
    );
    let error = socket.take_error().unwrap().unwrap();
    assert!(matches!(refusal_of(&error), Some(Refusal::Disabled { .. })));
    assert!(socket.take_error().unwrap().is_none());
    assert_eq!(errno(socket.send(b"x")), ENOTCONN);

    assert_eq!(
        socket.connect(ADDRESS).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    let client = broker.client();
    client.recv();
    client.send(&BrokerMessage::Refused(disabled()));
    assert!(
        socket
            .poll(Interest::WRITABLE, Some(LONG))
            .unwrap()
            .is_writable()
    );
    assert_eq!(
        socket.connect(ADDRESS).unwrap_err().kind(),
        ErrorKind::PermissionDenied
    );
    assert_eq!(errno(socket.peer_addr()), ENOTCONN);
}

#[test]
fn a_nonblocking_connect_times_out() {
    let broker = Broker::new();
    let mut socket = socket(&broker);
    socket.set_option(SocketOption::ConnectTimeout, 50).unwrap();
    socket.set_nonblocking(true).unwrap();
    let start = Instant::now();
    assert_eq!(
        socket.connect(ADDRESS).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    assert!(socket.poll(Interest::WRITABLE, None).unwrap().is_writable());
    assert!(start.elapsed() >= Duration::from_millis(50));
    assert_eq!(
        socket.take_error().unwrap().unwrap().kind(),
        ErrorKind::TimedOut
    );
}

#[test]
fn streams_and_sockets_convert_into_each_other() {
    let broker = Broker::new();
    let (stream, side) = broker.connected();
    let socket = HvSocket::from(stream);
    assert_eq!(socket.send(b"x").unwrap(), 1);
    let stream = socket.into_stream().unwrap();
    drop(stream);
    assert_eq!(side.recv_all(), b"x");
    let (listener, client) = broker.listening();
    let socket = HvSocket::from(listener);
    let _side = client.incoming(1);
    assert!(socket.accept().is_ok());
    assert_eq!(errno(socket.into_stream()), ENOTCONN);
}
