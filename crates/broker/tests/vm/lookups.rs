//! The broker's own port of the host, with the vhost-user device: look-ups, and guests that misuse it.

use std::io::Write;
use std::thread;

use hvsock::{Refusal, ServiceId, VmId};
use hvsock_endpoint::LookupKind;
use hvsock_endpoint::uplink::{GuestFrame, UPLINK_PORT};
use hvsock_testkit::guest::{Guest, GuestStream, HOST};
use hvsock_testkit::uplink::Client;
use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{PORT, World, bounded, service};
use hvsock_virtio::SocketKind;

fn open(guest: &Guest) -> Client<GuestStream> {
    Client::new(bounded(guest.connect(UPLINK_PORT).expect("connected")))
}

fn name() -> String {
    service(PORT).name.to_string()
}

fn found(client: &mut Client<GuestStream>) -> bool {
    let guid = ServiceId::from_port(PORT).to_guid_bytes();
    client.look_up(LookupKind::Service, &name()) == Ok(guid)
}

#[test]
fn a_guest_looks_names_up_and_ends_the_connection_as_it_likes() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut client = open(&guest);
    assert!(found(&mut client));
    let own = client.look_up(LookupKind::Partition, "web");
    assert_eq!(own, Ok(VmId::LOOPBACK.to_guid_bytes()));
    // The guest half-closes, and the broker closes.
    client
        .stream
        .shutdown(std::net::Shutdown::Write)
        .expect("ended");
    assert_eq!(client.receive(), None);
    client.stream.close(TIMEOUT).expect("closed");
    // It resets.
    let mut client = open(&guest);
    assert!(found(&mut client));
    client.stream.reset();
    // It is rebooted.
    let mut client = open(&guest);
    assert!(found(&mut client));
    guest.reboot().expect("rebooted");
    assert!(found(&mut open(&guest)));
    assert_eq!(guest.protocol_violations(), Vec::<String>::new());
    world.has_connections(0);
}

#[test]
fn the_broker_ends_a_guests_connection_after_its_last_answer() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let mut client = open(&guest);
    for _ in 0..64 {
        assert!(found(&mut client));
    }
    assert!(!found(&mut client));
    assert_eq!(client.receive(), None);
    client.stream.close(TIMEOUT).expect("closed");
    eventually("nothing is left", || guest.connections() == 0);
}

#[test]
fn messages_are_refused_at_the_brokers_own_port() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    let messages = guest.connect_to(SocketKind::Seqpacket, HOST, UPLINK_PORT, TIMEOUT);
    assert!(messages.is_err());
}

#[test]
fn a_hundred_hostile_connections_of_a_guest_harm_neither_it_nor_another() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    world.vm("good", 77, &[]);
    let good = world.guest_of("good", hvsock_testkit::guest::Options::new(77));
    let mut lookup = Vec::new();
    let kind = LookupKind::Service;
    let long = "x".repeat(4000);
    GuestFrame::Lookup { kind, name: long }.append(&mut lookup);
    let mut not_utf8 = lookup.clone();
    *not_utf8.last_mut().expect("bytes") = 0xff;
    let pieces: [&[u8]; 6] = [
        // Half a length, half a frame, a length of 4 GiB, none, what is no frame, and no text.
        &lookup[..3],
        &lookup[..2000],
        &[0xff; 4],
        &[0; 4],
        b"GET / HTTP/1.1\r\n\r\n",
        &not_utf8,
    ];
    thread::scope(|scope| {
        for number in 0..4 {
            let guest = &guest;
            scope.spawn(move || {
                let mut held = Vec::new();
                for turn in 0..25 {
                    // Those beyond the limit are refused.
                    let Ok(stream) = guest.connect(UPLINK_PORT) else {
                        continue;
                    };
                    let _ = (&stream).write_all(pieces[(number + turn) % pieces.len()]);
                    held.push(stream);
                }
            });
        }
        for _ in 0..20 {
            assert!(found(&mut open(&good)));
        }
    });
    eventually("the guest is served again", || {
        let Ok(stream) = guest.connect(UPLINK_PORT) else {
            return false;
        };
        found(&mut Client::new(bounded(stream)))
    });
    let refused = open(&good).look_up(LookupKind::Service, "nothing");
    assert_eq!(refused, Err(Refusal::Unregistered.code()));
    assert_eq!(guest.protocol_violations(), Vec::<String>::new());
}
