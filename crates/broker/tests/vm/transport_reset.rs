//! A device that begins to serve a guest which another one has served: where its queues continue, and what
//! becomes of the guest's old connections.

use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::time::Duration;

use hvsock_broker::model::PartitionState;
use hvsock_testkit::guest::front_end::script::Step;
use hvsock_testkit::guest::{Driver, FrontEnd, Options};
use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{PORT, WEB, World, accept};
use hvsock_virtio::{Header, Operation, SocketKind};

use crate::hostile::{Fixture, connect, packet};

/// A guest with connections, whose VMM has connected to the device again.
fn reconnected(fixture: &Fixture, front_end: FrontEnd) -> Driver {
    let mut driver = fixture.hostile_with(Options::of(front_end, WEB));
    let (_outside, _) = connect(fixture, &mut driver, 1000);
    driver.disconnect();
    fixture.world.is("web", PartitionState::Off);
    driver.connect().unwrap();
    driver
}

#[test]
fn a_guest_that_another_device_has_served_gets_one_transport_reset_before_any_packet() {
    let fixture = Fixture::new();
    fixture.world.register(5000);
    for _ in 0..5 {
        let mut driver = reconnected(&fixture, FrontEnd::CloudHypervisor);
        let web = fixture.world.partition("web").id;
        let host = fixture.world.host();
        let connecting = std::thread::spawn(move || host.connect(web, 5000));
        // Makes its buffer available again, by which the device knows that it was handled.
        eventually("the event arrives", || {
            assert!(driver.poll_receive().is_none(), "a packet before the event");
            driver.poll_event() == Some(0)
        });
        let (header, _) = driver.receive(TIMEOUT).unwrap().expect("the request");
        assert_eq!(header.operation(), Some(Operation::Request));
        assert_eq!(driver.poll_event(), None);
        drop(driver);
        let _ = connecting.join().unwrap();
        fixture.world.is("web", PartitionState::Off);
    }
    fixture.everything_works_after(fixture.hostile());
}

#[test]
fn what_a_guest_sent_before_the_event_gets_no_reset_after_it() {
    let fixture = Fixture::new();
    let mut driver = fixture.hostile_with(Options::of(FrontEnd::CloudHypervisor, WEB));
    let (_outside, _) = connect(&fixture, &mut driver, 1000);
    driver.disconnect();
    fixture.world.is("web", PartitionState::Off);
    // A credit update that the device before has not read, as is often in the queue of a guest that is restored.
    driver.try_send(&packet(1000, Operation::CreditUpdate), &[]);
    // This one is a request, and is answered.
    let seqpacket = Header {
        kind: SocketKind::Seqpacket as u16,
        ..packet(1001, Operation::Request)
    };
    driver.try_send(&seqpacket, &[]);
    driver.flush();
    driver.connect().unwrap();
    eventually("the device has read the packets", || driver.is_sent());
    eventually("the event arrives", || driver.poll_event() == Some(0));
    driver.refill();
    // A socket that is bound to its port connects again at once. Linux takes a reset for the answer.
    let (header, _) = driver.receive(TIMEOUT).unwrap().expect("a refusal");
    assert_eq!(header.operation(), Some(Operation::Reset));
    assert_eq!(header.dst_port, 1001);
    driver.try_send(&packet(1000, Operation::Request), &[]);
    driver.flush();
    let (header, _) = driver.receive(TIMEOUT).unwrap().expect("an answer");
    assert_eq!(header.operation(), Some(Operation::Response));
    accept(&fixture.listener);
    fixture.everything_works_after(driver);
}

/// Starts a queue where the device before has stopped, as a VMM does that has sent all the rest.
fn start_queue(driver: &mut Driver, index: u32) {
    let queue = match index {
        0 => driver.rx(),
        1 => driver.tx(),
        _ => driver.events(),
    };
    let (size, base, at) = (queue.size(), queue.used_index(), queue.addresses());
    let fds = [queue.kick_event(), queue.call_descriptor()];
    let [kick, call] = fds.map(|fd| fd.try_clone_to_owned().unwrap());
    let vmm = driver.vmm().unwrap();
    vmm.start_ring(index, size, base, at, [kick.as_fd(), call.as_fd()])
        .unwrap();
    vmm.enable_ring(index, true).unwrap();
}

