//! Isolation of containers. Covers what a process in a container can reach, look up, register and
//! learn about its peers.

use std::io::{Read, Write};

use hvsock::{
    Endpoint, HvAddr, HvStream, Lease, PartitionName, PartitionRef, Refusal, ServiceId, VmId,
};
use hvsock_endpoint::{BrokerMessage, ClientMessage, LookupKind};

use crate::raw::Raw;
use hvsock_broker::model::ProblemKind;
use hvsock_testkit::process::{CapturedOutput, Running};
use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{
    PartitionEndpoint, World, accept, container, partition_ref, refused, vm,
};

const PORT: u32 = 1000;

fn by_name(endpoint: &PartitionEndpoint, name: &str) -> std::io::Result<HvStream> {
    let name = PartitionName::new(name).unwrap();
    let service = ServiceId::from_port(PORT);
    endpoint.connect_to(HvAddr::new(PartitionRef::Name(name), service))
}

#[test]
fn a_process_in_a_container_cannot_register_services() {
    let world = World::new();
    let web = world.container("web", None);
    // It runs as the broker's own user, as root in a container may.
    let id = ServiceId::from_port(PORT);
    let denied = refused(Lease::register_at(&web.endpoint(), "Mine", id, ""));
    assert!(matches!(denied, Refusal::Denied { .. }), "{denied}");
    assert!(world.handle().services(false).unwrap().is_empty());
    // Its folder has no control socket.
    let beside = std::fs::read_dir(web.0.parent().unwrap()).unwrap();
    let mut names: Vec<_> = beside.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["endpoint", "text"]);
}

#[test]
fn a_container_reaches_siblings_of_its_group_and_cannot_detect_others() {
    let world = World::new();
    let one = world.container("one", Some("group"));
    let two = world.container("two", Some("group"));
    let other = world.container("other", None);
    world.register(PORT);
    let listener = two.listen(VmId::WILDCARD, PORT).unwrap();
    let stream = by_name(&one, "two").unwrap();
    assert_eq!(accept(&listener).peer().unwrap().partition(), "one");
    drop(stream);

    let two_id = VmId::of_container("two");
    let nobody = VmId::of_container("nobody");
    assert_eq!(refused(other.connect(two_id, PORT)), Refusal::NotReachable);
    assert_eq!(refused(other.connect(nobody, PORT)), Refusal::NotReachable);
    let unknown = refused(by_name(&other, "nobody"));
    assert_eq!(refused(by_name(&other, "two")), unknown);
    let error = other.connect(two_id, PORT).unwrap_err().to_string();
    assert_eq!(other.connect(nobody, PORT).unwrap_err().to_string(), error);

    world
        .handle()
        .set_groups(&partition_ref("other"), vec!["group".into()])
        .unwrap();
    by_name(&other, "two").unwrap();
    assert_eq!(accept(&listener).peer().unwrap().partition(), "other");
}

#[test]
fn a_container_in_a_vm_is_added_and_changed_by_the_broker_there_alone() {
    let world = World::new();
    let handle = world.handle();
    handle.add_vm(vm("web", 7, &[])).unwrap();
    let refused = handle.add_container(container("web/box", &[])).unwrap_err();
    let want = "web/box is the name of a container in the virtual machine web; only the broker in \
                web adds it";
    assert_eq!(refused.to_string(), want);
    let fix = refused.fix().unwrap();
    assert_eq!(fix.to_string(), "add the container box in web");
    let refused = handle.add_vm(vm("web/vm", 8, &[])).unwrap_err().to_string();
    assert!(
        refused.starts_with("web/vm names a container in a virtual machine"),
        "{refused}"
    );
    // Nor is a folder or file made from such a name.
    assert!(!world.folder.join("containers/web").exists());
    assert!(!world.folder.join("partitions/web").exists());
    assert_eq!(handle.partitions().unwrap().len(), 2);
    // A registry may name it before it is there.
    let unknown = handle.partition(&partition_ref("web/box")).unwrap_err();
    assert_eq!(unknown.to_string(), "no partition `web/box`");
    assert_eq!(unknown.fix().unwrap(), fix);
}

