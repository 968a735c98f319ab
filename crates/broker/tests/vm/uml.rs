//! The vhost-user front end of User-mode Linux: its messages in its order, with guests of the test kit.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use hvsock_testkit::guest::vmm::{Vmm, encode_region, protocol, request};
use hvsock_testkit::guest::{CloseReason, Driver, Guest, HOST, Memory, Options, Region, Regions};
use hvsock_virtio::features;
use serde_json::json;

use crate::traffic::{exchange, ping};
use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{PORT, WEB, World, bounded, partition_ref};

const BOUND: Duration = Duration::from_secs(30);

/// A broker with the VM `web`, which accepts unsealed memory, and the service of [`PORT`].
fn world() -> World {
    let world = World::new();
    world.register(PORT);
    let web = json!({"name": "web", "cid": WEB, "unsealed_memory": true});
    let web = serde_json::from_value(web).expect("a VM");
    world.handle().add_vm(web).expect("added");
    world
}

fn guest(world: &World) -> Guest {
    world.guest_of("web", Options::user_mode_linux(WEB))
}

#[test]
fn a_guest_of_user_mode_linux_and_its_host_reach_each_other() {
    for regions in [Regions::One, Regions::TwoApart] {
        let world = world();
        let listener = world.listen();
        let options = Options {
            regions,
            ..Options::user_mode_linux(WEB)
        };
        let guest = world.guest_of("web", options);
        let (inside, outside) = world.pair(&guest, &listener);
        exchange(&inside, &outside, 3 << 20, 10_000);
        drop(outside);
        assert_eq!(inside.close(TIMEOUT).unwrap(), CloseReason::Clean);

        world.register(5000);
        let listener = guest.listen(5000).unwrap();
        let outside = world.connect_to("web", 5000).unwrap();
        let inside = bounded(listener.accept(TIMEOUT).unwrap());
        assert_eq!(inside.peer().0, HOST);
        exchange(&inside, &outside, 3 << 20, 70_000);
        drop((inside, outside));
        world.has_connections(0);
        let error = guest.connect(5001).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(guest.protocol_violations(), [""; 0]);
    }
}

#[test]
fn the_request_channel_and_the_event_queues_call_socket_stay_open_and_silent() {
    let world = world();
    let mut driver = world.driver(Options::user_mode_linux(WEB));
    assert!(driver.channels_are_open());
    for _ in 0..3 {
        driver.reboot().unwrap();
        assert!(driver.channels_are_open());
    }
    driver.disconnect();
    drop(driver);
    // The next VMM is served.
    let listener = world.listen();
    let guest = guest(&world);
    let (inside, outside) = world.pair(&guest, &listener);
    ping(&inside, &outside);
}

#[test]
fn a_call_socket_that_is_full_or_closed_blocks_neither_its_machine_nor_others() {
    let world = world();
    world.vm("good", 77, &[]);
    let good = world.guest_of("good", Options::new(77));
    let listener = world.listen();
    let (good_inside, good_outside) = world.pair(&good, &listener);
    let mut driver = world.driver(Options::user_mode_linux(WEB));
    let vmm = driver.vmm().unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    // The device shares the mode of this descriptor. The socket is full before the device writes to it.
    far.set_nonblocking(true).unwrap();
    while (&far).write(&[0; 4096]).is_ok() {}
    while (&far).write(&[0; 8]).is_ok() {}
    far.set_nonblocking(false).unwrap();
    for queue in 0..2_u64 {
        let set = vmm.send_acked(
            request::SET_VRING_CALL,
            &queue.to_ne_bytes(),
            &[far.as_fd()],
        );
        set.unwrap();
    }
    drop(far);
    let served = |driver: &mut Driver| {
        driver.rx().kick();
        driver.tx().kick();
        // The data thread answers this after it has notified.
        let vmm = driver.vmm().unwrap();
        vmm.set_memory(driver.memory().regions(), driver.memory().descriptor())
            .unwrap();
        ping(&good_inside, &good_outside);
    };
    (0..100).for_each(|_| served(&mut driver));
    drop(near);
    (0..100).for_each(|_| served(&mut driver));
    drop(driver);
    let guest = guest(&world);
    let (inside, outside) = world.pair(&guest, &listener);
    ping(&inside, &outside);
}

