//! The broker's own port of the host, as any link's guest reaches it: look-ups, explanations, and what a guest
//! cannot do there.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hvsock::{Explanation, ServiceId, SockAddrHv, VmId};
use hvsock_broker::guest_link::{Capabilities, Refusal};
use hvsock_endpoint::LookupKind;
use hvsock_endpoint::uplink::{GuestFrame, Hello, HostFrame, UPLINK_PORT, What};
use hvsock_testkit::conformance::LONGEST_WAIT;
use hvsock_testkit::conformance::Stream;
use hvsock_testkit::uplink::Client;
use hvsock_testkit::wait::eventually;
use hvsock_testkit::world::{World, address, partition_ref, service_ref};
use serde_json::json;

use crate::links::memory::GuestStream;
use crate::links::pipe_link::{self, Wanted};
use crate::links::socket_link::Guest;
use crate::links::world::LinkWorld as _;

const PORT: u32 = 5000;
const NAME: &str = "HV Socket Demo";

/// A broker with the VM `web`, whose link only hands out sockets.
fn start() -> (World, Guest) {
    let world = World::new();
    let guest = world.socket_vm("web", Capabilities::default());
    let service = json!({"name": NAME, "id": ServiceId::from_port(PORT).to_string()});
    let service = serde_json::from_value(service).expect("a service");
    let registered = world.handle().register(service, "tester".into());
    registered.expect("registered");
    (world, guest)
}

fn open(guest: &Guest) -> Client<UnixStream> {
    let stream = guest.connect(Wanted::port(UPLINK_PORT));
    let limit = Some(LONGEST_WAIT);
    stream.set_read_timeout(limit).expect("a timeout");
    Client::new(stream)
}

/// The bytes of a guest's stream.
struct Bytes(GuestStream);

impl Read for Bytes {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        Stream::read(&self.0, buffer)
    }
}

