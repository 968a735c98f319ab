//! Paused partitions. Covers connections with and without `HVSOCKET_CONNECTED_SUSPEND`, changes of
//! the option, and suspended connections that are closed or whose process is killed.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use hvsock::{HvListener, HvStream, Refusal, VmId};
use hvsock_broker::model::{ConnectionState, PartitionState};

use crate::child::{Child, ChildRole};
use hvsock_testkit::wait::eventually;
use hvsock_testkit::world::{
    PartitionEndpoint, World, accept, partition_ref, refusal, refused, service_ref,
};

const PORT: u32 = 900;

/// A host with a container `web` and a registered service.
struct Fixture {
    world: World,
    host: PartitionEndpoint,
    web: PartitionEndpoint,
    listener: HvListener,
}

impl Fixture {
    fn new() -> Self {
        let world = World::new();
        let (host, web) = (world.host(), world.container("web", None));
        world.register(PORT);
        let listener = host.listen(VmId::CHILDREN, PORT).unwrap();
        Self {
            world,
            host,
            web,
            listener,
        }
    }

    /// A connection from the container to the host that survives a pause.
    fn suspendable_pair(&self) -> (HvStream, HvStream) {
        let inside = self.web.connect_suspendable(VmId::PARENT, PORT);
        (inside, accept(&self.listener))
    }

    fn pause(&self) {
        self.set(PartitionState::Paused);
    }

    fn resume(&self) {
        self.set(PartitionState::Running);
    }

    fn set(&self, state: PartitionState) {
        let handle = self.world.handle();
        handle.set_state(&partition_ref("web"), state).unwrap();
    }
}

fn reset_reason(stream: &mut HvStream) -> Refusal {
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    refusal(&error)
}

#[test]
fn a_pause_resets_connections_and_refuses_new_ones_both_ways_until_it_ends() {
    let fixture = Fixture::new();
    let (mut inside, mut outside) = fixture.web.pair(VmId::PARENT, PORT, &fixture.listener);
    let serving = fixture.web.listen(VmId::PARENT, PORT).unwrap();
    let web = VmId::of_container("web");
    fixture.pause();
    assert_eq!(reset_reason(&mut inside), Refusal::PartitionPaused);
    assert_eq!(reset_reason(&mut outside), Refusal::PartitionPaused);
    for refusal in [
        refused(fixture.web.connect(VmId::PARENT, PORT)),
        refused(fixture.host.connect(web, PORT)),
        refused(fixture.web.connect(VmId::LOOPBACK, PORT)),
    ] {
        assert_eq!(refusal, Refusal::PartitionPaused);
    }
    fixture.resume();
    fixture.web.pair(VmId::PARENT, PORT, &fixture.listener);
    // The listener survives the pause.
    fixture.host.pair(web, PORT, &serving);
}

#[test]
fn a_suspended_connection_moves_no_bytes_and_loses_none() {
    let fixture = Fixture::new();
    let (mut inside, mut outside) = fixture.suspendable_pair();
    inside.write_all(b"before ").unwrap();
    outside.read_exact(&mut [0; 7]).unwrap();
    fixture.pause();
    let connection = &fixture.world.handle().connections().unwrap()[0];
    assert_eq!(connection.state, ConnectionState::Suspended);
    inside.write_all(b"meanwhile").unwrap();
    inside.shutdown(Shutdown::Write).unwrap();
    outside.write_all(b"and back").unwrap();
    fixture.world.nothing_arrives(&mut outside);
    fixture.world.nothing_arrives(&mut inside);
    fixture.resume();
    let mut text = String::new();
    outside.read_to_string(&mut text).unwrap();
    assert_eq!(text, "meanwhile");
    outside.shutdown(Shutdown::Write).unwrap();
    text.clear();
    inside.read_to_string(&mut text).unwrap();
    assert_eq!(text, "and back");
    drop((inside, outside));
    fixture.world.settles_at(1, 0);
}

#[test]
fn either_end_can_set_and_clear_connected_suspend_at_any_time() {
    let fixture = Fixture::new();
    let (inside, mut outside) = fixture.web.pair(VmId::PARENT, PORT, &fixture.listener);
    let wanted = |ends: [bool; 2]| {
        eventually("the broker has handled the option", || {
            let connection = &fixture.world.handle().connections().unwrap()[0];
            [
                connection.from.connected_suspend,
                connection.to.connected_suspend,
            ] == ends
        });
    };
    outside.set_connected_suspend(true).unwrap();
    wanted([false, true]);
    fixture.pause();
    fixture.world.nothing_arrives(&mut outside);
    // The option can also be changed while the connection is suspended.
    inside.set_connected_suspend(true).unwrap();
    outside.set_connected_suspend(false).unwrap();
    wanted([true, false]);
    fixture.resume();
    (&inside).write_all(b"!").unwrap();
    outside.read_exact(&mut [0]).unwrap();
    inside.set_connected_suspend(false).unwrap();
    wanted([false, false]);
    fixture.pause();
    assert_eq!(reset_reason(&mut outside), Refusal::PartitionPaused);
}

