//! Partitions that are paused, with connections that want to outlast it and others that do not.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use hvsock::{HvListener, HvStream, Refusal, VmId};
use hvsock_broker::model::{ConnectionState, PartitionState};

use crate::part::{Part, Playing};
use crate::world::{
    A_WHILE, PATIENCE, Place, World, accept, eventually, partition_ref, refusal, refused,
    service_ref,
};

const PORT: u32 = 900;

/// A host with the container `web`, whose service is registered.
struct Scene {
    world: World,
    host: Place,
    web: Place,
    listener: HvListener,
}

impl Scene {
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

    /// A connection from the container to the host that outlasts a pause.
    fn lasting(&self) -> (HvStream, HvStream) {
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

/// Nothing comes for a while.
fn stands_still(stream: &mut HvStream) {
    stream.set_read_timeout(Some(A_WHILE)).unwrap();
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
}

fn cut(stream: &mut HvStream) -> Refusal {
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    refusal(&error)
}

#[test]
fn a_pause_cuts_connections_and_refuses_new_ones_both_ways_until_it_ends() {
    let scene = Scene::new();
    let (mut inside, mut outside) = scene.web.pair(VmId::PARENT, PORT, &scene.listener);
    let serving = scene.web.listen(VmId::PARENT, PORT).unwrap();
    let web = VmId::of_container("web");
    scene.pause();
    assert_eq!(cut(&mut inside), Refusal::PartitionPaused);
    assert_eq!(cut(&mut outside), Refusal::PartitionPaused);
    for refusal in [
        refused(scene.web.connect(VmId::PARENT, PORT)),
        refused(scene.host.connect(web, PORT)),
        refused(scene.web.connect(VmId::LOOPBACK, PORT)),
    ] {
        assert_eq!(refusal, Refusal::PartitionPaused);
    }
    scene.resume();
    scene.web.pair(VmId::PARENT, PORT, &scene.listener);
    // The listener outlasted it.
    scene.host.pair(web, PORT, &serving);
}

#[test]
fn one_that_wants_to_outlast_it_stands_still_and_loses_nothing() {
    let scene = Scene::new();
    let (mut inside, mut outside) = scene.lasting();
    inside.write_all(b"before ").unwrap();
    outside.read_exact(&mut [0; 7]).unwrap();
    scene.pause();
    let connection = &scene.world.handle().connections().unwrap()[0];
    assert_eq!(connection.state, ConnectionState::Suspended);
    inside.write_all(b"meanwhile").unwrap();
    inside.shutdown(Shutdown::Write).unwrap();
    outside.write_all(b"and back").unwrap();
    stands_still(&mut outside);
    stands_still(&mut inside);
    scene.resume();
    let mut text = String::new();
    outside.read_to_string(&mut text).unwrap();
    assert_eq!(text, "meanwhile");
    outside.shutdown(Shutdown::Write).unwrap();
    text.clear();
    inside.read_to_string(&mut text).unwrap();
    assert_eq!(text, "and back");
    drop((inside, outside));
    scene.world.settles_at(1, 0);
}

#[test]
fn either_end_can_want_it_and_may_change_its_mind() {
    let scene = Scene::new();
    let (inside, mut outside) = scene.web.pair(VmId::PARENT, PORT, &scene.listener);
    let wanted = |ends: [bool; 2]| {
        eventually("the broker has heard", || {
            let connection = &scene.world.handle().connections().unwrap()[0];
            [
                connection.from.connected_suspend,
                connection.to.connected_suspend,
            ] == ends
        });
    };
    outside.set_connected_suspend(true).unwrap();
    wanted([false, true]);
    scene.pause();
    stands_still(&mut outside);
    // While it stands still it can be changed as well.
    inside.set_connected_suspend(true).unwrap();
    outside.set_connected_suspend(false).unwrap();
    wanted([true, false]);
    scene.resume();
    (&inside).write_all(b"!").unwrap();
    outside.read_exact(&mut [0]).unwrap();
    inside.set_connected_suspend(false).unwrap();
    wanted([false, false]);
    scene.pause();
    assert_eq!(cut(&mut outside), Refusal::PartitionPaused);
}

#[test]
fn what_a_listener_wants_holds_for_those_it_accepts() {
    let scene = Scene::new();
    let serving = HvListener::options()
        .endpoint(scene.web.endpoint())
        .connected_suspend(true)
        .listen(crate::world::address(VmId::PARENT, PORT))
        .unwrap();
    let web = VmId::of_container("web");
    let (mut outside, mut inside) = scene.host.pair(web, PORT, &serving);
    scene.pause();
    inside.write_all(b"!").unwrap();
    stands_still(&mut outside);
    scene.resume();
    outside.read_exact(&mut [0]).unwrap();
}

#[test]
fn loopback_in_it_stands_still_with_it() {
    let scene = Scene::new();
    let listener = scene.web.listen(VmId::LOOPBACK, PORT).unwrap();
    let (mut one, mut other) = scene.web.pair(VmId::LOOPBACK, PORT, &listener);
    scene.pause();
    one.write_all(b"!").unwrap();
    stands_still(&mut other);
    scene.resume();
    other.read_exact(&mut [0]).unwrap();
}

#[test]
fn much_on_its_way_stands_still_and_arrives_whole() {
    let scene = Scene::new();
    let (mut inside, mut outside) = scene.lasting();
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
                scene.pause();
                std::thread::sleep(Duration::from_millis(20));
                scene.resume();
            }
            at += count;
        }
        assert_eq!(at, total);
    });
}