#[test]
fn a_vmm_that_blocks_its_data_thread_is_removed_within_a_bounded_time() {
    let world = World::with_web(|_| ());
    world.vm("good", 77, &[]);
    let good = world.guest_of("good", Options::new(77));
    let (inside, outside) = world.pair(&good, &world.listen());
    let mut driver = world.driver(Options::new(WEB));
    // Full: the next signal blocks, because the VMM shares the descriptor's mode.
    let call = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
    rustix::io::write(&call, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let number = 0_u64.to_ne_bytes();
    let set = driver.vmm().unwrap();
    set.send_acked(request::SET_VRING_CALL, &number, &[call.as_fd()])
        .unwrap();
    hvsock_sys::set_nonblocking(&call, false).unwrap();
    let host = world.host();
    let web = world.partition("web").id;
    // Its packet to the guest makes the device signal.
    std::thread::spawn(move || host.connect(web, PORT));
    eventually("the device sends a packet", || {
        driver.poll_receive().is_some()
    });

    let handle = world.handle();
    let (removed, result) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let gone = handle.remove_partition(&partition_ref("web"));
        let _ = removed.send(gone.is_ok());
    });
    assert_eq!(result.recv_timeout(BOUND), Ok(true));
    ping(&inside, &outside);
    assert!(world.handle().partition(&partition_ref("web")).is_err());
    // The thread ends when the VMM reads its eventfd.
    rustix::io::read(&call, &mut [0; 8]).unwrap();
}

fn negotiated(world: &World) -> Vmm {
    let mut vmm = Vmm::connect(&world.socket("web"), BOUND).expect("connected");
    let all = features::VERSION_1 | features::EVENT_IDX | features::INDIRECT_DESC;
    vmm.negotiate(all, protocol::REPLY_ACK | protocol::BACKEND_REQ)
        .expect("agreed");
    vmm
}

#[test]
fn a_memory_table_may_be_longer_than_its_regions_and_no_shorter() {
    let world = world();
    let memory = Memory::unsealed(1 << 20, Regions::One).unwrap();
    let table = |count: u32, len: usize, files: usize| {
        let mut body = count.to_ne_bytes().to_vec();
        body.extend([0; 4]);
        body.extend(memory.regions().iter().flat_map(encode_region));
        body.resize(len, 0xaa);
        let files = vec![memory.descriptor(); files];
        negotiated(&world).send_acked(request::SET_MEM_TABLE, &body, &files)
    };
    for len in [40, 41, 72, 4096] {
        table(1, len, 1).unwrap_or_else(|error| panic!("{len}: {error}"));
    }
    for (count, len, files) in [
        (1, 39, 1),
        (1, 8, 1),
        (1, 0, 1),
        (1, 4097, 1),
        (2, 71, 2),
        (1, 72, 0),
        (1, 72, 2),
        (2, 72, 1),
        (0, 72, 0),
        (33, 4096, 1),
    ] {
        let set = table(count, len, files);
        assert!(set.is_err(), "{count} regions of {len} bytes");
    }
    let listener = world.listen();
    let guest = guest(&world);
    let (inside, outside) = world.pair(&guest, &listener);
    ping(&inside, &outside);
}

#[test]
fn a_memory_table_is_acknowledged_only_if_the_vmm_asks_for_it() {
    let world = world();
    let memory = Memory::unsealed(1 << 20, Regions::One).unwrap();
    let vmm = negotiated(&world);
    let mut body = 1_u64.to_ne_bytes().to_vec();
    body.extend(memory.regions().iter().flat_map(encode_region));
    vmm.send(request::SET_MEM_TABLE, 0, &body, &[memory.descriptor()])
        .unwrap();
    // The next reply is of the next request.
    vmm.request_u64(request::GET_FEATURES).unwrap();
    // A failure is reported, and the VMM may continue.
    let bad = Region {
        len: u64::MAX,
        ..memory.regions()[0]
    };
    let error = vmm.set_memory(&[bad], memory.descriptor()).unwrap_err();
    assert!(error.to_string().contains("failed"), "{error}");
    vmm.set_memory(memory.regions(), memory.descriptor())
        .unwrap();
}

#[test]
fn a_memory_table_in_two_parts_is_read_whole() {
    let world = world();
    let memory = Memory::unsealed(1 << 20, Regions::One).unwrap();
    for at in [12, 13, 50] {
        let vmm = negotiated(&world);
        let mut message = Vec::new();
        for word in [request::SET_MEM_TABLE, 1 | 1 << 3, 72] {
            message.extend(word.to_ne_bytes());
        }
        message.extend(1_u64.to_ne_bytes());
        message.extend(memory.regions().iter().flat_map(encode_region));
        message.resize(12 + 72, 0);
        vmm.send_bytes(&message[..at], &[memory.descriptor()])
            .unwrap();
        vmm.socket().write_all(&message[at..]).unwrap();
        let reply = vmm.receive_reply(request::SET_MEM_TABLE).unwrap();
        assert_eq!(reply, [0; 8]);
    }
}

#[test]
fn a_request_channel_of_another_kind_ends_only_the_vmms_connection() {
    let world = world();
    let (reader, writer) = std::io::pipe().unwrap();
    for descriptors in [&[reader.as_fd()][..], &[writer.as_fd()], &[]] {
        let vmm = negotiated(&world);
        let set = vmm.send_acked(request::SET_BACKEND_REQ_FD, &[], descriptors);
        assert!(set.is_err());
        assert_eq!((&mut vmm.socket()).read(&mut [0]).unwrap_or(0), 0);
    }
    let listener = world.listen();
    let guest = guest(&world);
    let (inside, outside) = world.pair(&guest, &listener);
    ping(&inside, &outside);
}