#[test]
fn accepted_connections_inherit_the_listeners_connected_suspend() {
    let fixture = Fixture::new();
    let serving = HvListener::options()
        .endpoint(fixture.web.endpoint())
        .connected_suspend(true)
        .listen(hvsock_testkit::world::address(VmId::PARENT, PORT))
        .unwrap();
    let web = VmId::of_container("web");
    let (mut outside, mut inside) = fixture.host.pair(web, PORT, &serving);
    fixture.pause();
    inside.write_all(b"!").unwrap();
    fixture.world.nothing_arrives(&mut outside);
    fixture.resume();
    outside.read_exact(&mut [0]).unwrap();
}

#[test]
fn loopback_connections_of_a_paused_partition_are_suspended() {
    let fixture = Fixture::new();
    let listener = fixture.web.listen(VmId::LOOPBACK, PORT).unwrap();
    let (mut one, mut other) = fixture.web.pair(VmId::LOOPBACK, PORT, &listener);
    fixture.pause();
    one.write_all(b"!").unwrap();
    fixture.world.nothing_arrives(&mut other);
    fixture.resume();
    other.read_exact(&mut [0]).unwrap();
}

#[test]
fn bytes_in_flight_survive_several_pauses() {
    let fixture = Fixture::new();
    let (mut inside, mut outside) = fixture.suspendable_pair();
    let total = 8 << 20;
    let byte = |at: usize| (at % 251) as u8;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let bytes: Vec<u8> = (0..total).map(byte).collect();
            inside.write_all(&bytes).unwrap();
            inside.shutdown(Shutdown::Write).unwrap();
        });
        let mut at = 0;
        let mut buffer = vec![0; 100_000];
        loop {
            let count = outside.read(&mut buffer).unwrap();
            if count == 0 {
                break;
            }
            let whole = buffer[..count]
                .iter()
                .enumerate()
                .all(|(n, b)| *b == byte(at + n));
            assert!(whole, "damaged after {at} bytes");
            let quarter = total / 4;
            if at / quarter != (at + count) / quarter {
                fixture.pause();
                std::thread::sleep(Duration::from_millis(20));
                fixture.resume();
            }
            at += count;
        }
        assert_eq!(at, total);
    });
}

#[test]
fn a_process_killed_during_a_pause_resets_its_connection_when_the_pause_ends() {
    let fixture = Fixture::new();
    let (inside, mut outside) = fixture.suspendable_pair();
    (&inside).write_all(b"last words").unwrap();
    let mut bytes = [0; 10];
    outside.read_exact(&mut bytes).unwrap();
    let mut killed = Child::start(&ChildRole::Flood {
        endpoint: fixture.web.0.clone(),
        vm: VmId::PARENT,
        port: PORT,
    });
    let mut flooded = accept(&fixture.listener);
    flooded.set_connected_suspend(true).unwrap();
    eventually("the broker has handled the option", || {
        let connections = fixture.world.handle().connections().unwrap();
        connections[1].to.connected_suspend
    });
    fixture.pause();
    killed.kill();
    // The connection is not reset during the pause.
    fixture.world.later_exchange();
    let connections = fixture.world.handle().connections().unwrap();
    let id = flooded.connection_id();
    assert!(connections.iter().any(|connection| connection.id == id));
    fixture.resume();
    let mut buffer = vec![0; 65_536];
    let error = loop {
        match flooded.read(&mut buffer) {
            Ok(count) => assert!(count > 0, "a clean end"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    (&inside).write_all(b"still here").unwrap();
    outside.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"still here");
}

#[test]
fn suspended_connections_can_be_closed_disabled_and_removed() {
    let fixture = Fixture::new();
    let handle = fixture.world.handle();
    let [mut first, mut second, mut third] = [0; 3].map(|_| fixture.suspendable_pair());
    fixture.pause();
    handle.close_connection(first.0.connection_id()).unwrap();
    for end in [&mut first.0, &mut first.1] {
        assert!(matches!(reset_reason(end), Refusal::Reset { .. }));
    }
    let web = partition_ref("web");
    handle
        .set_enabled(&service_ref(PORT), false, Some(&web))
        .unwrap();
    for end in [&mut second.0, &mut second.1, &mut third.0, &mut third.1] {
        assert!(matches!(reset_reason(end), Refusal::Disabled { .. }));
    }
    handle
        .set_enabled(&service_ref(PORT), true, Some(&web))
        .unwrap();
    fixture.resume();
    let mut fourth = fixture.suspendable_pair();
    fixture.pause();
    handle.remove_partition(&web).unwrap();
    for end in [&mut fourth.0, &mut fourth.1] {
        assert_eq!(reset_reason(end), Refusal::PartitionOff);
    }
    fixture.world.settles_at(1, 0);
}

#[test]
fn a_connection_between_siblings_resumes_when_both_run() {
    let world = World::new();
    let pair = ["one", "two"].map(|name| world.container(name, Some("group")));
    world.register(PORT);
    let listener = pair[1].listen(VmId::WILDCARD, PORT).unwrap();
    let mut one = pair[0].connect_suspendable(VmId::of_container("two"), PORT);
    let mut two = accept(&listener);
    let set = |name, state| {
        let done = world.handle().set_state(&partition_ref(name), state);
        done.unwrap();
    };
    set("one", PartitionState::Paused);
    set("two", PartitionState::Paused);
    one.write_all(b"!").unwrap();
    set("one", PartitionState::Running);
    world.nothing_arrives(&mut two);
    set("two", PartitionState::Running);
    two.read_exact(&mut [0]).unwrap();
}
