//! LISTEN and ACCEPT of the text protocol, and calls to a Unix socket of the program.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};

use hvsock::{HvListener, ServiceId, VmId};
use hvsock_endpoint::TextReply;
use hvsock_testkit::TempFolder;
use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{PartitionEndpoint, World, refused as refused_connect, service_ref};

use crate::child::BrokerProcess;
use crate::text::{ask, client, line, refused};

const PORT: u32 = 950;

/// A listener, and its token.
#[track_caller]
fn listen(at: &PartitionEndpoint, request: &str) -> (UnixStream, String) {
    let (listener, answer) = ask(at, request);
    let token = answer.value("token");
    let token = token.unwrap_or_else(|| panic!("{request}: {answer}"));
    (listener, token.to_owned())
}

/// An ACCEPT that waits.
#[track_caller]
fn accepting(at: &PartitionEndpoint, token: &str) -> UnixStream {
    let mut client = client(at);
    client
        .write_all(format!("ACCEPT {token}\n").as_bytes())
        .expect("a line");
    client
}

#[track_caller]
fn accepted(client: &UnixStream) -> TextReply {
    TextReply::parse(line(client).as_bytes()).expect("an answer")
}

#[test]
fn a_program_takes_its_address_again_right_after_it_closed_its_listener() {
    let world = World::new();
    world.register(PORT);
    let request = format!("LISTEN loopback {PORT}");
    let options = HvListener::options().endpoint(world.host().endpoint());
    let address = (VmId::LOOPBACK, ServiceId::from_port(PORT));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // With other clients the broker accepts connections that came after the events that it handles.
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                drop(ask(&world.host(), &format!("LOOKUP Service {PORT}")));
            }
        });
        let refused = (0..600).find_map(|round| {
            let (listener, answer) = ask(&world.host(), &request);
            drop(listener);
            if answer.value("token").is_none() {
                return Some(format!("{round}: {answer}"));
            }
            // By each protocol after the other one.
            let by_library = (round % 4 == 0).then(|| options.listen(address));
            let error = by_library.and_then(Result::err)?;
            Some(format!("{round}: {error}"))
        });
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(refused, None);
    });
}

#[track_caller]
fn exchange(mut program: &UnixStream, mut peer: impl Read + Write) {
    let whole: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 251) as u8).collect();
    let mut bytes = vec![0; whole.len()];
    std::thread::scope(|scope| {
        let (whole, mut program) = (&whole, program.try_clone().expect("a duplicate"));
        scope.spawn(move || program.write_all(whole).expect("a write"));
        peer.read_exact(&mut bytes).expect("the bytes");
    });
    assert!(bytes == whole);
    peer.write_all(b"42").expect("a write");
    program.read_exact(&mut bytes[..2]).expect("the bytes");
    assert_eq!(&bytes[..2], b"42");
}

#[test]
fn programs_of_the_host_and_of_a_container_accept_connections_before_and_after_they_come() {
    let world = World::new();
    let (host, web) = (world.host(), world.container("web", None));
    world.register(PORT);
    for (at, from, request, vm) in [
        (
            &host,
            &host,
            format!("LISTEN loopback {PORT}"),
            VmId::LOOPBACK,
        ),
        (
            &host,
            &web,
            format!("LISTEN backlog=4 any Service {PORT}"),
            VmId::PARENT,
        ),
        (
            &web,
            &web,
            format!("LISTEN loopback {PORT}"),
            VmId::LOOPBACK,
        ),
    ] {
        let (listener, token) = listen(at, &request);
        for waits in [true, false] {
            let early = waits.then(|| accepting(at, &token));
            let mut peer = from.connect(vm, PORT).unwrap();
            let program = early.unwrap_or_else(|| accepting(at, &token));
            let answer = accepted(&program);
            let shown = |key| answer.value(key).unwrap_or_default().to_owned();
            assert_eq!(shown("connection"), world.connection().id.to_string());
            let is_host = at.0 == host.0;
            let pid = if is_host && from.0 == host.0 {
                std::process::id()
            } else {
                0
            };
            if is_host && from.0 == host.0 {
                assert_eq!(shown("pid"), pid.to_string(), "{answer}");
            }
            assert!(!shown("partition").is_empty());
            exchange(&program, &mut peer);
            // Each half-closes.
            program.shutdown(Shutdown::Write).unwrap();
            assert_eq!(peer.read(&mut [0]).unwrap(), 0);
            peer.write_all(b"after").unwrap();
            drop(peer);
            let mut all = String::new();
            (&program).read_to_string(&mut all).unwrap();
            assert_eq!(all, "after");
            world.has_connections(0);
        }
        drop(listener);
        eventually("the listener stays", || {
            world.handle().listeners().unwrap().is_empty()
        });
        assert_eq!(refused(at, &format!("ACCEPT {token}")).0, "no_listener");
    }
}

