//! A guest and its host that run the same program: the host through its broker, the guest through
//! the kernel.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use hvsock::{
    AF_HYPERV, Endpoint, HV_PROTOCOL_RAW, HvListener, HvSocket, HvStream, Interest, Lease,
    NoRegistry, Refusal, SOCK_STREAM, ServiceId, SockAddrHv, ToHvAddr, Transport, Verdict, VmId,
    refusal_of,
};
use hvsock_guests::{Kit, Vmm, Vsock};
use hvsock_testkit::conformance::Trial;
use hvsock_testkit::require;
use hvsock_testkit::wait;
use hvsock_testkit::world::World;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::guest;
use super::semantics::trial;
use crate::async_stream::RUNTIME;

/// A timeout that nothing reaches unless it hangs, in an emulated guest.
const LONG: Duration = Duration::from_secs(30);
const PAYLOAD: usize = 1 << 20;

const VM: &str = "web";
const ECHO: ServiceId = ServiceId::from_port(2761);
const NO_LISTENER: ServiceId = ServiceId::from_port(2762);
const DISABLED: ServiceId = ServiceId::from_port(2763);
const UNREGISTERED: ServiceId = ServiceId::from_port(2764);
const CLOSED: ServiceId = ServiceId::from_port(2766);
const DENIED: ServiceId = ServiceId::from_port(2767);
const DEMO: ServiceId = ServiceId::from_port(2768);
const DEMO_NAME: &str = "HV Socket Demo";
/// A service in the guest.
const GUEST_SERVICE: ServiceId = ServiceId::from_port(2765);

fn off_template() -> ServiceId {
    let id = "0b2f1f0e-0000-4000-8000-000000000001".parse();
    id.expect("a GUID")
}

/// The client that both sides run: the data comes back, and the end with it.
fn use_echo(endpoint: &Endpoint, address: impl ToHvAddr) -> io::Result<HvStream> {
    let options = HvStream::options().endpoint(endpoint).timeout(LONG);
    let stream = options.connect(address)?;
    let sent: Vec<u8> = (0..PAYLOAD).map(|at| (at * 7 % 251) as u8).collect();
    let mut received = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            (&stream).write_all(&sent).expect("written");
            stream.shutdown(Shutdown::Write).expect("ended");
        });
        (&stream).read_to_end(&mut received)
    })?;
    assert!(received == sent, "{} bytes came back", received.len());
    Ok(stream)
}

/// The service that both sides run.
fn serve_echo(stream: &HvStream) {
    let count = io::copy(&mut &*stream, &mut &*stream).expect("an echo");
    stream.shutdown(Shutdown::Write).expect("ended");
    assert_eq!(count, PAYLOAD as u64);
}

struct Host {
    world: World,
    vm: VmId,
}

impl Host {
    fn start() -> Self {
        let world = World::new();
        let vm = world.vm(VM, 42, &[]).id;
        let this = Self { world, vm };
        let services = [
            ECHO,
            NO_LISTENER,
            DISABLED,
            CLOSED,
            GUEST_SERVICE,
            off_template(),
        ];
        for (service, number) in services.into_iter().zip(1..) {
            this.register(json!({"name": format!("Service {number}"), "id": service.to_string()}));
        }
        this.register(json!({"name": DEMO_NAME, "id": DEMO.to_string()}));
        this.register(json!({
            "name": "Not for guests",
            "id": DENIED.to_string(),
            "connect": {"partitions": ["nobody-else"]},
        }));
        let disabled = this
            .world
            .handle()
            .set_enabled(&DISABLED.into(), false, None);
        disabled.expect("disabled");
        this
    }

    fn register(&self, service: serde_json::Value) {
        let service = serde_json::from_value(service).expect("a service");
        let registered = self.world.handle().register(service, "tester".into());
        registered.expect("registered");
    }

    fn endpoint(&self) -> Endpoint {
        self.world.host().endpoint()
    }

    fn listen(&self, service: ServiceId) -> HvListener {
        let options = HvListener::options().endpoint(self.endpoint());
        let listener = options.listen((VmId::CHILDREN, service));
        listener.expect("a listener")
    }

