//! The behaviour of the back-end besides data transfer, in a guest without a vsock transport to a
//! host.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use hvsock::{
    AF_HYPERV, ElementName, Endpoint, Fix, HV_PROTOCOL_RAW, HvListener, HvSocket, HvStream,
    Interest, Lease, NoRegistry, Refusal, SOCK_STREAM, ServiceId, SockAddrHv, SocketOption,
    ToHvAddr, Transport, VmId, fix_of, refusal_of,
};
use hvsock_address::SockAddrVm;
use hvsock_sys::vsock;
use hvsock_testkit::conformance::Trial;
use tokio::io::AsyncWriteExt;

use crate::async_stream::RUNTIME;

const LONG: Duration = Duration::from_secs(30);

/// A test with a name, which fails by a panic.
pub fn trial(name: &str, test: fn()) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}

/// The tests without the loopback module.
pub fn before_loopback() -> Vec<Trial> {
    vec![
        trial(
            "without_loopback_the_error_names_the_module",
            without_loopback_the_error_names_the_module,
        ),
        trial(
            "a_machine_without_a_transport_has_no_parent",
            a_machine_without_a_transport_has_no_parent,
        ),
        trial(
            "without_a_host_the_error_says_to_start_a_broker",
            without_a_host_the_error_says_to_start_a_broker,
        ),
    ]
}

/// The tests with the loopback module.
pub fn with_loopback() -> Vec<Trial> {
    vec![
        trial("names_need_a_registry", names_need_a_registry),
        trial(
            "a_connect_without_a_listener_is_refused_before_its_timeout",
            a_connect_without_a_listener_is_refused_before_its_timeout,
        ),
        trial("a_port_has_one_listener", a_port_has_one_listener),
        trial(
            "both_ends_return_their_addresses",
            both_ends_return_their_addresses,
        ),
        trial(
            "a_service_off_the_template_has_an_alias_port",
            a_service_off_the_template_has_an_alias_port,
        ),
        trial(
            "a_nonblocking_connect_becomes_readable",
            a_nonblocking_connect_becomes_readable,
        ),
        trial(
            "a_child_process_gets_the_connection_itself",
            a_child_process_gets_the_connection_itself,
        ),
        trial(
            "sockets_are_taken_from_descriptors",
            sockets_are_taken_from_descriptors,
        ),
        trial(
            "a_service_manager_passes_listeners",
            a_service_manager_passes_listeners,
        ),
        trial(
            "options_of_a_broker_are_ignored_or_unsupported",
            options_of_a_broker_are_ignored_or_unsupported,
        ),
        trial(
            "a_waiting_writer_learns_that_writing_is_closed",
            a_waiting_writer_learns_that_writing_is_closed,
        ),
        trial(
            "only_the_host_can_explain_its_decision",
            only_the_host_can_explain_its_decision,
        ),
    ]
}

fn connect(address: impl ToHvAddr) -> std::io::Result<HvStream> {
    let options = HvStream::options().endpoint(Endpoint::of_vsock());
    options.connect(address)
}

fn listen(address: impl ToHvAddr) -> std::io::Result<HvListener> {
    let options = HvListener::options().endpoint(Endpoint::of_vsock());
    options.listen(address)
}

fn without_loopback_the_error_names_the_module() {
    for error in [
        connect((VmId::LOOPBACK, ServiceId::from_port(1))).unwrap_err(),
        listen((VmId::LOOPBACK, ServiceId::from_port(1))).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
        assert_eq!(refusal_of(&error), Some(&Refusal::AddressNotAvailable));
        let module = "vsock_loopback".to_owned();
        assert_eq!(fix_of(&error), Some(Fix::LoadModule { module }));
    }
}

fn a_machine_without_a_transport_has_no_parent() {
    for error in [
        connect(("parent", 1)).unwrap_err(),
        listen(("parent", 1)).unwrap_err(),
    ] {
        assert_eq!(refusal_of(&error), Some(&Refusal::NotReachable));
        assert!(error.to_string().contains("virtio-vsock"), "{error}");
    }
}