#[test]
fn a_guest_whose_event_queue_starts_late_gets_the_event_and_no_connection_is_left_half() {
    let fixture = Fixture::new();
    let vmm = FrontEnd::CloudHypervisor;
    let mut driver = fixture.hostile_with(Options::of(vmm, WEB));
    let (_old, _) = connect(&fixture, &mut driver, 1000);
    driver.disconnect();
    fixture.world.is("web", PartitionState::Off);
    driver.open().unwrap();
    driver.run(vmm.script().connect).unwrap();
    let rest = [Step::SetFeatures, Step::MemTable { room: 0 }];
    driver.run(&rest).unwrap();
    start_queue(&mut driver, 0);
    start_queue(&mut driver, 1);
    // The device serves the guest in the end, as if it had no event queue.
    let (mut made_meanwhile, _) = connect(&fixture, &mut driver, 1001);
    assert_eq!(driver.poll_event(), None);
    start_queue(&mut driver, 2);
    eventually("the event arrives", || driver.poll_event() == Some(0));
    driver.refill();
    // The guest has reset this connection as well, and says nothing of it.
    made_meanwhile.set_read_timeout(Some(TIMEOUT)).unwrap();
    let error = made_meanwhile.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let (_, header) = connect(&fixture, &mut driver, 1002);
    assert_eq!(header.operation(), Some(Operation::Response));
    fixture.everything_works_after(driver);
}

#[test]
fn a_driver_that_does_not_handle_the_event_or_has_no_buffer_for_it_is_served_in_the_end() {
    let fixture = Fixture::new();
    let mut driver = reconnected(&fixture, FrontEnd::CloudHypervisor);
    let (_, header) = connect(&fixture, &mut driver, 1001);
    assert_eq!(header.operation(), Some(Operation::Response));
    drop(driver);
    fixture.everything_works_after(fixture.hostile());
}

#[test]
fn a_guest_whose_vmm_keeps_the_event_queue_gets_a_reset_for_each_packet_of_an_old_connection() {
    let fixture = Fixture::new();
    let mut driver = reconnected(&fixture, FrontEnd::Qemu);
    for op in [
        Operation::Data,
        Operation::CreditUpdate,
        Operation::CreditRequest,
        Operation::Shutdown,
        Operation::Response,
    ] {
        driver.try_send(&packet(1000, op), &[]);
        driver.flush();
        let (header, _) = driver.receive(TIMEOUT).unwrap().expect("an answer");
        assert_eq!(header.operation(), Some(Operation::Reset), "{op:?}");
        assert_eq!((header.dst_port, header.src_port), (1000, PORT));
    }
    // A reset is not answered.
    driver.try_send(&packet(1000, Operation::Reset), &[]);
    driver.flush();
    assert!(driver.receive(Duration::from_millis(50)).unwrap().is_none());
    let (_, header) = connect(&fixture, &mut driver, 1000);
    assert_eq!(header.operation(), Some(Operation::Response));
    fixture.everything_works_after(driver);
}

#[test]
fn queues_continue_at_the_used_index_whatever_index_the_vmm_states() {
    let world = World::with_web(|_| ());
    let listener = world.listen();
    for wrong in [0_u16, 1, 7, 128, 0xffff] {
        let mut driver = world.driver(Options::new(WEB));
        world.is("web", PartitionState::Running);
        let mut open = Vec::new();
        for port in 1000..1020 {
            driver.try_send(&packet(port, Operation::Request), &[]);
            driver.flush();
            let (header, _) = driver.receive(TIMEOUT).unwrap().expect("an answer");
            assert_eq!(header.operation(), Some(Operation::Response));
            open.push(accept(&listener));
        }
        driver.disconnect();
        world.is("web", PartitionState::Off);
        // Connects at the used indexes, and then stops and starts at the wrong one.
        driver.connect().unwrap();
        let stopped = driver.stop_queues().unwrap();
        driver.start_queues([wrong; 2]).unwrap();
        assert_eq!(driver.stop_queues().unwrap(), stopped, "{wrong}");
        driver.start_queues([wrong; 2]).unwrap();
        driver.try_send(&packet(2000, Operation::Request), &[]);
        driver.flush();
        let (header, _) = driver.receive(TIMEOUT).unwrap().expect("an answer");
        assert_eq!(header.operation(), Some(Operation::Response), "{wrong}");
        accept(&listener);
        drop(driver);
        world.is("web", PartitionState::Off);
    }
}