#[test]
fn the_host_reaches_a_container_by_name_and_by_id() {
    let world = World::new();
    let (host, web) = (world.host(), world.container("web", None));
    world.register(PORT);
    let listener = web.listen(VmId::PARENT, PORT).unwrap();
    let id = VmId::of_container("web");
    for connected in [by_name(&host, "web"), host.connect(id, PORT)] {
        let mut outside = connected.unwrap();
        let mut inside = accept(&listener);
        outside.write_all(b"hello").unwrap();
        let mut bytes = [0; 5];
        inside.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
        assert_eq!(outside.peer_addr().unwrap().vm, id);
        assert_eq!(inside.peer_addr().unwrap().vm, VmId::PARENT);
    }
}

#[test]
fn listeners_in_a_container_get_no_pid_or_uid_and_listeners_of_the_host_do() {
    let world = World::new();
    let (host, web) = (world.host(), world.container("web", None));
    world.register(PORT);
    let inside = web.listen(VmId::WILDCARD, PORT).unwrap();
    for connected in [
        host.connect(VmId::of_container("web"), PORT),
        web.connect(VmId::LOOPBACK, PORT),
    ] {
        let _stream = connected.unwrap();
        let accepted = accept(&inside);
        let peer = accepted.peer().unwrap();
        assert_eq!((peer.pid(), peer.uid(), peer.gid()), (None, None, None));
    }
    let outside = host.listen(VmId::WILDCARD, PORT).unwrap();
    for (endpoint, vm, name) in [
        (&web, VmId::PARENT, "web"),
        (&host, VmId::LOOPBACK, "testhost"),
    ] {
        let (_stream, accepted) = endpoint.pair(vm, PORT, &outside);
        let peer = accepted.peer().unwrap();
        assert_eq!(peer.partition(), name);
        assert_eq!(peer.pid(), Some(std::process::id()));
        assert_eq!(peer.uid(), Some(rustix::process::geteuid().as_raw()));
    }
}

#[test]
fn a_listener_cannot_accept_another_partitions_connection() {
    let world = World::new();
    let host = world.host();
    let (web, db) = (world.container("web", None), world.container("db", None));
    world.register(PORT);
    // The same service in both; each receives only its own connections.
    let in_web = Raw::new(&web);
    in_web.listen(VmId::PARENT, PORT, 8);
    let in_db = Raw::new(&db);
    in_db.listen(VmId::PARENT, PORT, 8);
    let stream = host.connect(VmId::of_container("web"), PORT).unwrap();
    let (incoming, _data, _control) = in_web.recv_incoming();
    assert_eq!(incoming.connection, stream.connection_id());
    in_db.send(&ClientMessage::Accepted {
        connection: incoming.connection,
    });
    world.later_exchange();
    assert!(in_db.is_silent());
    assert_eq!(world.handle().listeners().unwrap()[0].waiting, 1);
}

#[test]
fn a_container_can_look_up_only_partitions_that_it_may_reach() {
    let world = World::new();
    let web = world.container("web", None);
    world.container("db", None);
    for (name, known) in [
        ("web", true),
        ("testhost", true),
        ("db", false),
        ("nil", false),
    ] {
        let raw = Raw::new(&web);
        raw.send(&ClientMessage::Lookup {
            kind: LookupKind::Partition,
            name: name.into(),
        });
        let found = matches!(raw.recv(), BrokerMessage::Found { .. });
        assert_eq!(found, known, "{name}");
    }
    let endpoint = Endpoint::at(&web.0);
    let error = endpoint
        .vm_id(&PartitionName::new("db").unwrap())
        .unwrap_err();
    assert_eq!(
        hvsock_testkit::world::refusal(&error),
        Refusal::NotReachable
    );
}

/// The endpoint as a running container reaches it: by a mount of the folder, not by its path.
fn mounted(folder: &std::fs::File) -> PartitionEndpoint {
    use std::os::fd::AsRawFd as _;
    PartitionEndpoint(format!("/proc/self/fd/{}/endpoint", folder.as_raw_fd()).into())
}