#[test]
fn a_guest_reaches_a_listener_of_the_text_protocol() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let port = hvsock_testkit::world::PORT;
    let (_listener, token) = listen(&world.host(), &format!("LISTEN children {port}"));
    let program = accepting(&world.host(), &token);
    let inside = hvsock_testkit::world::bounded(guest.connect(port).unwrap());
    let answer = accepted(&program);
    assert_eq!(answer.value("partition"), Some("web"), "{answer}");
    assert_eq!(answer.value("pid"), Some("0"));
    exchange(&program, &inside);
    drop(inside);
    assert_eq!((&program).read(&mut [0]).unwrap(), 0);
    world.has_connections(0);
    assert_eq!(guest.protocol_violations(), [""; 0]);
}

#[test]
fn a_guest_is_reached_by_a_line() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    world.register(5000);
    let listener = guest.listen(5000).unwrap();
    let (client, answer) = ask(&world.host(), "CONNECT web 5000");
    assert!(answer.value("connection").is_some(), "{answer}");
    let inside = hvsock_testkit::world::bounded(listener.accept(TIMEOUT).unwrap());
    exchange(&client, &inside);
    drop(client);
    assert_eq!((&inside).read(&mut [0]).unwrap(), 0);
    world.has_connections(0);
    let label = refused(&world.host(), "CONNECT web 5001").0;
    assert_eq!(label, "unregistered");
}

#[test]
fn a_token_is_good_in_its_partition_only_and_an_accept_ends_with_its_listener() {
    let world = World::new();
    let (host, web) = (world.host(), world.container("web", None));
    let (listener, token) = listen(&host, &format!("LISTEN loopback {PORT}"));
    assert_eq!(refused(&web, &format!("ACCEPT {token}")).0, "no_listener");
    let waiting = accepting(&host, &token);
    // One that leaves is not given a connection.
    drop(accepting(&host, &token));
    drop(listener);
    // It may have been waiting, or come too late.
    let told = line(&waiting);
    let is_told = ["ERR reset ", "ERR no_listener "].map(|start| told.starts_with(start));
    assert!(is_told.contains(&true), "{told}");

    // The operator ends the listener: both learn why.
    world.register(PORT);
    let (listener, token) = listen(&host, &format!("LISTEN children {PORT}"));
    let waiting = accepting(&host, &token);
    world.handle().unregister(&service_ref(PORT)).unwrap();
    assert!(line(&listener).starts_with("ERR unregistered "));
    assert!(line(&waiting).starts_with("ERR unregistered "));
    assert_eq!((&listener).read(&mut [0]).unwrap(), 0);
}

#[test]
fn connections_wait_as_far_as_the_backlog_and_accepts_as_far_as_their_limit() {
    let world = World::new();
    let host = world.host();
    let (_listener, token) = listen(&host, &format!("LISTEN backlog=2 loopback {PORT}"));
    let one = host.connect(VmId::LOOPBACK, PORT).unwrap();
    let two = host.connect(VmId::LOOPBACK, PORT).unwrap();
    let refusal = refused_connect(host.connect(VmId::LOOPBACK, PORT));
    assert_eq!(refusal, hvsock_fabric::Refusal::BacklogFull);
    let gone = accepting(&host, &token);
    accepted(&gone);
    drop((one, gone));
    let other = accepting(&host, &token);
    accepted(&other);
    exchange(&other, two);
    drop(other);
    world.has_connections(0);
    let waiting: Vec<UnixStream> = (0..256).map(|_| accepting(&host, &token)).collect();
    let label = refused(&host, &format!("ACCEPT {token}")).0;
    assert_eq!(label, "limit_reached");
    // Those that are gone make place.
    drop(waiting);
    let program = accepting(&host, &token);
    let peer = host.connect(VmId::LOOPBACK, PORT).unwrap();
    accepted(&program);
    exchange(&program, peer);
}