    /// Serves a service until it is unregistered.
    fn serve(&self, service: ServiceId) {
        let listener = self.listen(service);
        for stream in listener.incoming().map_while(Result::ok) {
            assert_eq!(stream.peer_addr().expect("an address").vm, self.vm);
            assert_eq!(stream.peer().map(hvsock::Peer::partition), Some(VM));
            let count = io::copy(&mut &stream, &mut &stream).expect("an echo");
            stream.shutdown(Shutdown::Write).expect("ended");
            assert!([PAYLOAD as u64, 7].contains(&count), "{count}");
        }
    }

    /// Closes the first connection to a service, as an operator does.
    fn close_first(&self, listener: &HvListener) {
        let (mut stream, _) = listener.accept_timeout(LONG * 5).expect("a connection");
        stream.read_exact(&mut [0; 6]).expect("its data");
        let closed = self.world.handle().close_connection(stream.connection_id());
        closed.expect("closed");
        let error = stream
            .read(&mut [0; 8])
            .expect_err("the host's end is reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }

    /// Connects to the guest's service as soon as it listens.
    fn use_guest(&self) {
        let stream = wait::within(LONG * 5, || {
            let used = use_echo(&self.endpoint(), (VM, GUEST_SERVICE));
            if let Err(error) = &used {
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
            }
            used
        });
        let stream = stream.expect("the guest listens");
        let peer = SockAddrHv::new(self.vm, GUEST_SERVICE);
        assert_eq!(stream.peer_addr().expect("an address"), peer);
    }
}

/// The test on the host.
pub fn both_run_the_same_program() {
    let Some(kit) = require::found(Kit::find_for(Vmm::Qemu)) else {
        return;
    };
    let host = Host::start();
    let mut config = guest::config(&kit, VM);
    let socket = host.world.socket(VM);
    config.vsock = Some(Vsock { socket });
    let guest = guest::boot(&kit, &config);
    let services = [ECHO, DEMO, off_template()];
    let to_close = host.listen(CLOSED);
    thread::scope(|scope| {
        for service in services {
            let host = &host;
            scope.spawn(move || host.serve(service));
        }
        let closer = scope.spawn(|| host.close_first(&to_close));
        let user = scope.spawn(|| host.use_guest());
        let ended = guest::run(&guest, "with a host");
        for service in services {
            let gone = host.world.handle().unregister(&service.into());
            gone.expect("unregistered");
        }
        ended.expect("in the guest");
        user.join().expect("the host's own connects");
        closer.join().expect("the close");
    });
}

/// The tests in the guest.
pub fn in_the_guest() -> Vec<Trial> {
    vec![
        trial("the_host_is_reached_by_port", the_host_is_reached_by_port),
        trial(
            "the_host_is_reached_by_a_guid_off_the_template",
            the_host_is_reached_by_a_guid_off_the_template,
        ),
        trial("a_task_reaches_the_host", a_task_reaches_the_host),
        trial(
            "the_host_says_why_it_refuses_a_connect",
            the_host_says_why_it_refuses_a_connect,
        ),
        trial(
            "a_connect_without_blocking_learns_the_reason",
            a_connect_without_blocking_learns_the_reason,
        ),
        trial(
            "the_program_of_the_readme_reaches_the_host_by_name",
            the_program_of_the_readme_reaches_the_host_by_name,
        ),
        trial(
            "a_listener_by_name_listens_at_its_port",
            a_listener_by_name_listens_at_its_port,
        ),
        trial(
            "names_are_looked_up_at_the_host",
            names_are_looked_up_at_the_host,
        ),
        trial(
            "many_look_ups_at_once_are_all_answered",
            many_look_ups_at_once_are_all_answered,
        ),
        trial(
            "the_host_explains_what_it_would_do",
            the_host_explains_what_it_would_do,
        ),
        trial(
            "a_close_by_the_host_looks_like_the_end",
            a_close_by_the_host_looks_like_the_end,
        ),
        trial(
            "a_listener_for_the_parent_rejects_other_peers",
            a_listener_for_the_parent_rejects_other_peers,
        ),
    ]
}

/// The endpoint without configuration: neither variable is set.
fn parent() -> Endpoint {
    let endpoint = Endpoint::from_env();
    assert!(endpoint.uses_vsock());
    endpoint
}

fn the_host_is_reached_by_port() {
    for vm in [VmId::PARENT, VmId::ZERO] {
        let stream = use_echo(&parent(), (vm, ECHO)).unwrap();
        assert_eq!(stream.transport(), Transport::Vsock);
        let peer = SockAddrHv::new(VmId::PARENT, ECHO);
        assert_eq!(stream.peer_addr().unwrap(), peer);
        assert_eq!(stream.local_addr().unwrap().vm, VmId::ZERO);
    }
}

fn the_host_is_reached_by_a_guid_off_the_template() {
    let stream = use_echo(&parent(), ("parent", off_template())).unwrap();
    assert_eq!(stream.peer_addr().unwrap().service, off_template());
}

fn a_task_reaches_the_host() {
    let sent = vec![7; PAYLOAD];
    let received = RUNTIME.block_on(async {
        let mut stream = hvsock::tokio::HvStream::connect(("parent", ECHO)).await?;
        let (mut read, mut write) = stream.split();
        let mut received = Vec::new();
        let write = async {
            write.write_all(&sent).await?;
            write.shutdown().await
        };
        let (written, count) = tokio::join!(write, read.read_to_end(&mut received));
        written.and(count)?;
        io::Result::Ok(received)
    });
    assert!(received.unwrap() == sent);
}

/// Of an unavailable service, why it is refused.
fn reason(refused: &io::Error) -> Refusal {
    refusal_of(refused).cloned().expect("a refusal")
}

fn the_host_says_why_it_refuses_a_connect() {
    for (service, expected) in [
        (NO_LISTENER, "no_listener"),
        (DISABLED, "disabled"),
        (UNREGISTERED, "unregistered"),
        (DENIED, "denied"),
        (ServiceId::random(), "unregistered"),
    ] {
        // The timeout of two seconds would be `TimedOut`.
        let error = HvStream::connect(("parent", service)).unwrap_err();
        assert_eq!(reason(&error).label(), expected, "{error}");
        assert_eq!(error.kind(), reason(&error).kind());
        assert!(hvsock::explanation_of(&error).is_none());
        let options = HvStream::options().explain_refusal(true);
        let error = options.connect(("parent", service)).unwrap_err();
        let explanation = hvsock::explanation_of(&error).expect("explained");
        assert_eq!(explanation.refusal().unwrap().label(), expected);
        assert!(!explanation.steps.is_empty(), "{error}");
        let connect = hvsock::tokio::HvStream::connect(("parent", service));
        let error = RUNTIME.block_on(connect).unwrap_err();
        assert_eq!(reason(&error).label(), expected, "{error}");
    }
    // A rule is told without the entries of its lists, as to a container.
    let error = HvStream::connect(("parent", DENIED)).unwrap_err();
    assert!(!format!("{error} {:?}", reason(&error)).contains("nobody-else"));
}

fn a_connect_without_blocking_learns_the_reason() {
    let mut socket = HvSocket::new(AF_HYPERV, SOCK_STREAM, HV_PROTOCOL_RAW).unwrap();
    socket.set_nonblocking(true).unwrap();
    let address = SockAddrHv::new(VmId::PARENT, DISABLED);
    let error = socket.connect(address).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    let ready = socket.poll(Interest::WRITABLE, Some(LONG)).unwrap();
    assert!(ready.is_writable());
    let error = socket.take_error().unwrap().expect("it is refused");
    assert_eq!(reason(&error).label(), "disabled", "{error}");
}

fn the_program_of_the_readme_reaches_the_host_by_name() {
    for address in [
        "hvsock://parent/HV%20Socket%20Demo",
        "hvsock://any/hv%20socket%20demo",
    ] {
        let stream = use_echo(&parent(), address).unwrap();
        assert_eq!(
            stream.peer_addr().unwrap(),
            SockAddrHv::new(VmId::PARENT, DEMO)
        );
    }
    let connected = RUNTIME.block_on(async {
        let mut stream = hvsock::tokio::HvStream::connect(("parent", DEMO_NAME)).await?;
        stream.write_all(b"by name").await?;
        stream.shutdown().await?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await?;
        io::Result::Ok((all, stream.peer_addr()?.service))
    });
    assert_eq!(connected.unwrap(), (b"by name".to_vec(), DEMO));
}

fn a_listener_by_name_listens_at_its_port() {
    let listener = HvListener::bind(("any", "Service 2")).unwrap();
    assert_eq!(listener.local_addr().unwrap().service, NO_LISTENER);
    drop(listener);
    let bound = RUNTIME.block_on(hvsock::tokio::HvListener::bind(("any", "Service 2")));
    assert_eq!(bound.unwrap().local_addr().unwrap().service, NO_LISTENER);
}

fn names_are_looked_up_at_the_host() {
    let vsock = parent();
    let service = |name: &str| vsock.service_id(&name.parse().unwrap());
    assert_eq!(service(DEMO_NAME).unwrap(), DEMO);
    let error = service("nothing").unwrap_err();
    assert_eq!(reason(&error), Refusal::Unregistered);
    let partition = |name: &str| vsock.vm_id(&name.parse().unwrap());
    assert_eq!(partition(VM).unwrap(), VmId::LOOPBACK);
    let error = partition("elsewhere").unwrap_err();
    assert_eq!(reason(&error), Refusal::NotReachable);
    for error in [
        HvStream::connect(("parent", "nothing")).unwrap_err(),
        HvListener::bind(("any", "nothing")).unwrap_err(),
    ] {
        assert_eq!(reason(&error), Refusal::Unregistered, "{error}");
    }
    // A registration needs a broker in the machine.
    let lease = Lease::register_at(&vsock, "Mine", ServiceId::random(), "");
    assert!(lease.unwrap_err().get_ref().unwrap().is::<NoRegistry>());
}

fn many_look_ups_at_once_are_all_answered() {
    let connects =
        (0..40).map(|_| thread::spawn(|| parent().service_id(&DEMO_NAME.parse().unwrap())));
    let connects: Vec<_> = connects.collect();
    for connect in connects {
        assert_eq!(connect.join().unwrap().unwrap(), DEMO);
    }
}

fn the_host_explains_what_it_would_do() {
    let connect = hvsock::explain_connect(("parent", DEMO_NAME)).unwrap();
    assert_eq!(connect.verdict, Ok(Verdict::Connect));
    assert!(!connect.steps.is_empty());
    let connect = hvsock::explain_connect(("parent", DISABLED)).unwrap();
    assert_eq!(connect.refusal().unwrap().label(), "disabled");
    let listen = hvsock::explain_listen(("parent", UNREGISTERED)).unwrap();
    assert_eq!(listen.refusal(), Some(&Refusal::Unregistered));
    let listen = hvsock::explain_listen(("parent", GUEST_SERVICE)).unwrap();
    assert_eq!(listen.verdict, Ok(Verdict::SystemDecides), "{listen}");
}

/// The kernel has one kind of end, as documented.
fn a_close_by_the_host_looks_like_the_end() {
    let mut stream = HvStream::connect(("parent", CLOSED)).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.write_all(b"close!").unwrap();
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    let error = stream.write(b"late").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{error}");
}

fn a_listener_for_the_parent_rejects_other_peers() {
    let listener = HvListener::bind(("parent", GUEST_SERVICE)).unwrap();
    let mut other = HvStream::connect(("loopback", GUEST_SERVICE)).unwrap();
    let (stream, from) = listener.accept_timeout(LONG * 3).unwrap();
    assert_eq!(from.vm, VmId::PARENT);
    assert_eq!(stream.peer().unwrap().partition(), "parent");
    serve_echo(&stream);
    // The kernel may queue the loopback peer behind the host. Accepting is what rejects it.
    for _ in 0..300 {
        if listener.rejected() > 0 {
            break;
        }
        let error = listener.accept_timeout(Duration::from_millis(100));
        assert_eq!(error.unwrap_err().kind(), ErrorKind::TimedOut);
    }
    assert_eq!(listener.rejected(), 1);
    assert_eq!(other.read(&mut [0; 8]).unwrap(), 0);
}
