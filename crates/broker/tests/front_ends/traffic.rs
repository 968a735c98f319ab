//! Connections of a guest in each VMM: to the host and from it, between siblings, streams and messages.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Instant;

use hvsock::Refusal;
use hvsock_testkit::guest::{CloseReason, FrontEnd, HOST, Options, Regions};
use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{PORT, WEB, bounded, refused};
use hvsock_virtio::{SocketKind, features};

use crate::data::{exchange, ping};
use crate::vmms::{add, each, guest, world};

const MEBIBYTE: u64 = 1 << 20;

#[test]
fn a_guest_of_each_vmm_connects_to_the_host_and_sends_and_receives_a_mebibyte() {
    each(|vmm| {
        for regions in [Regions::One, Regions::TwoApart] {
            let world = world(vmm);
            let listener = world.listen();
            let options = Options {
                regions,
                ..Options::of(vmm, WEB)
            };
            let guest = world.guest_of("web", options);
            let (inside, outside) = world.pair(&guest, &listener);
            exchange(&inside, &outside, MEBIBYTE, 10_000);
            drop(outside);
            assert_eq!(inside.close(TIMEOUT).unwrap(), CloseReason::Clean);
            world.has_connections(0);
            assert_eq!(guest.protocol_violations(), [""; 0]);
        }
    });
}

#[test]
fn the_host_connects_to_a_guest_of_each_vmm_and_sends_and_receives_a_mebibyte() {
    each(|vmm| {
        let world = world(vmm);
        let guest = guest(&world, vmm);
        world.register(5000);
        let listener = guest.listen(5000).unwrap();
        let outside = world.connect_to("web", 5000).unwrap();
        let inside = bounded(listener.accept(TIMEOUT).unwrap());
        assert_eq!(inside.peer().0, HOST);
        exchange(&inside, &outside, MEBIBYTE, 70_000);
        drop((inside, outside));
        world.has_connections(0);
        assert_eq!(guest.protocol_violations(), [""; 0]);
    });
}

#[test]
fn a_half_close_in_a_guest_of_each_vmm_ends_one_direction_after_all_its_bytes() {
    each(|vmm| {
        let world = world(vmm);
        let (listener, guest) = (world.listen(), guest(&world, vmm));
        let (inside, mut outside) = world.pair(&guest, &listener);
        let mut text = String::new();
        (&inside).write_all(b"question").unwrap();
        inside.shutdown(Shutdown::Write).unwrap();
        outside.read_to_string(&mut text).unwrap();
        assert_eq!(text, "question");
        outside.write_all(b"answer").unwrap();
        outside.shutdown(Shutdown::Write).unwrap();
        text.clear();
        (&inside).read_to_string(&mut text).unwrap();
        assert_eq!(text, "answer");
        assert_eq!(guest.protocol_violations(), [""; 0]);
    });
}

#[test]
fn a_refusal_reaches_a_guest_of_each_vmm_at_once_and_the_host_learns_its_reason() {
    each(|vmm| {
        let world = world(vmm);
        let guest = guest(&world, vmm);
        world.register(7002);
        for port in [PORT, 7002, 7003] {
            let error = guest.connect(port).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{port}");
        }
        let refusal = refused(world.connect_to("web", 7002));
        assert_eq!(refusal, Refusal::NoListener);
        let refusal = refused(world.connect_to("web", 7003));
        assert_ne!(refusal, Refusal::NoListener);
        // Afterwards it is served.
        let listener = world.listen();
        let (inside, outside) = world.pair(&guest, &listener);
        ping(&inside, &outside);
    });
}

#[test]
fn guests_of_all_vmms_reach_each_other_as_siblings() {
    let world = world(FrontEnd::Qemu);
    let mut guests = Vec::new();
    for (front_end, cid) in FrontEnd::ALL.into_iter().zip(100..) {
        let name = format!("{front_end:?}").to_lowercase();
        add(&world, &name, front_end, cid);
        guests.push((cid, world.guest_of(&name, Options::of(front_end, cid))));
    }
    world.register(5000);
    for (cid, guest) in &guests {
        let listener = guest.listen(5000).unwrap();
        for (peer, other) in guests.iter().filter(|(peer, _)| peer != cid) {
            let from = bounded(
                other
                    .connect_to(SocketKind::Stream, *cid, 5000, TIMEOUT)
                    .unwrap_or_else(|error| panic!("{peer} to {cid}: {error}")),
            );
            let to = bounded(listener.accept(TIMEOUT).unwrap());
            assert_eq!(to.peer().0, *peer);
            let mut bytes = vec![0; 100_000];
            (&from).write_all(&[7; 100_000]).unwrap();
            (&to).read_exact(&mut bytes).unwrap();
            (&to).write_all(&[8; 100_000]).unwrap();
            (&from).read_exact(&mut bytes).unwrap();
            assert_eq!(bytes, [8; 100_000]);
        }
    }
}

#[test]
fn messages_keep_their_boundaries_unless_the_vmm_drops_the_devices_features() {
    each(|vmm| {
        let world = world(vmm);
        add(&world, "peer", FrontEnd::Qemu, 77);
        let guest = guest(&world, vmm);
        let peer = world.guest_of("peer", Options::new(77));
        world.register(5000);
        let has_messages = guest.with_driver(|driver| driver.features()) & features::SEQPACKET;
        assert_eq!(has_messages == 0, vmm == FrontEnd::CloudHypervisor);
        if has_messages == 0 {
            // Its driver makes no such socket, and has none that a sibling could reach. A stream is served.
            let _listener = guest.listen_for(SocketKind::Seqpacket, 5000, 8).unwrap();
            let began = Instant::now();
            let refused = peer.connect_to(SocketKind::Seqpacket, WEB, 5000, TIMEOUT);
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
            assert!(began.elapsed() < TIMEOUT / 3);
            let listener = peer.listen(5000).unwrap();
            let stream = guest.connect_to(SocketKind::Stream, 77, 5000, TIMEOUT);
            let _stream = stream.unwrap();
            listener.accept(TIMEOUT).unwrap();
            return;
        }
        let listener = peer.listen_for(SocketKind::Seqpacket, 5000, 8).unwrap();
        let from = guest.connect_to(SocketKind::Seqpacket, 77, 5000, TIMEOUT);
        let (from, to) = (from.unwrap(), listener.accept(TIMEOUT).unwrap());
        for (one, other) in [(&from, &to), (&to, &from)] {
            one.send_message(b"first", false).unwrap();
            one.send_message(&[3; 100_000], true).unwrap();
            let first = other.receive_message().unwrap();
            assert_eq!(first, Some((b"first".to_vec(), false)));
            let second = other.receive_message().unwrap();
            assert_eq!(second, Some((vec![3; 100_000], true)));
        }
    });
}

#[test]
fn the_connections_of_a_guest_of_each_vmm_are_listed_with_their_bytes() {
    each(|vmm| {
        let world = world(vmm);
        let (listener, guest) = (world.listen(), guest(&world, vmm));
        let (inside, mut outside) = world.pair(&guest, &listener);
        (&inside).write_all(&[1; 5000]).unwrap();
        outside.read_exact(&mut [0; 5000]).unwrap();
        outside.write_all(&[1; 300]).unwrap();
        (&inside).read_exact(&mut [0; 300]).unwrap();
        eventually("the bytes are counted", || {
            let shown = world.connection();
            let bytes = (shown.bytes_sent, shown.bytes_received);
            shown.from.partition.as_str() == "web" && bytes == (Some(5000), Some(300))
        });
    });
}
