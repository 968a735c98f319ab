//! Uplinks over links that hand out sockets, as the kernel's vhost-vsock does, and over those that tell no source
//! port, as hybrid sockets.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use hvsock::{HvStream, ServiceId, SockAddrHv, Transport};
use hvsock_broker::guest_link::Capabilities;
use hvsock_endpoint::uplink::{ConnectUp, GuestFrame, HostFrame, Request, UPLINK_PORT};
use hvsock_testkit::uplink::Client;
use hvsock_testkit::wait::TIMEOUT;
use hvsock_testkit::world::{PORT, World, accept};

use crate::guest_broker::{BOX, announcement, hello};
use crate::links::pipe_link::Wanted;
use crate::links::socket_link::Guest;
use crate::links::world::LinkWorld as _;

/// As the kernel's sockets.
const SOCKETS: Capabilities = Capabilities {
    seqpacket: false,
    half_close: true,
    refusal_reason: false,
    identity: false,
    byte_counts: false,
    reset_notice: false,
};

fn connect(guest: &Guest, source_port: Option<u32>) -> Client<UnixStream> {
    let stream = guest.connect_from(source_port, Wanted::port(UPLINK_PORT));
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    Client::new(stream)
}

/// The next frame that is no service.
#[track_caller]
fn next(client: &mut Client<UnixStream>) -> HostFrame {
    loop {
        match client.receive().expect("an open uplink") {
            HostFrame::Service(_) | HostFrame::ServicesEnd => {}
            frame => return frame,
        }
    }
}

#[track_caller]
fn ping(mut inside: &UnixStream, mut outside: &HvStream) {
    let mut bytes = [0; 4];
    inside.write_all(b"ping").unwrap();
    outside.read_exact(&mut bytes).unwrap();
    outside.write_all(b"pong").unwrap();
    inside.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"pong");
}

fn both_ways(world: &World, guest: &Guest, transport: Transport) {
    world.register(PORT);
    let mut client = connect(guest, Some(1000));
    let HostFrame::Welcome(welcome) = client.ask(&hello()) else {
        panic!("no welcome");
    };
    client.send(&GuestFrame::Announce(announcement(BOX, "box")));
    let HostFrame::Announced(announced) = next(&mut client) else {
        panic!("no answer");
    };
    // Up.
    let listener = world.host().listen(announced.id, PORT).unwrap();
    let request = Request(1);
    client.send(&GuestFrame::Connect(ConnectUp {
        request,
        child: BOX,
        timeout_ms: 0,
        address: SockAddrHv::new(welcome.host, ServiceId::from_port(PORT)),
    }));
    let HostFrame::ConnectPort { port, .. } = next(&mut client) else {
        panic!("no port");
    };
    let inside = guest.connect_from(Some(40_000), Wanted::port(port));
    let outside = accept(&listener);
    assert_eq!(outside.transport(), transport);
    ping(&inside, &outside);
    let shown = world.connection();
    assert_eq!(shown.from.partition.to_string(), "web/box");
    drop((inside, outside));
    world.has_connections(0);
    // Down.
    let accepting = guest.listen(60_000);
    let (mut inside, outside) = std::thread::scope(|scope| {
        let connecting = scope.spawn(|| world.connect_to("web/box", PORT));
        let HostFrame::Incoming(incoming) = next(&mut client) else {
            panic!("no request");
        };
        let (request, port) = (incoming.request, 60_000);
        client.send(&GuestFrame::IncomingPort { request, port });
        let inside = accepting.recv_timeout(TIMEOUT).unwrap();
        (inside, connecting.join().unwrap().unwrap())
    });
    assert_eq!(outside.transport(), transport);
    ping(&inside, &outside);
    assert_eq!(world.connection().to.partition.to_string(), "web/box");
    // The end of the container ends its connections, although its link has nothing to do with them.
    inside.set_read_timeout(Some(TIMEOUT)).unwrap();
    client.send(&GuestFrame::Withdraw { child: BOX });
    match inside.read(&mut [0; 8]) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("{other:?}"),
    }
    world.has_connections(0);
    assert_eq!(guest.surplus(), [""; 0]);
}

#[test]
fn a_link_that_hands_out_sockets_has_them_relayed_for_containers_too() {
    let world = World::new();
    let guest = world.socket_vm("web", SOCKETS);
    both_ways(&world, &guest, Transport::Descriptor);
}

#[test]
fn a_link_that_gives_its_sockets_to_processes_does_so_for_containers_too() {
    let world = World::new();
    let guest = world.hand_over_vm("web", SOCKETS);
    both_ways(&world, &guest, Transport::Direct);
}

#[test]
fn a_link_without_source_ports_carries_no_uplink() {
    let world = World::new();
    let guest = world.socket_vm("web", SOCKETS);
    let mut client = connect(&guest, None);
    let HostFrame::Refused(refused) = client.ask(&hello()) else {
        panic!("not refused");
    };
    assert_eq!(
        refused.code,
        hvsock::Refusal::Denied {
            rule: String::new()
        }
        .code()
    );
    assert!(world.partition("web").broker.is_none());
    let vm = serde_json::from_value(serde_json::json!({
        "name": "fire", "link": {"kind": "hybrid", "path": world.folder.join("v.sock"), "style": "firecracker"},
    }));
    let added = world.handle().add_vm(vm.unwrap()).unwrap();
    assert!(
        added.lacks.iter().any(|what| what.contains("containers")),
        "{added:?}"
    );
}
