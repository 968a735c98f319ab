//! The host's side with Unix sockets in place of the kernel's `AF_VSOCK`: the port or CID is in the name of a
//! socket. What the kernel itself does is tested in a virtual machine that plays the host.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hvsock_address::ServiceId;
use hvsock_fabric::{ConnectionId, PartitionState, Refusal};
use hvsock_sys::{errno, stream};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, acceptfrom_with, bind, connect,
    getpeername, getsockname, listen, socket_with,
};

mod handover;

use super::host::{CidTaken, KernelHost, MAX_REQUESTS};
use super::sockets::{PeerAddress, Sockets};
use crate::data_path::ReportSender;
use crate::guest_link::{GuestRequest, LinkEvent, OfferedService, RequestId, Service, Stranger};

const WAIT: Duration = Duration::from_secs(30);

/// The machine: which guests there are.
#[derive(Clone)]
struct Machine(Arc<Inner>);

struct Inner {
    name: String,
    guests: Mutex<BTreeSet<u32>>,
    /// Guests that do not answer.
    silent: Mutex<BTreeSet<u32>>,
    next_port: AtomicU32,
    has_no_vhost: AtomicBool,
    /// How many searches for the holder of a port find none.
    fruitless: AtomicU32,
}

fn unix() -> OwnedFd {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap()
}

impl Machine {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(Arc::new(Inner {
            name: format!("hvsock-vsock-{}-{number}", std::process::id()),
            guests: Mutex::new([42, 43].into()),
            silent: Mutex::default(),
            next_port: AtomicU32::new(1025),
            has_no_vhost: AtomicBool::new(false),
            fruitless: AtomicU32::new(0),
        }))
    }

    fn address(&self, part: &str) -> SocketAddrUnix {
        let name = format!("{}-{part}", self.0.name);
        SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap()
    }

    /// A connect of a guest, or of anybody with this CID, to a port of the host.
    fn connect_from(&self, cid: u32, port: u32) -> io::Result<OwnedFd> {
        let own = self.0.next_port.fetch_add(1, Ordering::Relaxed);
        let socket = unix();
        bind(&socket, &self.address(&format!("from-{cid}-{own}")))?;
        connect(&socket, &self.address(&format!("host-{port}")))?;
        hvsock_sys::set_nonblocking(&socket, false)?;
        stream::set_recv_timeout(&socket, Some(WAIT))?;
        Ok(socket)
    }

    /// A listener in a guest.
    fn listen_in(&self, cid: u32, port: u32) -> OwnedFd {
        let socket = unix();
        bind(&socket, &self.address(&format!("guest-{cid}-{port}"))).unwrap();
        listen(&socket, 16).unwrap();
        socket
    }

    /// Another process of the host takes a port.
    fn squat(&self, port: u32) -> io::Result<OwnedFd> {
        let socket = unix();
        bind(&socket, &self.address(&format!("host-{port}")))?;
        Ok(socket)
    }
}

impl Sockets for Machine {
    fn bind(&self, port: u32) -> io::Result<OwnedFd> {
        self.squat(port)
    }

    fn listen(&self, socket: &OwnedFd) -> io::Result<()> {
        Ok(listen(socket, 4096)?)
    }

