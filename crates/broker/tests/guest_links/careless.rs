//! A link that breaks the order of calls, or does no more than it must: the core's tables stay right.

use std::io::{self, ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use hvsock::{HvStream, Refusal as Seen};
use hvsock_broker::StartError;
use hvsock_broker::guest_link::{
    Capabilities, ConnectionId, ControlConnection, Destination, EventSender, GuestConnect,
    GuestLink, GuestRequest, LinkEnd, LinkEvent, LinkSettings, PartitionState, Refusal, RequestId,
    Service, SocketKind,
};
use hvsock_testkit::conformance::LONGEST_WAIT;
use hvsock_testkit::world::{World, partition_ref, refused};

use crate::links::world::LinkWorld as _;

const PORT: u32 = 5000;

/// A call of the core.
enum Call {
    Connect(GuestConnect),
    Accept(LinkEnd),
    Refuse(RequestId),
    Establish(ControlConnection),
    Close,
}

/// A link that passes each call to the test and does nothing with it.
struct Mute {
    capabilities: Capabilities,
    calls: Sender<Call>,
}

impl Mute {
    fn pass(&self, call: Call) {
        let _ = self.calls.send(call);
    }
}

impl GuestLink for Mute {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn state(&self) -> PartitionState {
        PartitionState::Running
    }

    fn connect(&self, connect: GuestConnect) -> Result<(), Refusal> {
        self.pass(Call::Connect(connect));
        Ok(())
    }

    fn accept(&self, _: RequestId, _: ConnectionId, end: LinkEnd) {
        self.pass(Call::Accept(end));
    }

    fn refuse(&self, request: RequestId, _: Option<&Refusal>) {
        self.pass(Call::Refuse(request));
    }

    fn establish(&self, _: ConnectionId, control: ControlConnection) {
        self.pass(Call::Establish(control));
    }

    fn close(&self, _: ConnectionId, _: Refusal) {
        self.pass(Call::Close);
    }

    fn suspend(&self, _: ConnectionId, _: bool) {}
}

/// The test's side of the link of the VM `web`.
struct Link {
    world: World,
    events: EventSender,
    calls: Receiver<Call>,
}

impl Link {
    fn new(capabilities: Capabilities) -> Self {
        let world = World::new();
        world.register(PORT);
        let (calls, received) = mpsc::channel();
        let (sender, senders) = mpsc::channel();
        let open = move |_: LinkSettings, events: EventSender| {
            // Before the core knows the link.
            events.send(request(0, 1, None));
            events.send(LinkEvent::State(PartitionState::Running));
            let _ = sender.send(events);
            let link: Box<dyn GuestLink> = Box::new(Mute {
                capabilities,
                calls,
            });
            Ok::<_, StartError>(link)
        };
        world.add("web", open);
        let link = Self {
            world,
            events: senders.recv().expect("opened"),
            calls: received,
        };
        let refused = link.call();
        assert!(matches!(refused, Call::Refuse(RequestId(0))));
        link
    }

    fn call(&self) -> Call {
        self.calls.recv_timeout(LONGEST_WAIT).expect("a call")
    }

    /// Starts a connect of a process. Returns what the core asks of the link.
    fn pending(&self) -> (JoinHandle<io::Result<HvStream>>, GuestConnect) {
        let options = self.world.host().options().shared_memory(false);
        let client = thread::spawn(move || options.connect(("web", PORT)));
        loop {
            // The calls that a test has no use for come first.
            if let Call::Connect(connect) = self.call() {
                return (client, connect);
            }
        }
    }

    /// An established connection to the guest, whose bytes the link moves.
    fn established(&self) -> (HvStream, GuestConnect, ControlConnection) {
        let (client, connect) = self.pending();
        let connected = LinkEvent::Connected(connect.connection, None);
        self.events.send(connected);
        let Call::Establish(control) = self.call() else {
            panic!("not established");
        };
        (client.join().unwrap().unwrap(), connect, control)
    }
}

fn request(id: u64, port: u32, socket: Option<OwnedFd>) -> LinkEvent {
    let request = GuestRequest {
        destination: Destination::Host,
        service: Service::Port(port),
        kind: SocketKind::Stream,
        source_port: None,
        identity: None,
        socket,
    };
    LinkEvent::Request(RequestId(id), request)
}

#[test]
fn a_link_that_is_dropped_without_events_leaves_no_connection() {
    let link = Link::new(Capabilities::ALL);
    let listener = link.world.listen_over(PORT, false, 4).unwrap();
    let (mut out, connect, control) = link.established();
    link.events.send(request(7, PORT, None));
    let Call::Accept(end) = link.call() else {
        panic!("not accepted");
    };
    let (mut accepted, _) = listener.accept_timeout(LONGEST_WAIT).unwrap();
    link.world.has_connections(2);
    let handle = link.world.handle();
    handle.remove_partition(&partition_ref("web")).unwrap();
    link.world.has_connections(0);
    // The link's ends, which a real link has dropped by now.
    drop((connect, control, end));
    for stream in [&mut out, &mut accepted] {
        stream.set_read_timeout(Some(LONGEST_WAIT)).unwrap();
        let error = stream.read(&mut [0; 1]).expect_err("a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    let services = handle.metrics().unwrap().services;
    assert!(
        services.iter().all(|one| one.connections == 0),
        "{services:?}"
    );
}

#[test]
fn events_out_of_order_change_nothing() {
    for capabilities in [Capabilities::ALL, Capabilities::default()] {
        let link = Link::new(capabilities);
        let (client, connect) = link.pending();
        let id = connect.connection;
        let send = |event| link.events.send(event);
        let refusal = || Refusal::Reset {
            cause: "odd".into(),
        };
        let socket = || match capabilities.byte_counts {
            true => None,
            false => Some(OwnedFd::from(UnixStream::pair().unwrap().0)),
        };
        // Closed before Connected.
        send(LinkEvent::Closed(id, Some(refusal())));
        send(LinkEvent::ConnectedSuspend(id, true));
        send(LinkEvent::Connected(id, socket()));
        send(LinkEvent::Connected(id, socket()));
        send(LinkEvent::Failed(id, refusal()));
        let stream = client.join().unwrap().unwrap();
        use PartitionState::{Off, Paused, Running};
        for state in [Paused, Running, Off, Running] {
            send(LinkEvent::State(state));
        }
        send(LinkEvent::Closed(id, None));
        send(LinkEvent::Closed(id, None));
        send(LinkEvent::Fault("x".repeat(100_000)));
        link.world.has_connections(0);
        drop((stream, connect));
        let (client, connect) = link.pending();
        send(LinkEvent::Failed(connect.connection, Refusal::NoListener));
        send(LinkEvent::Connected(connect.connection, socket()));
        assert_eq!(refused(client.join().unwrap()), Seen::NoListener);
        link.world.later_exchange();
    }
}

#[test]
fn a_descriptor_that_is_no_stream_socket_ends_its_own_connection() {
    let link = Link::new(Capabilities::default());
    let listener = link.world.listen_over(PORT, false, 8).unwrap();
    link.events.send(request(1, PORT, None));
    assert!(matches!(link.call(), Call::Refuse(RequestId(1))));
    let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    link.events.send(request(2, PORT, Some(file)));
    let (mut stream, _) = listener.accept_timeout(LONGEST_WAIT).unwrap();
    stream.set_read_timeout(Some(LONGEST_WAIT)).unwrap();
    let error = stream.read(&mut [0; 1]).expect_err("no bytes");
    assert_ne!(error.kind(), ErrorKind::TimedOut, "{error}");
    link.world.has_connections(0);
}

#[test]
fn a_vm_is_removed_while_a_process_waits_for_its_guest() {
    let link = Link::new(Capabilities::ALL);
    let (client, connect) = link.pending();
    let handle = link.world.handle();
    handle.remove_partition(&partition_ref("web")).unwrap();
    assert_eq!(refused(client.join().unwrap()), Seen::PartitionOff);
    // Late events of a link that is gone.
    link.events
        .send(LinkEvent::Connected(connect.connection, None));
    link.events.send(request(9, PORT, None));
    link.events.send(LinkEvent::State(PartitionState::Paused));
    link.events.send(LinkEvent::Fault("late".into()));
    link.world.later_exchange();
    assert_eq!(handle.partitions().unwrap().len(), 1);
}
