//! The semantics of sockets over loopback.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::process::Command;
use std::time::{Duration, Instant};

use hvsock::{
    AF_HYPERV, HV_PROTOCOL_RAW, HvListener, HvSocket, HvStream, Interest, Refusal, SOCK_STREAM,
    ServiceId, SockAddrHv, SocketOption, Transport, VmId,
};

use hvsock_sys::hyperv::{self, HvOption};

use crate::{has_hyper_v_sockets, refusal};

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(250);

/// A listener at an address of its own.
fn listen() -> (HvListener, SockAddrHv) {
    let address = SockAddrHv::new(VmId::LOOPBACK, ServiceId::random());
    (HvListener::bind(address).expect("a listener"), address)
}

fn pair() -> (HvStream, HvStream) {
    let (listener, address) = listen();
    let connector = HvStream::connect(address).expect("a connection");
    let (acceptor, _) = listener.accept_timeout(LONG).expect("accepted");
    for stream in [&connector, &acceptor] {
        stream.set_read_timeout(Some(LONG)).unwrap();
    }
    (connector, acceptor)
}

#[test]
fn both_ends_return_each_others_address() {
    if !has_hyper_v_sockets() {
        return;
    }
    let (listener, address) = listen();
    assert_eq!(listener.local_addr().unwrap(), address);
    let connector = HvStream::connect(address).unwrap();
    let (acceptor, peer) = listener.accept_timeout(LONG).unwrap();
    assert_eq!(connector.peer_addr().unwrap(), address);
    assert_eq!(acceptor.local_addr().unwrap(), address);
    assert_eq!(acceptor.peer_addr().unwrap(), peer);
    assert_eq!(peer.vm, VmId::LOOPBACK);
    assert_eq!(acceptor.peer().unwrap().partition(), "loopback");
    assert_eq!(connector.peer(), None);
    for stream in [&connector, &acceptor] {
        assert_eq!(stream.transport(), Transport::HyperV);
        assert_ne!(stream.connection_id(), 0);
    }
}