#[test]
fn a_listener_calls_a_socket_of_the_programs_user_back() {
    let world = World::new();
    let host = world.host();
    let folder = TempFolder::new();
    let path = folder.path().join("in coming.sock");
    let server = UnixListener::bind(&path).unwrap();
    let at = path.to_str().unwrap().replace(' ', "%20");
    let (listener, _) = listen(&host, &format!("LISTEN at={at} loopback {PORT}"));
    for _ in 0..3 {
        let peer = host.connect(VmId::LOOPBACK, PORT).unwrap();
        let (program, _) = server.accept().unwrap();
        program.set_read_timeout(Some(TIMEOUT)).unwrap();
        exchange(&program, peer);
    }
    world.has_connections(0);
    // It has no ACCEPT.
    let (_other, answer) = ask(&host, &format!("LISTEN at={at} loopback {}", PORT + 1));
    let token = answer.value("token").unwrap();
    assert_eq!(
        refused(&host, &format!("ACCEPT {token}")).0,
        "invalid_request"
    );
    // Nobody is there any more: the peer gets a reset, and the program's line says why.
    drop(server);
    let mut peer = host.connect(VmId::LOOPBACK, PORT).unwrap();
    let error = peer.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(error.to_string().contains("called back"), "{error}");
    let told = line(&listener);
    assert!(
        told.starts_with("RESET connection=") && told.contains("refused"),
        "{told}"
    );
    // What takes its place is another socket.
    std::fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    other.set_nonblocking(true).unwrap();
    let mut peer = host.connect(VmId::LOOPBACK, PORT).unwrap();
    assert_eq!(
        peer.read(&mut [0]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert_eq!(other.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(listener);
    eventually("the listener stays", || {
        world.handle().listeners().unwrap().len() <= 1
    });
}

#[test]
fn a_full_backlog_of_a_called_server_blocks_nobody() {
    let world = World::new();
    let host = world.host();
    let folder = TempFolder::new();
    let path = folder.path().join("s");
    let socket = hvsock_sys::stream::listen(&path, 0o600, None, 0).unwrap();
    let at = path.display();
    let (listener, _) = listen(&host, &format!("LISTEN at={at} loopback {PORT}"));
    let first = host.connect(VmId::LOOPBACK, PORT).unwrap();
    let mut second = host.connect(VmId::LOOPBACK, PORT).unwrap();
    assert_eq!(
        second.read(&mut [0]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert!(line(&listener).starts_with("RESET connection="));
    let program = UnixStream::from(hvsock_sys::stream::accept(&socket).unwrap().unwrap());
    program.set_nonblocking(false).unwrap();
    exchange(&program, first);
}

#[test]
fn only_a_stream_socket_of_the_user_itself_is_called_back() {
    let world = World::new();
    let (host, web) = (world.host(), world.container("web", None));
    let folder = TempFolder::new();
    let own = folder.path().join("own");
    let _own = UnixListener::bind(&own).unwrap();
    let link = folder.path().join("link");
    symlink(&own, &link).unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let foreign = folder.path().join("foreign");
    let _foreign = UnixListener::bind(&foreign).unwrap();
    let other = if rustix::process::geteuid().is_root() {
        Some(1)
    } else {
        None
    };
    let label_at = |at: &PartitionEndpoint, path: &str| {
        refused(at, &format!("LISTEN at={path} loopback {PORT}"))
    };
    let mut denied = vec![
        link,
        file,
        folder.path().join("nothing"),
        folder.path().to_owned(),
    ];
    if other.is_some() {
        std::os::unix::fs::chown(&foreign, other, None).unwrap();
        denied.push(foreign);
    }
    let mut reasons = Vec::new();
    for path in &denied {
        let path = path.to_str().unwrap();
        let (label, reason) = label_at(&host, path);
        assert_eq!(label, "denied", "{path}");
        reasons.push(reason.replace(path, ""));
    }
    // Nothing is told of what is there.
    reasons.dedup();
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    // A container's path means nothing here.
    assert_eq!(label_at(&web, own.to_str().unwrap()).0, "not_supported");
}

#[test]
fn a_socket_that_accepts_nothing_is_refused_when_the_listener_is_made() {
    let world = World::new();
    let host = world.host();
    let folder = TempFolder::new();
    let refused_at = |name: &str| {
        let path = folder.path().join(name);
        let path = path.display();
        let (label, reason) = refused(&host, &format!("LISTEN at={path} loopback {PORT}"));
        assert_eq!(label, "no_listener");
        reason.replace(&path.to_string(), "PATH")
    };
    let _datagram = UnixDatagram::bind(folder.path().join("datagram")).unwrap();
    let no_stream = "the Unix socket at PATH is no stream socket";
    assert_eq!(refused_at("datagram"), no_stream);
    drop(UnixListener::bind(folder.path().join("left")).unwrap());
    assert_eq!(refused_at("left"), "no process has the Unix socket at PATH");
    let bound = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        None,
    );
    let bound = bound.unwrap();
    let address = rustix::net::SocketAddrUnix::new(folder.path().join("bound")).unwrap();
    rustix::net::bind(&bound, &address).unwrap();
    let not_listening = "the Unix socket at PATH does not listen";
    assert_eq!(refused_at("bound"), not_listening);
    rustix::net::listen(&bound, 1).unwrap();
    let at = folder.path().join("bound");
    let request = format!("LISTEN at={} loopback {PORT}", at.display());
    let (_listener, _) = listen(&host, &request);
    // The server has seen nothing of this.
    hvsock_sys::set_nonblocking(&bound, true).unwrap();
    let client = hvsock_sys::stream::accept(&bound).unwrap();
    assert!(client.is_none());
}

#[test]
fn listeners_accepts_and_connections_of_the_text_protocol_leak_no_descriptors() {
    let folder = TempFolder::new();
    let broker = BrokerProcess::start(folder.path(), None);
    let host = broker.host();
    let turn = || {
        let (listener, token) = listen(&host, &format!("LISTEN loopback {PORT}"));
        let waiting = accepting(&host, &token);
        let (client, _) = ask(&host, &format!("CONNECT loopback {PORT}"));
        accepted(&waiting);
        exchange(&waiting, &client);
        let unaccepted = ask(&host, &format!("CONNECT loopback {PORT}"));
        drop(accepting(&host, &token));
        refused(&host, "CONNECT loopback 1");
        drop((listener, waiting, client, unaccepted));
        eventually("the listener stays", || {
            broker.client().listeners().unwrap().is_empty()
        });
    };
    turn();
    let before = broker.descriptors();
    (0..20).for_each(|_| turn());
    eventually("descriptors have leaked", || broker.descriptors() <= before);
}