    fn accept(&self, listener: &OwnedFd) -> io::Result<Option<(OwnedFd, PeerAddress)>> {
        let (socket, peer) = match acceptfrom_with(listener, SocketFlags::CLOEXEC) {
            Ok(accepted) => accepted,
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let peer = SocketAddrUnix::try_from(peer.unwrap())?;
        let name = String::from_utf8_lossy(peer.abstract_name().unwrap()).into_owned();
        let mut numbers = name.rsplit('-').map(|part| part.parse().unwrap_or(0));
        let (port, cid) = (numbers.next().unwrap(), numbers.next().unwrap());
        Ok(Some((socket, PeerAddress { cid, port })))
    }

    fn port_of(&self, socket: &OwnedFd) -> io::Result<u32> {
        let address = SocketAddrUnix::try_from(getsockname(socket)?)?;
        let name = String::from_utf8_lossy(address.abstract_name().unwrap()).into_owned();
        let port = name.rsplit('-').next().unwrap();
        port.parse().map_err(|_| io::ErrorKind::InvalidData.into())
    }

    fn namespace(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn serves_guests(&self) -> bool {
        !self.0.has_no_vhost.load(Ordering::Relaxed)
    }

    fn connect(&self, cid: u32, port: u32, _: Duration) -> io::Result<OwnedFd> {
        if !self.0.guests.lock().unwrap().contains(&cid) {
            return Err(io::Error::from_raw_os_error(errno::ENODEV));
        }
        let socket = unix();
        if !self.0.silent.lock().unwrap().contains(&cid) {
            connect(&socket, &self.address(&format!("guest-{cid}-{port}")))?;
        }
        Ok(socket)
    }

    fn connected(&self, socket: &OwnedFd) -> io::Result<bool> {
        Ok(getpeername(socket).is_ok())
    }

    fn holder(&self, _: u32) -> Option<String> {
        let left = &self.0.fruitless;
        let one_less = |left: u32| left.checked_sub(1);
        let is_fruitless = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
        is_fruitless
            .is_err()
            .then(|| "process 7 (squatter) of the user 1000".to_owned())
    }
}

struct World {
    machine: Machine,
    host: Arc<KernelHost>,
}

struct Vm {
    cid: u32,
    events: Receiver<LinkEvent>,
}

impl World {
    fn new() -> Self {
        let machine = Machine::new();
        let host = Arc::new(KernelHost::start(Box::new(machine.clone())).unwrap());
        Self { machine, host }
    }

    fn vm(&self, cid: u32) -> Vm {
        let (sender, events) = mpsc::channel();
        let sender = ReportSender::new(move |event| {
            let _ = sender.send(event);
        });
        self.host.add(cid, sender, false).unwrap();
        Vm { cid, events }
    }

    fn offer(&self, vm: &Vm, services: &[(u32, bool)]) {
        let services = services.iter().map(|(port, listening)| OfferedService {
            service: ServiceId::from_port(*port),
            port: Some(*port),
            listening: *listening,
        });
        self.host.set_services(vm.cid, services.collect());
    }

    fn connect(&self, vm: &Vm, port: u32, id: u64, timeout: Duration) {
        self.host
            .connect(vm.cid, port, ConnectionId::from_u64(id), timeout);
    }
}

impl Vm {
    fn next(&self) -> LinkEvent {
        self.events.recv_timeout(WAIT).expect("an event")
    }

    fn request(&self) -> (RequestId, GuestRequest) {
        match self.next() {
            LinkEvent::Request(id, request) => (id, request),
            other => panic!("{other:?}"),
        }
    }

    fn stranger(&self) -> Stranger {
        match self.next() {
            LinkEvent::Stranger(stranger) => stranger,
            other => panic!("{other:?}"),
        }
    }

    fn failed(&self, id: u64) -> Refusal {
        match self.next() {
            LinkEvent::Failed(failed, refusal) if failed.as_u64() == id => refusal,
            other => panic!("{other:?}"),
        }
    }

    fn is_silent(&self) -> bool {
        self.events.try_recv().is_err()
    }
}

fn is_refused(connected: io::Result<OwnedFd>) -> bool {
    matches!(connected, Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}

fn is_closed(socket: &OwnedFd) -> bool {
    matches!(stream::recv(socket, &mut [0]), Ok(0))
}

#[test]
fn a_service_that_nobody_listens_to_is_refused_and_its_port_stays_the_brokers() {
    let world = World::new();
    let vm = world.vm(42);
    for _ in 0..3 {
        world.offer(&vm, &[(5000, false)]);
        assert!(is_refused(world.machine.connect_from(42, 5000)));
        let error = world.machine.squat(5000).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        world.offer(&vm, &[(5000, true)]);
        let guest = world.machine.connect_from(42, 5000).unwrap();
        let (id, request) = vm.request();
        assert_eq!(request.service, Service::Port(5000));
        assert!(request.source_port.is_some() && request.identity.is_none());
        let socket = request.socket.unwrap();
        stream::send(&guest, b"hello").unwrap();
        assert_eq!(stream::recv(&socket, &mut [0; 8]).unwrap(), 5);
        world.host.answered(42, id);
    }
    world.offer(&vm, &[]);
    assert!(is_refused(world.machine.connect_from(42, 5000)));
    assert!(world.machine.squat(5000).is_ok());
}

#[test]
fn a_connection_of_nobodys_cid_is_closed_and_reported() {
    let world = World::new();
    let vm = world.vm(42);
    world.offer(&vm, &[(5000, true)]);
    // A VM that is no partition; a process of the host; the host of this machine.
    for cid in [77, 1, 2] {
        let socket = world.machine.connect_from(cid, 5000).unwrap();
        assert!(is_closed(&socket), "{cid}");
        let stranger = vm.stranger();
        assert_eq!(
            (stranger.cid, stranger.port, stranger.count),
            (cid, 5000, 1)
        );
    }
    assert!(vm.is_silent());
}

#[test]
fn the_process_that_has_a_port_is_named_until_it_leaves() {
    let world = World::new();
    let vm = world.vm(42);
    let squatter = world.machine.squat(5000).unwrap();
    world.offer(&vm, &[(5000, true), (5001, true)]);
    let LinkEvent::PortProblem(5000, Some(problem)) = vm.next() else {
        panic!("no problem");
    };
    let text = problem.text;
    assert_eq!(problem.refusal, Refusal::AddressInUse);
    assert!(text.contains("process 7 (squatter)"), "{text}");
    // The other port works.
    let _guest = world.machine.connect_from(42, 5001).unwrap();
    vm.request();
    drop(squatter);
    assert!(matches!(vm.next(), LinkEvent::PortProblem(5000, None)));
    let _guest = world.machine.connect_from(42, 5000).unwrap();
    vm.request();
}

#[test]
fn a_process_that_is_not_found_in_time_is_searched_again() {
    let world = World::new();
    let vm = world.vm(42);
    let squatter = world.machine.squat(5000).unwrap();
    world.machine.0.fruitless.store(2, Ordering::Relaxed);
    world.offer(&vm, &[(5000, true)]);
    let text = || match vm.next() {
        LinkEvent::PortProblem(5000, Some(problem)) => problem.text,
        other => panic!("{other:?}"),
    };
    let unnamed = text();
    assert!(unnamed.contains("another process"), "{unnamed}");
    // The second search finds nothing either, which is not told.
    let named = text();
    assert!(named.contains("process 7 (squatter)"), "{named}");
    drop(squatter);
    assert!(matches!(vm.next(), LinkEvent::PortProblem(5000, None)));
}

#[test]
fn a_port_that_is_wanted_no_more_is_no_problem_any_more() {
    let world = World::new();
    let (vm, other) = (world.vm(42), world.vm(43));
    let _squatter = world.machine.squat(5000).unwrap();
    world.offer(&vm, &[(5000, true)]);
    assert!(matches!(vm.next(), LinkEvent::PortProblem(5000, Some(_))));
    world.offer(&vm, &[]);
    assert!(matches!(vm.next(), LinkEvent::PortProblem(5000, None)));
    assert!(other.is_silent());
}

#[test]
fn vms_share_a_port_and_each_gets_its_own_connections() {
    let world = World::new();
    let (one, other) = (world.vm(42), world.vm(43));
    assert_eq!(
        world.host.add(42, ReportSender::new(|_| ()), false),
        Err(CidTaken)
    );
    world.offer(&one, &[(5000, true)]);
    world.offer(&other, &[(5000, true)]);
    let _a = world.machine.connect_from(43, 5000).unwrap();
    other.request();
    let _b = world.machine.connect_from(42, 5000).unwrap();
    one.request();
    world.host.remove(42);
    let _c = world.machine.connect_from(43, 5000).unwrap();
    other.request();
    // Its CID is now nobody's.
    let late = world.machine.connect_from(42, 5000).unwrap();
    assert!(is_closed(&late));
    assert_eq!(other.stranger().cid, 42);
    world.host.remove(43);
    assert!(is_refused(world.machine.connect_from(43, 5000)));
}

#[test]
fn a_guest_that_floods_has_bounded_requests_and_others_are_served() {
    let world = World::new();
    let (hostile, other) = (world.vm(42), world.vm(43));
    world.offer(&hostile, &[(5000, true)]);
    world.offer(&other, &[(5000, true)]);
    let mut sockets = Vec::new();
    let mut requests = Vec::new();
    for _ in 0..3 * MAX_REQUESTS {
        // A full backlog makes the guest wait, as the kernel's does.
        while let Ok(LinkEvent::Request(id, request)) = hostile.events.try_recv() {
            requests.push((id, request));
        }
        if let Ok(socket) = world.machine.connect_from(42, 5000) {
            sockets.push(socket);
        }
    }
    let _guest = world.machine.connect_from(43, 5000).unwrap();
    let (_, request) = other.request();
    assert!(request.socket.is_some());
    let mut faults = 0;
    while let Ok(event) = hostile.events.recv_timeout(Duration::from_millis(200)) {
        match event {
            LinkEvent::Request(id, request) => requests.push((id, request)),
            LinkEvent::Fault(text) => {
                assert!(text.contains("closed"), "{text}");
                faults += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(requests.len(), MAX_REQUESTS);
    assert!(faults > 0);
    // An answer makes room for one more.
    let (id, _) = requests.pop().unwrap();
    world.host.answered(42, id);
    let _socket = world.machine.connect_from(42, 5000).unwrap();
    hostile.request();
}

#[test]
fn a_connect_to_a_guest_has_the_kernels_answer_or_times_out() {
    let world = World::new();
    let vm = world.vm(42);
    let listener = world.machine.listen_in(42, 6000);
    world.connect(&vm, 6000, 1, WAIT);
    let LinkEvent::Connected(id, Some(socket)) = vm.next() else {
        panic!("not connected");
    };
    assert_eq!(id.as_u64(), 1);
    let guest = rustix::net::accept(&listener).unwrap();
    stream::send(&socket, b"ping").unwrap();
    assert_eq!(stream::recv(&guest, &mut [0; 8]).unwrap(), 4);
    world.connect(&vm, 6001, 2, WAIT);
    assert_eq!(vm.failed(2), Refusal::NoListener);
    world.machine.0.silent.lock().unwrap().insert(42);
    world.connect(&vm, 6000, 3, Duration::from_millis(20));
    assert_eq!(vm.failed(3), Refusal::TimedOut);
    world.machine.0.guests.lock().unwrap().clear();
    world.connect(&vm, 6000, 4, WAIT);
    assert_eq!(vm.failed(4), Refusal::PartitionOff);
}

#[test]
fn a_connect_that_is_given_up_has_no_answer() {
    let world = World::new();
    let (vm, other) = (world.vm(42), world.vm(43));
    world.machine.0.silent.lock().unwrap().extend([42, 43]);
    world.connect(&vm, 6000, 1, Duration::from_millis(50));
    world.host.abort(ConnectionId::from_u64(1));
    world.connect(&other, 6000, 2, Duration::from_millis(50));
    world.host.remove(43);
    world.connect(&vm, 6000, 3, Duration::from_millis(100));
    // The only answer.
    assert_eq!(vm.failed(3), Refusal::TimedOut);
    assert!(other.is_silent());
}

#[test]
fn dropping_the_host_frees_its_ports() {
    let world = World::new();
    let vm = world.vm(42);
    world.offer(&vm, &[(5000, true), (5001, false)]);
    let machine = world.machine.clone();
    drop(world);
    assert!(machine.squat(5000).is_ok() && machine.squat(5001).is_ok());
}

#[test]
fn a_vm_is_off_while_the_kernel_serves_no_virtual_machines_and_the_problem_names_the_module() {
    let world = World::new();
    world.machine.0.has_no_vhost.store(true, Ordering::Relaxed);
    let vm = world.vm(42);
    match vm.next() {
        LinkEvent::Problem(Some(text)) => assert!(text.contains("vhost_vsock"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(vm.next(), LinkEvent::State(PartitionState::Off)));
    world.machine.0.has_no_vhost.store(false, Ordering::Relaxed);
    assert!(matches!(vm.next(), LinkEvent::Problem(None)));
    assert!(matches!(
        vm.next(),
        LinkEvent::State(PartitionState::Unknown)
    ));
}

#[test]
fn a_guest_that_is_expected_at_a_port_reaches_it_and_no_other_does() {
    let world = World::new();
    let (vm, other) = (world.vm(42), world.vm(43));
    assert!(is_refused(world.machine.connect_from(42, 1 << 24)));
    world.host.expect(42, 1 << 24).unwrap();
    let guest = world.machine.connect_from(42, 1 << 24).unwrap();
    let (id, request) = vm.request();
    assert_eq!(request.service, Service::Port(1 << 24));
    assert!(request.socket.is_some());
    world.host.answered(42, id);
    // Another guest is a stranger there.
    let stranger = world.machine.connect_from(43, 1 << 24).unwrap();
    assert!(is_closed(&stranger));
    assert_eq!(vm.stranger().cid, 43);
    assert!(other.is_silent());
    // The other one cannot give it up, either.
    world.host.release(43, 1 << 24);
    drop(world.machine.connect_from(42, 1 << 24).unwrap());
    world.host.release(42, 1 << 24);
    assert!(is_refused(world.machine.connect_from(42, 1 << 24)));
    drop((guest, request));
}

#[test]
fn a_port_that_another_has_is_refused_and_those_of_a_guest_end_with_it() {
    let world = World::new();
    let vm = world.vm(42);
    world.offer(&vm, &[(5000, false)]);
    let holder = world.machine.squat(7000).unwrap();
    assert_eq!(world.host.expect(42, 7000), Err(Refusal::AddressInUse));
    assert_eq!(world.host.expect(42, 5000), Err(Refusal::AddressInUse));
    drop(holder);
    world.host.expect(42, 7000).unwrap();
    assert_eq!(world.host.expect(42, 7000), Err(Refusal::AddressInUse));
    world.host.remove(42);
    assert!(world.machine.squat(7000).is_ok());
}