#[test]
fn a_process_killed_meanwhile_is_a_reset_after_all_its_bytes() {
    let scene = Scene::new();
    let (inside, mut outside) = scene.lasting();
    (&inside).write_all(b"last words").unwrap();
    let mut bytes = [0; 10];
    outside.read_exact(&mut bytes).unwrap();
    let mut killed = Playing::start(&Part::Flood {
        endpoint: scene.web.0.clone(),
        vm: VmId::PARENT,
        port: PORT,
    });
    let mut flooded = accept(&scene.listener);
    flooded.set_connected_suspend(true).unwrap();
    eventually("the broker has heard", || {
        let connections = scene.world.handle().connections().unwrap();
        connections[1].to.connected_suspend
    });
    scene.pause();
    killed.kill();
    // Nobody hears of it yet: the partition stands still.
    std::thread::sleep(A_WHILE);
    assert_eq!(scene.world.handle().connections().unwrap().len(), 2);
    scene.resume();
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
fn what_stands_still_can_be_cut_disabled_and_removed() {
    let scene = Scene::new();
    let handle = scene.world.handle();
    let [mut first, mut second, mut third] = [0; 3].map(|_| scene.lasting());
    scene.pause();
    handle.cut(first.0.connection_id()).unwrap();
    for end in [&mut first.0, &mut first.1] {
        assert!(matches!(cut(end), Refusal::Reset { .. }));
    }
    let web = partition_ref("web");
    handle
        .set_enabled(&service_ref(PORT), false, Some(&web))
        .unwrap();
    for end in [&mut second.0, &mut second.1, &mut third.0, &mut third.1] {
        assert!(matches!(cut(end), Refusal::Disabled { .. }));
    }
    handle
        .set_enabled(&service_ref(PORT), true, Some(&web))
        .unwrap();
    scene.resume();
    let mut fourth = scene.lasting();
    scene.pause();
    handle.remove_partition(&web).unwrap();
    for end in [&mut fourth.0, &mut fourth.1] {
        assert_eq!(cut(end), Refusal::PartitionOff);
    }
    scene.world.settles_at(1, 0);
}

#[test]
fn siblings_go_on_when_both_run() {
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
    stands_still(&mut two);
    set("two", PartitionState::Running);
    two.read_exact(&mut [0]).unwrap();
}