#[test]
fn a_running_container_reaches_its_endpoint_after_it_was_removed_and_added_again() {
    let world = World::new();
    let web = world.container("web", None);
    let folder = std::fs::File::open(web.0.parent().unwrap()).unwrap();
    let inside = mounted(&folder);
    inside.listen(VmId::LOOPBACK, PORT).unwrap();
    for _ in 0..2 {
        world
            .handle()
            .remove_partition(&partition_ref("web"))
            .unwrap();
        assert!(inside.listen(VmId::LOOPBACK, PORT).is_err());
        world.container("web", None);
        let listener = inside.listen(VmId::LOOPBACK, PORT).unwrap();
        inside.pair(VmId::LOOPBACK, PORT, &listener);
    }
    let world = world.restarted();
    inside.listen(VmId::LOOPBACK, PORT).unwrap();
    // Removed and added again by different brokers, one of which was killed.
    world
        .handle()
        .remove_partition(&partition_ref("web"))
        .unwrap();
    let leftover = world.folder.join("containers/web/endpoint");
    let world = world.restarted_after(|_| std::fs::write(&leftover, "").unwrap());
    assert!(!leftover.exists());
    world.container("web", None);
    inside.listen(VmId::LOOPBACK, PORT).unwrap();
    // Under another id it is another container.
    world
        .handle()
        .remove_partition(&partition_ref("web"))
        .unwrap();
    let mut other = container("web", &[]);
    other.id = Some(VmId::of_container("another"));
    world.handle().add_container(other).unwrap();
    assert!(inside.listen(VmId::LOOPBACK, PORT).is_err());
    world.inside("web").listen(VmId::LOOPBACK, PORT).unwrap();
    // Also if somebody gave it that id while no broker ran.
    let folder = std::fs::File::open(world.folder.join("containers/web")).unwrap();
    let inside = mounted(&folder);
    let world = world.restarted_after(|folder| {
        let text = "kind = \"container\"\nid = \"7d2c4cb5-5f1c-4f0e-9d4e-0a8e3f0c5b11\"\n";
        std::fs::write(folder.join("partitions/web.toml"), text).unwrap();
    });
    assert!(inside.listen(VmId::LOOPBACK, PORT).is_err());
    world.inside("web").listen(VmId::LOOPBACK, PORT).unwrap();
}

/// The problems of stale mounts.
fn stale_mounts(world: &World) -> Vec<String> {
    let problems = world.handle().status().unwrap().problems;
    let stale = problems
        .into_iter()
        .filter(|one| one.kind == ProblemKind::StaleMount);
    stale.map(|one| one.text).collect()
}

#[test]
fn a_container_whose_mount_leads_to_a_removed_folder_is_a_problem_until_it_ends() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let world = World::new();
    for name in ["web", "db"] {
        world.container(name, None);
    }
    // A process with a mount namespace of its own, as a container's.
    let mount = |name: &str| {
        let source = world.folder.join("containers").join(name);
        let point = world.folder.join(format!("mnt-{name}"));
        std::fs::create_dir(&point).unwrap();
        let script = r#"mount --bind "$1" "$2" && echo mounted && read end"#;
        let mut command = std::process::Command::new("unshare");
        command
            .args(["-m", "sh", "-c", script, "sh"])
            .args([source, point]);
        command
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped());
        let mut running = Running::start(&mut command).unwrap();
        let printed = CapturedOutput::from(running.take_stdout().unwrap());
        printed.wait_for("mounted", TIMEOUT).unwrap();
        running
    };
    let (mut web, _db) = (mount("web"), mount("db"));
    let world = world.restarted();
    assert!(stale_mounts(&world).is_empty());
    let world = world.restarted_after(|folder| {
        std::fs::remove_dir_all(folder.join("containers/web")).unwrap();
    });
    let problems = stale_mounts(&world);
    let want = "the container web must be started again: its process ";
    assert!(
        problems.len() == 1 && problems[0].starts_with(want),
        "{problems:?}"
    );
    let shown = world.partition("web").problems;
    assert_eq!(shown, problems);
    assert!(world.partition("db").problems.is_empty());
    web.kill().unwrap();
    eventually("no stale mount", || stale_mounts(&world).is_empty());
}

#[test]
fn a_folder_on_record_is_kept_without_its_endpoint_and_another_removed_when_a_broker_starts() {
    let world = World::new();
    world.container("web", None);
    world.container("gone", None);
    world
        .handle()
        .remove_partition(&partition_ref("gone"))
        .unwrap();
    let broken = world.folder.join("partitions/web.toml");
    std::fs::write(broken, "kind = ").unwrap();
    let (web, gone) = (
        world.folder.join("containers/web"),
        world.folder.join("containers/gone"),
    );
    assert!(web.exists() && gone.exists());
    // Of this one nobody knows whose it is.
    let unknown = world.folder.join("containers/unknown");
    std::fs::create_dir(&unknown).unwrap();
    let world = world.restarted();
    assert!(web.exists() && !unknown.exists());
    assert!(
        gone.exists() && !gone.join("endpoint").exists(),
        "it may be added again"
    );
    drop(world);
}