#[test]
fn a_winsock_program_runs_call_by_call() {
    if !has_hyper_v_sockets() {
        return;
    }
    let fresh = || HvSocket::new(AF_HYPERV, SOCK_STREAM, HV_PROTOCOL_RAW).unwrap();
    let address = SockAddrHv::new(VmId::LOOPBACK, ServiceId::random());
    let mut server = fresh();
    server.bind(address).unwrap();
    server
        .set_option(SocketOption::ConnectedSuspend, 1)
        .unwrap();
    server.listen(4).unwrap();
    server.set_nonblocking(true).unwrap();
    assert_eq!(server.accept().unwrap_err().kind(), ErrorKind::WouldBlock);

    let mut client = fresh();
    client
        .set_option(SocketOption::ConnectTimeout, 5000)
        .unwrap();
    client.set_option(SocketOption::RecvTimeout, 100).unwrap();
    client.set_nonblocking(true).unwrap();
    let pending = client.connect(address).unwrap_err();
    assert_eq!(pending.kind(), ErrorKind::WouldBlock, "{pending}");
    assert!(
        client
            .poll(Interest::WRITABLE, Some(LONG))
            .unwrap()
            .is_writable()
    );
    assert!(client.take_error().unwrap().is_none());
    client.connect(address).unwrap();
    client.set_nonblocking(false).unwrap();
    assert!(
        server
            .poll(Interest::READABLE, Some(LONG))
            .unwrap()
            .is_readable()
    );
    let (accepted, peer) = server.accept().unwrap();
    assert_eq!(accepted.peer_addr().unwrap(), peer);
    let suspend = hyperv::option(accepted.socket().unwrap(), HvOption::ConnectedSuspend);
    assert_eq!(suspend.unwrap(), 1, "it has what the listening one had");
    assert_eq!(client.send(b"hello").unwrap(), 5);
    let mut buffer = [0; 8];
    assert!(
        accepted
            .poll(Interest::READABLE, Some(LONG))
            .unwrap()
            .is_readable()
    );
    assert_eq!(accepted.recv(&mut buffer).unwrap(), 5);
    let late = client.recv(&mut buffer).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::TimedOut);
    client
        .set_option(SocketOption::ConnectedSuspend, 1)
        .unwrap();
    assert_eq!(client.option(SocketOption::ConnectedSuspend), 1);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(accepted.recv(&mut buffer).unwrap(), 0);
    assert_eq!(client.send(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[test]
fn an_explanation_claims_no_more_than_windows_reports() {
    if !has_hyper_v_sockets() {
        return;
    }
    let explained = hvsock::explain_connect((VmId::LOOPBACK, ServiceId::random())).unwrap();
    assert!(explained.would_succeed(), "{explained}");
    // Windows does not report who listens.
    assert!(explained.undecided().is_some(), "{explained}");
    assert!(!explained.to_string().contains("it would succeed"));
}

#[test]
fn a_connect_without_a_listener_is_refused_in_both_modes() {
    if !has_hyper_v_sockets() {
        return;
    }
    let address = SockAddrHv::new(VmId::LOOPBACK, ServiceId::random());
    assert_eq!(refusal(HvStream::connect(address)), Refusal::NoListener);
    let mut socket = HvSocket::new(AF_HYPERV, SOCK_STREAM, HV_PROTOCOL_RAW).unwrap();
    socket.set_nonblocking(true).unwrap();
    let pending = socket.connect(address).unwrap_err();
    assert_eq!(pending.kind(), ErrorKind::WouldBlock, "{pending}");
    assert!(
        !socket
            .poll(Interest::WRITABLE, Some(LONG))
            .unwrap()
            .is_empty()
    );
    let failed = socket.take_error().unwrap().expect("an error");
    assert_eq!(refusal::<()>(Err(failed)), Refusal::NoListener);
}

#[test]
fn an_address_in_use_or_invalid_is_refused() {
    if !has_hyper_v_sockets() {
        return;
    }
    let (_listener, address) = listen();
    assert_eq!(refusal(HvListener::bind(address)), Refusal::AddressInUse);
    for vm in [VmId::WILDCARD, VmId::BROADCAST, VmId::CHILDREN] {
        let connect = HvStream::connect((vm, ServiceId::random()));
        assert_eq!(refusal(connect), Refusal::AddressNotAvailable, "{vm}");
    }
}

#[test]
fn waiting_ends_at_its_timeout() {
    if !has_hyper_v_sockets() {
        return;
    }
    let (mut stream, _peer) = pair();
    stream.set_read_timeout(Some(SHORT)).unwrap();
    let start = Instant::now();
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert!(start.elapsed() >= SHORT);
    stream.set_write_timeout(Some(SHORT)).unwrap();
    let error = loop {
        if let Err(error) = stream.write(&[0; 65536]) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    let (listener, _) = listen();
    let error = listener.accept_timeout(SHORT).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
}

#[test]
fn a_shutdown_wakes_a_blocked_thread() {
    if !has_hyper_v_sockets() {
        return;
    }
    let (stream, _peer) = pair();
    let reader = stream.try_clone().unwrap();
    let waiting = std::thread::spawn(move || (&reader).read(&mut [0]));
    std::thread::sleep(SHORT);
    stream.shutdown(Shutdown::Read).unwrap();
    assert_eq!(waiting.join().unwrap().unwrap(), 0);
}

#[test]
fn zero_copy_is_unsupported() {
    if !has_hyper_v_sockets() {
        return;
    }
    let (stream, _peer) = pair();
    let error = stream.reserve(1).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let error = stream.fill().map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(stream.ring_stats(), None);
}

#[test]
fn a_child_reads_and_writes_to_the_end() {
    if !has_hyper_v_sockets() {
        return;
    }
    let (stream, mut peer) = pair();
    // The child copies its standard input to its standard output.
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "sockets::a_child_that_copies", "--nocapture"])
        .env(COPIES, "1");
    let child = stream.spawn(command).unwrap();
    let text: Vec<u8> = (0..300_000u32)
        .map(|n| b"\0\n\r\x1azx"[n as usize % 6])
        .collect();
    let mut writer = peer.try_clone().unwrap();
    let sent = text.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    peer.read_to_end(&mut back).unwrap();
    writing.join().unwrap();
    // The test runner of the child prints something before that.
    assert!(back.ends_with(&text), "{} bytes came back", back.len());
    assert!(child.wait().unwrap().success());
}

const COPIES: &str = "HVSOCK_TEST_COPIES";

#[test]
fn a_child_that_copies() {
    if std::env::var_os(COPIES).is_some() {
        let mut out = std::io::stdout().lock();
        std::io::copy(&mut std::io::stdin().lock(), &mut out).unwrap();
        out.flush().unwrap();
        // The test runner must print nothing after that.
        std::process::exit(0);
    }
}

#[cfg(feature = "tokio")]
#[test]
fn tasks_exchange_data_and_convert_to_blocking_streams() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    if !has_hyper_v_sockets() {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let address = SockAddrHv::new(VmId::LOOPBACK, ServiceId::random());
        let listener = hvsock::tokio::HvListener::bind(address).await.unwrap();
        let connecting = tokio::spawn(hvsock::tokio::HvStream::connect(address));
        let (mut acceptor, peer) = listener.accept().await.unwrap();
        assert_eq!(acceptor.peer_addr().unwrap(), peer);
        let mut connector = connecting.await.unwrap().unwrap();
        let sent = vec![7; 3 << 20];
        let expected = sent.clone();
        let writing = tokio::spawn(async move {
            connector.write_all(&sent).await.unwrap();
            connector.shutdown().await.unwrap();
            connector
        });
        let mut got = Vec::new();
        acceptor.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, expected);
        let connector = writing.await.unwrap().into_std();
        let acceptor = acceptor.into_std();
        connector.set_nonblocking(false).unwrap();
        acceptor.set_nonblocking(false).unwrap();
        (&acceptor).write_all(b"to a thread").unwrap();
        let mut text = [0; 11];
        (&connector).read_exact(&mut text).unwrap();
        assert_eq!(&text, b"to a thread");
    });
}

#[cfg(feature = "tokio")]
#[test]
fn a_connect_from_a_task_is_refused() {
    if !has_hyper_v_sockets() {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let address = (VmId::LOOPBACK, ServiceId::random());
    let connect = runtime.block_on(hvsock::tokio::HvStream::connect(address));
    assert_eq!(refusal(connect), Refusal::NoListener);
}
