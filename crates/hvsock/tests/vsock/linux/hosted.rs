//! A guest and its host that run the same program: the host through its broker, the guest through
//! the kernel.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use hvsock::{
    Endpoint, Fix, HvListener, HvStream, NoRegistry, Refusal, ServiceId, SockAddrHv, ToHvAddr,
    Transport, VmId, refusal_of,
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
const LONG: Duration = Duration::from_secs(20);
const PAYLOAD: usize = 1 << 20;

const VM: &str = "web";
const ECHO: ServiceId = ServiceId::from_port(2761);
const NO_LISTENER: ServiceId = ServiceId::from_port(2762);
const DISABLED: ServiceId = ServiceId::from_port(2763);
const UNREGISTERED: ServiceId = ServiceId::from_port(2764);
const CLOSED: ServiceId = ServiceId::from_port(2766);
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
            let service = json!({"name": format!("Service {number}"), "id": service.to_string()});
            let service = serde_json::from_value(service).expect("a service");
            let registered = this.world.handle().register(service, "tester".into());
            registered.expect("registered");
        }
        let disabled = this
            .world
            .handle()
            .set_enabled(&DISABLED.into(), false, None);
        disabled.expect("disabled");
        this
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
            serve_echo(&stream);
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
    let services = [ECHO, off_template()];
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
            "an_unavailable_service_of_the_host_is_refused_before_the_timeout",
            an_unavailable_service_of_the_host_is_refused_before_the_timeout,
        ),
        trial(
            "questions_for_the_host_are_referred_to_it",
            questions_for_the_host_are_referred_to_it,
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

fn an_unavailable_service_of_the_host_is_refused_before_the_timeout() {
    for service in [NO_LISTENER, DISABLED, UNREGISTERED, ServiceId::random()] {
        // The timeout of two seconds would be `TimedOut`.
        let error = HvStream::connect(("parent", service)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        assert_eq!(refusal_of(&error), Some(&Refusal::NoListener));
        let fix = hvsock::fix_of(&error);
        assert!(matches!(fix, Some(Fix::ExplainOnHost { .. })), "{error}");
    }
}

fn questions_for_the_host_are_referred_to_it() {
    let error = HvStream::connect(("parent", "Service 1")).unwrap_err();
    assert!(error.get_ref().unwrap().is::<NoRegistry>(), "{error}");
    let error = hvsock::explain_connect(("parent", ECHO)).unwrap_err();
    let fix = Fix::ExplainOnHost {
        partition: VmId::PARENT.into(),
        service: ECHO.into(),
        listening: false,
    };
    assert_eq!(hvsock::fix_of(&error), Some(fix));
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