/// The error says that a broker is missing.
fn without_a_host_the_error_says_to_start_a_broker() {
    let error = HvStream::connect(("loopback", 1)).unwrap_err();
    assert_eq!(fix_of(&error), Some(Fix::StartBroker));
}

fn names_need_a_registry() {
    let vsock = Endpoint::of_vsock();
    let name: ElementName = "HV Socket Demo".parse().unwrap();
    for error in [
        connect(("parent", "HV Socket Demo")).unwrap_err(),
        listen(("any", "HV Socket Demo")).unwrap_err(),
        connect(("web", 1)).unwrap_err(),
        vsock.service_id(&name).unwrap_err(),
        vsock.vm_id(&"web".parse().unwrap()).unwrap_err(),
        Lease::register_at(&vsock, name.as_str(), ServiceId::random(), "").unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.get_ref().unwrap().is::<NoRegistry>(), "{error}");
    }
}

fn a_connect_without_a_listener_is_refused_before_its_timeout() {
    // A timeout would be `TimedOut`.
    let error = connect(("loopback", 4000)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(refusal_of(&error), Some(&Refusal::NoListener));
}

fn a_port_has_one_listener() {
    let first = listen(("any", 4001)).unwrap();
    for vm in ["any", "loopback"] {
        let error = listen((vm, 4001)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert_eq!(refusal_of(&error), Some(&Refusal::AddressInUse));
    }
    drop(first);
    listen(("loopback", 4001)).unwrap();
}

fn both_ends_return_their_addresses() {
    let service = ServiceId::from_port(4002);
    let listener = listen((VmId::WILDCARD, service)).unwrap();
    let bound = SockAddrHv::new(VmId::WILDCARD, service);
    assert_eq!(listener.local_addr().unwrap(), bound);
    let near = connect((VmId::LOOPBACK, service)).unwrap();
    let (far, from) = listener.accept_timeout(LONG).unwrap();
    let asked = SockAddrHv::new(VmId::LOOPBACK, service);
    assert_eq!(near.peer_addr().unwrap(), asked);
    assert_eq!(near.local_addr().unwrap(), from);
    assert_eq!(far.local_addr().unwrap(), bound);
    assert_eq!(far.peer_addr().unwrap(), from);
    assert_eq!(from.vm, VmId::LOOPBACK);
    assert!(from.service.port().is_some());
    let peer = far.peer().unwrap();
    assert_eq!((peer.partition(), peer.pid()), ("loopback", None));
    assert!(near.peer().is_none());
    assert_ne!(near.connection_id(), far.connection_id());
    assert_ne!(listener.listener_id(), 0);
}

fn a_service_off_the_template_has_an_alias_port() {
    let service = ServiceId::random();
    let alias = ServiceId::from_port(service.vsock_alias().unwrap());
    let listener = listen((VmId::WILDCARD, service)).unwrap();
    for name in [service, alias] {
        let mut near = connect((VmId::LOOPBACK, name)).unwrap();
        let (mut far, _) = listener.accept_timeout(LONG).unwrap();
        near.write_all(b"hi").unwrap();
        drop(near);
        let mut text = String::new();
        far.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hi");
    }
}

fn a_nonblocking_connect_becomes_readable() {
    let service = ServiceId::from_port(4004);
    let listener = listen((VmId::LOOPBACK, service)).unwrap();
    let mut socket = HvSocket::new(AF_HYPERV, SOCK_STREAM, HV_PROTOCOL_RAW).unwrap();
    socket.set_endpoint(Endpoint::of_vsock());
    socket.set_nonblocking(true).unwrap();
    let address = SockAddrHv::new(VmId::LOOPBACK, service);
    let pending = socket.connect(address).unwrap_err();
    assert_eq!(pending.kind(), ErrorKind::WouldBlock);
    let ready = socket.poll(Interest::WRITABLE, Some(LONG)).unwrap();
    assert!(ready.is_writable());
    assert!(socket.take_error().unwrap().is_none());
    socket.connect(address).unwrap();
    let (mut far, _) = listener.accept_timeout(LONG).unwrap();
    assert_eq!(socket.send(b"x").unwrap(), 1);
    far.read_exact(&mut [0]).unwrap();
    let nothing = socket.recv(&mut [0]).unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::WouldBlock);

    drop(listener);
    let mut socket = HvSocket::new(AF_HYPERV, SOCK_STREAM, HV_PROTOCOL_RAW).unwrap();
    socket.set_endpoint(Endpoint::of_vsock());
    socket.set_nonblocking(true).unwrap();
    let mut error = socket.connect(address).unwrap_err();
    if error.kind() == ErrorKind::WouldBlock {
        socket.poll(Interest::WRITABLE, Some(LONG)).unwrap();
        error = socket.take_error().unwrap().unwrap();
    }
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
}

fn a_child_process_gets_the_connection_itself() {
    let listener = listen(("loopback", 4005)).unwrap();
    let mut near = connect(("loopback", 4005)).unwrap();
    let (far, _) = listener.accept_timeout(LONG).unwrap();
    let fds = far.into_owned_fds().unwrap();
    let (input, output) = (fds.data.try_clone().unwrap(), fds.data);
    let mut cat = Command::new("cat")
        .stdin(input)
        .stdout(output)
        .spawn()
        .unwrap();
    near.write_all(b"there and back").unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    near.read_to_string(&mut text).unwrap();
    assert_eq!(text, "there and back");
    assert!(cat.wait().unwrap().success());
}

/// A listening socket of the kernel, as another program creates it.
fn foreign_listener(port: u32) -> OwnedFd {
    let socket = vsock::socket().unwrap();
    let address = SockAddrVm::new(SockAddrVm::CID_ANY, port);
    vsock::bind(&socket, &address.to_bytes()).unwrap();
    vsock::listen(&socket, 8).unwrap();
    hvsock_sys::set_nonblocking(&socket, false).unwrap();
    socket
}

fn sockets_are_taken_from_descriptors() {
    let listener = HvListener::try_from(foreign_listener(4007)).unwrap();
    let service = ServiceId::from_port(4007);
    let local = SockAddrHv::new(VmId::WILDCARD, service);
    assert_eq!(listener.local_addr().unwrap(), local);
    let near = connect(("loopback", 4007)).unwrap();
    let (mut far, _) = listener.accept_timeout(LONG).unwrap();
    let mut near = HvStream::try_from(near.into_owned_fds().unwrap().data).unwrap();
    assert_eq!(
        near.peer_addr().unwrap(),
        SockAddrHv::new(VmId::LOOPBACK, service)
    );
    near.write_all(b"there").unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    far.read_to_string(&mut text).unwrap();
    assert_eq!(text, "there");
    // Each of the wrong kind is an error.
    let error = HvStream::try_from(foreign_listener(4008)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let error = HvListener::try_from(far.into_owned_fds().unwrap().data).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let error = HvStream::try_from(vsock::socket().unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotConnected);
}

/// This program as a service that a service manager started.
pub fn activated() -> ExitCode {
    let mut passed = hvsock::listen_fds().unwrap();
    assert_eq!(hvsock::listen_fds().unwrap().len(), 0);
    let second = passed.pop().unwrap();
    let first = passed.pop().unwrap();
    assert_eq!((first.name(), second.name()), ("web", "unknown"));
    let error = HvListener::try_from(second).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let listener = HvListener::try_from(first).unwrap();
    let (mut stream, _) = listener.accept_timeout(LONG).unwrap();
    stream.write_all(b"activated").unwrap();
    ExitCode::SUCCESS
}

fn a_service_manager_passes_listeners() {
    let listener = foreign_listener(4009);
    let script = "exec 3<&0 4<&1; \
                  LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=web exec \"$0\" </dev/null >/dev/null";
    let this = std::env::current_exe().unwrap();
    let (pipe, _reader) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut service = Command::new("sh")
        .args(["-c", script])
        .arg(this)
        .env(super::STAGE, super::ACTIVATED)
        .stdin(listener.try_clone().unwrap())
        .stdout(OwnedFd::from(pipe))
        .spawn()
        .unwrap();
    drop(listener);
    let mut text = String::new();
    let mut stream = connect(("loopback", 4009)).unwrap();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "activated");
    assert!(service.wait().unwrap().success());
}

fn options_of_a_broker_are_ignored_or_unsupported() {
    let vsock = Endpoint::of_vsock();
    let listener = HvListener::options()
        .endpoint(&vsock)
        .ring_size(4096)
        .connected_suspend(true)
        .listen(("loopback", 4006))
        .unwrap();
    let near = HvStream::options()
        .endpoint(&vsock)
        .shared_memory(false)
        .container_passthru(true)
        .high_vtl(true)
        .connect(("loopback", 4006))
        .unwrap();
    let (mut far, _) = listener.accept_timeout(LONG).unwrap();
    assert_eq!(near.transport(), Transport::Vsock);
    near.set_connected_suspend(true).unwrap();
    near.set_spin(Duration::ZERO);
    assert!(near.ring_stats().is_none());
    assert_eq!(near.reserve(1).unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(near.fill().unwrap_err().kind(), ErrorKind::Unsupported);
    // An empty write does not end the data; it fails once the peer has stopped reading.
    (&near).write_all(b"seen twice").unwrap();
    assert_eq!((&near).write(b"").unwrap(), 0);
    let mut bytes = [0; 10];
    assert_eq!(far.peek(&mut bytes).unwrap(), 10);
    far.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"seen twice");
    far.shutdown(Shutdown::Read).unwrap();
    let deadline = Instant::now() + LONG;
    while (&near).write(b"").is_ok() {
        assert!(
            Instant::now() < deadline,
            "the end of the peer is never seen"
        );
    }
    let socket = HvSocket::from(near);
    socket
        .set_option(SocketOption::ConnectedSuspend, 1)
        .unwrap();
    socket.set_option(SocketOption::RecvTimeout, 20).unwrap();
    let error = socket.recv(&mut bytes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
}

/// The kernel's readiness for writing does not signal it.
fn a_waiting_writer_learns_that_writing_is_closed() {
    let listener = listen(("loopback", 4007)).unwrap();
    let full = || {
        let near = connect(("loopback", 4007)).unwrap();
        let (mut far, _) = listener.accept_timeout(LONG).unwrap();
        // Unread data keeps the connection open after the peer has closed it.
        far.write_all(b"unread").unwrap();
        near.set_nonblocking(true).unwrap();
        while (&near).write(&[0; 65_536]).is_ok() {}
        (near, far)
    };
    for how in [Some(Shutdown::Read), None] {
        let end = |far: HvStream| match how {
            Some(how) => far.shutdown(how).map(|()| Some(far)).unwrap(),
            None => None,
        };
        let (near, far) = full();
        let short = Some(Duration::from_millis(300));
        assert!(near.poll(Interest::WRITABLE, short).unwrap().is_empty());
        let _far = end(far);
        let ready = near.poll(Interest::WRITABLE, Some(LONG)).unwrap();
        assert!(ready.is_writable(), "not before the timeout");

        let (near, far) = full();
        RUNTIME.block_on(async {
            let mut near = hvsock::tokio::HvStream::from_std(near).unwrap();
            let mut written = std::pin::pin!(near.write_all(&[0; 1 << 20]));
            let short = Duration::from_millis(300);
            assert!(tokio::time::timeout(short, &mut written).await.is_err());
            let _far = end(far);
            let written = tokio::time::timeout(LONG, written).await;
            let error = written.expect("before the timeout").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        });
        let (near, far) = full();
        RUNTIME.block_on(async {
            let near = hvsock::tokio::HvStream::from_std(near).unwrap();
            let mut writable = std::pin::pin!(near.writable());
            let short = Duration::from_millis(300);
            assert!(tokio::time::timeout(short, &mut writable).await.is_err());
            let _far = end(far);
            let writable = tokio::time::timeout(LONG, writable).await;
            writable.expect("before the timeout").unwrap();
        });
    }
}

fn only_the_host_can_explain_its_decision() {
    let options = HvStream::options().endpoint(Endpoint::of_vsock());
    let explanation = options.explain((VmId::random(), ServiceId::from_port(1)));
    assert_eq!(explanation.unwrap().refusal(), Some(&Refusal::NotReachable));
    let error = options.explain(("loopback", 1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("no broker"), "{error}");
}