impl Write for Bytes {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Stream::write(&self.0, bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn hello() -> GuestFrame {
    GuestFrame::Hello(Hello {
        features: 0,
        instance: [1; 16],
    })
}

#[test]
fn a_guest_looks_up_what_a_container_may_know() {
    let (world, guest) = start();
    let inside = world.container("box", None);
    let host = world.handle().status().expect("a status").partition;
    let mut client = open(&guest);
    let demo = ServiceId::from_port(PORT).to_guid_bytes();
    for name in [NAME, "hv socket demo"] {
        assert_eq!(client.look_up(LookupKind::Service, name), Ok(demo));
    }
    let unregistered = Refusal::Unregistered.code();
    for name in ["HV Socket Dem", "", "\n", &"x".repeat(4000)] {
        let found = client.look_up(LookupKind::Service, name);
        assert_eq!(found, Err(unregistered), "{name}");
    }
    let guid = VmId::to_guid_bytes;
    let not_reachable = Refusal::NotReachable.code();
    for (name, expected) in [
        ("web", Ok(guid(VmId::LOOPBACK))),
        (host.as_str(), Ok(guid(VmId::PARENT))),
        // It exists, and is no business of this guest.
        ("box", Err(not_reachable)),
        ("nobody", Err(not_reachable)),
        ("no/name/", Err(not_reachable)),
    ] {
        let found = client.look_up(LookupKind::Partition, name);
        assert_eq!(found, expected, "{name}");
    }
    // As from the container.
    for name in ["web", "nobody"] {
        let error = inside.endpoint().vm_id(&name.parse().expect("a name"));
        let error = error.expect_err("not its business either");
        assert_eq!(hvsock::refusal_of(&error), Some(&Refusal::NotReachable));
    }
}

#[test]
fn a_guest_gets_the_explanation_that_a_container_gets() {
    let (world, guest) = start();
    let inside = world.container("box", None);
    let demo = SockAddrHv::new(VmId::PARENT, ServiceId::from_port(PORT));
    let agree = |what: &str| {
        let seen = open(&guest)
            .explain(What::Connect, demo)
            .expect("a refusal");
        let expected = inside.options().explain(address(VmId::PARENT, PORT));
        let expected = expected.expect("an explanation");
        assert_eq!(seen.refusal(), expected.refusal(), "{what}");
        let texts = |one: &Explanation, name: &str, kind: &str| {
            // No hook has said whether the container runs.
            let text = one
                .to_string()
                .replace("presumably: nobody says whether it does", "yes");
            text.replace(name, "NAME").replace(kind, "KIND")
        };
        assert_eq!(
            texts(&seen, "web", "VM"),
            texts(&expected, "box", "container"),
            "{what}"
        );
        seen.refusal().cloned()
    };
    assert_eq!(agree("nobody listens"), Some(Refusal::NoListener));
    let handle = world.handle();
    let enable = |on| handle.set_enabled(&service_ref(PORT), on, None);
    enable(false).expect("disabled");
    let found = agree("disabled");
    assert!(matches!(found, Some(Refusal::Disabled { .. })), "{found:?}");
    enable(true).expect("enabled");
    handle.unregister(&service_ref(PORT)).expect("unregistered");
    assert_eq!(agree("unregistered"), Some(Refusal::Unregistered));
}

#[test]
fn a_listen_is_explained_to_a_guest() {
    let (world, guest) = start();
    let handle = world.handle();
    handle.unregister(&service_ref(PORT)).expect("unregistered");
    let demo = SockAddrHv::new(VmId::PARENT, ServiceId::from_port(PORT));
    let seen = open(&guest).explain(What::Listen, demo).expect("a refusal");
    assert_eq!(seen.refusal(), Some(&Refusal::Unregistered));
}

#[test]
fn look_ups_work_on_a_link_that_moves_the_bytes_itself() {
    let world = World::new();
    let guest = world.pipe_vm("web", pipe_link::CAPABILITIES);
    world.register(PORT);
    let mut ends = Vec::new();
    for _ in 0..3 {
        let stream = guest.connect(Wanted::port(UPLINK_PORT));
        let mut client = Client::new(Bytes(stream.expect("connected")));
        let found = client.look_up(LookupKind::Partition, "web");
        assert_eq!(found, Ok(VmId::LOOPBACK.to_guid_bytes()));
        // The guest's own identity counts there, not what a frame says.
        let found = client.look_up(LookupKind::Partition, "host-of-nobody");
        assert_eq!(found, Err(Refusal::NotReachable.code()));
        ends.push(client);
    }
    drop(ends);
    world.has_connections(0);
}

#[test]
fn only_root_of_a_guest_opens_an_uplink() {
    let (_world, guest) = start();
    let mut client = open(&guest);
    let HostFrame::Refused(refused) = client.ask(&hello()) else {
        panic!("no refusal");
    };
    let denied = Refusal::from_wire(refused.code, &refused.detail);
    assert!(
        matches!(&denied, Refusal::Denied { rule } if rule.contains("1024")),
        "{denied}"
    );
    assert_eq!(client.receive(), None);
}

#[test]
fn a_guest_that_violates_the_protocol_loses_its_connection_only() {
    let (_world, guest) = start();
    let mut good = open(&guest);
    let demo = ServiceId::from_port(PORT).to_guid_bytes();
    let mut not_utf8 = Vec::new();
    let name = "xx".to_owned();
    let kind = LookupKind::Service;
    GuestFrame::Lookup { kind, name }.append(&mut not_utf8);
    let end = not_utf8.len();
    not_utf8[end - 2..].copy_from_slice(&[0xff, 0xfe]);
    let mut of_the_host = Vec::new();
    HostFrame::Ping.append(&mut of_the_host);
    let mut without_uplink = Vec::new();
    GuestFrame::Ping.append(&mut without_uplink);
    for bytes in [
        &[0xff; 4096][..],
        // A frame of 4097 bytes, and one of none.
        &4097_u32.to_le_bytes(),
        &0_u32.to_le_bytes(),
        &not_utf8,
        &of_the_host,
        &without_uplink,
    ] {
        let mut bad = open(&guest);
        bad.stream.write_all(bytes).expect("written");
        assert!(matches!(bad.receive(), Some(HostFrame::Refused(_))));
        assert_eq!(bad.receive(), None);
        assert_eq!(good.look_up(LookupKind::Service, NAME), Ok(demo));
    }
    // Half a frame, and the end.
    let mut half = open(&guest);
    half.stream.write_all(&[40, 0, 0, 0, 1]).expect("written");
    half.stream
        .shutdown(std::net::Shutdown::Write)
        .expect("ended");
    assert!(matches!(half.receive(), Some(HostFrame::Refused(_))));
    assert_eq!(half.receive(), None);
}

#[test]
fn queries_on_one_connection_are_limited() {
    let (_world, guest) = start();
    let mut client = open(&guest);
    for _ in 0..64 {
        assert!(client.look_up(LookupKind::Service, NAME).is_ok());
    }
    let limit = Refusal::LimitReached {
        which: String::new(),
    };
    let found = client.look_up(LookupKind::Service, NAME);
    assert_eq!(found, Err(limit.code()));
    assert_eq!(client.receive(), None);
}

#[test]
fn a_guest_that_does_not_read_its_answers_gets_no_more_of_them() {
    let (_world, guest) = start();
    let mut flood = open(&guest);
    let stream = &flood.stream;
    stream.set_nonblocking(true).expect("non-blocking");
    let mut bytes = Vec::new();
    let name = "x".repeat(4000);
    let kind = LookupKind::Service;
    GuestFrame::Lookup { kind, name }.append(&mut bytes);
    let until = Instant::now() + Duration::from_millis(200);
    while Instant::now() < until {
        if let Err(error) = flood.stream.write(&bytes) {
            // More than its queries, or more than fits.
            assert!(
                matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                ),
                "{error}"
            );
        }
    }
    let demo = ServiceId::from_port(PORT).to_guid_bytes();
    let found = open(&guest).look_up(LookupKind::Service, NAME);
    assert_eq!(found, Ok(demo));
}

#[test]
fn silent_connections_of_a_guest_do_not_keep_its_others_out() {
    let (world, guest) = start();
    let mut silent: Vec<_> = (0..100).map(|_| open(&guest)).collect();
    // Those beyond the limit are refused while the others may be about to send.
    eventually("some are refused", || !guest.refused().is_empty());
    let demo = ServiceId::from_port(PORT).to_guid_bytes();
    eventually("a connection makes room", || {
        let mut client = open(&guest);
        client.send(&GuestFrame::Lookup {
            kind: LookupKind::Service,
            name: NAME.to_owned(),
        });
        client.receive() == Some(HostFrame::Found { guid: demo })
    });
    // Another VM has room of its own.
    let other = world.socket_vm("db", Capabilities::default());
    assert_eq!(open(&other).look_up(LookupKind::Service, NAME), Ok(demo));
    // That which had been silent for longest is closed.
    assert_eq!(silent[0].receive(), None);
    world
        .handle()
        .remove_partition(&partition_ref("db"))
        .expect("removed");
}

#[test]
fn the_brokers_own_port_cannot_be_registered() {
    let world = World::new();
    let handle = world.handle();
    let service = serde_json::from_value(
        json!({"name": "Mine", "id": ServiceId::from_port(UPLINK_PORT).to_string()}),
    );
    let error = handle.register(service.expect("a service"), "tester".into());
    let text = error.expect_err("taken").to_string();
    assert!(text.contains("\"hvsock broker\""), "{text}");
    assert!(text.contains("port 920"), "{text}");
    let lease = hvsock::Lease::register_at(
        &world.host().endpoint(),
        "Mine",
        ServiceId::from_port(UPLINK_PORT),
        "",
    );
    assert!(lease.is_err());
    // One that an older broker has left is shown and not in force.
    let id = ServiceId::from_port(UPLINK_PORT);
    let file = world.dirs().config.join(format!("services/{id}.toml"));
    let text = "name = \"Mine\"\n";
    std::fs::write(&file, text).expect("written");
    eventually("a problem is shown", || {
        let problems = handle.status().expect("a status").problems;
        problems
            .iter()
            .any(|one| one.text.contains("hvsock broker"))
    });
    assert_eq!(handle.services(false).expect("services"), []);
}
