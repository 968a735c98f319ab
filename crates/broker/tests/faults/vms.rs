//! VMs that an operator adds, pauses and removes, without a VMM. Covers context ids, sockets,
//! stored files, invalid files and pauses.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use hvsock::{Refusal, VmId};
use hvsock_broker::model::{EventKind, NewVm, Partition, PartitionKind, PartitionState};
use hvsock_broker::{Broker, ControlError};

use hvsock_testkit::wait::TIMEOUT;
use hvsock_testkit::world::{World, config, container, partition_ref, refused};

fn vm(name: &str, cid: Option<u32>) -> NewVm {
    serde_json::from_value(serde_json::json!({"name": name, "cid": cid})).expect("one")
}

fn error_text<T: std::fmt::Debug>(result: Result<T, ControlError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_vm_is_listed_and_defined_until_its_vmm_connects() {
    let world = World::new();
    let handle = world.handle();
    let events = handle.events().unwrap();
    let web = handle.add_vm(vm("web", Some(42))).unwrap();
    assert_eq!(
        (web.kind, web.state),
        (PartitionKind::Vm, PartitionState::Defined)
    );
    assert_eq!(web.cid, Some(42));
    assert_eq!(web.socket, Some(world.folder.join("vm/web.sock")));
    assert_eq!((web.endpoint, web.unsealed_memory), (None, false));
    let event = events.recv_timeout(TIMEOUT).unwrap().what;
    let partition = "web".to_owned();
    assert_eq!(event, EventKind::PartitionAdded { partition });
    let mode = fs::metadata(world.folder.join("vm")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o711);
    let mode = fs::metadata(world.folder.join("vm/web.sock")).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    world.register(7);
    assert_eq!(
        refused(world.host().connect(web.id, 7)),
        Refusal::PartitionOff
    );

    let gone = handle.remove_partition(&partition_ref("web")).unwrap();
    assert_eq!(gone.id, web.id);
    assert!(!world.folder.join("partitions/web.toml").exists());
    handle.add_vm(vm("web", Some(42))).unwrap();
}

#[test]
fn a_cid_belongs_to_one_vm() {
    let world = World::new();
    let handle = world.handle();
    let cid_of = |new| handle.add_vm(new).map(|vm: Partition| vm.cid.unwrap());
    assert_eq!(cid_of(vm("a", None)).unwrap(), 3);
    assert_eq!(cid_of(vm("b", Some(5))).unwrap(), 5);
    assert_eq!(cid_of(vm("c", None)).unwrap(), 4);
    assert_eq!(cid_of(vm("d", None)).unwrap(), 6);
    assert_eq!(
        error_text(cid_of(vm("e", Some(5)))),
        "the VM b has the CID 5 already; choose another, or let the broker choose"
    );
    for cid in [0, 2, u32::MAX] {
        assert_eq!(
            error_text(cid_of(vm("e", Some(cid)))),
            format!("a guest's CID is a number from 3 to 4294967294; {cid} is not")
        );
    }
    assert!(error_text(cid_of(vm("A", Some(9)))).contains("a partition named a already exists"));
    handle.add_container(container("web", &[])).unwrap();
    assert!(
        error_text(cid_of(vm("web", Some(9)))).contains("a partition named web already exists")
    );
    // A refused VM leaves nothing behind.
    assert_eq!(cid_of(vm("e", Some(9))).unwrap(), 9);
    handle.remove_partition(&partition_ref("a")).unwrap();
    assert_eq!(cid_of(vm("f", None)).unwrap(), 3);
}

#[test]
fn vms_keep_all_their_settings_across_a_restart() {
    let world = World::new();
    let mut new = vm("web", Some(42));
    (new.groups, new.unsealed_memory) = (vec!["blue".to_owned()], true);
    let uid = fs::metadata("/proc/self").unwrap().uid();
    new.user = Some(uid.to_string());
    world.handle().add_vm(new).unwrap();
    world.handle().add_vm(vm("db", None)).unwrap();
    let groups = vec!["red".to_owned()];
    world
        .handle()
        .set_groups(&partition_ref("web"), groups)
        .unwrap();
    let before = world.handle().partitions().unwrap();
    let World { broker, folder } = world;
    drop(broker);
    let broker = Broker::start(config(folder.path())).unwrap();
    assert_eq!(broker.handle().partitions().unwrap(), before);
    assert_eq!(before[2].groups, ["red"]);
    assert!(before[2].unsealed_memory);
    assert_eq!(before[2].cid, Some(42));
    assert_eq!(before[2].user, Some(uid.to_string()));
}

#[test]
fn a_vms_socket_belongs_to_its_vmms_user() {
    let world = World::new();
    let handle = world.handle();
    let of = |user: &str| NewVm {
        user: Some(user.to_owned()),
        ..vm("web", None)
    };
    assert_eq!(
        error_text(handle.add_vm(of("no-such-user"))),
        "this machine has no user `no-such-user`"
    );
    let socket = world.folder.join("vm/web.sock");
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        handle.add_vm(of("12345")).unwrap();
        let found = fs::metadata(&socket).unwrap();
        assert_eq!((found.uid(), found.mode() & 0o777), (12_345, 0o600));
    } else {
        let error = error_text(handle.add_vm(of("12345")));
        assert!(error.contains("for the user 12345"), "{error}");
        assert_eq!(handle.partitions().unwrap().len(), 1);
    }
}

#[test]
fn an_invalid_file_of_a_vm_is_reported_and_affects_no_other_vm() {
    let world = World::new();
    world.handle().add_vm(vm("good", Some(5))).unwrap();
    let World { broker, folder } = world;
    drop(broker);
    let id = VmId::random().to_string();
    let files = [
        (
            "user",
            "kind = \"vm\"\ncid = 7\nuser = \"nobody-here\"",
            "no user `nobody-here`",
        ),
        ("nocid", "kind = \"vm\"", "has no `cid`"),
        ("hostcid", "kind = \"vm\"\ncid = 2", "2 is not"),
        (
            "twice",
            "kind = \"vm\"\ncid = 5",
            "the VM good has the CID 5",
        ),
        (
            "box",
            "kind = \"container\"\ncid = 6",
            "only a VM has `cid`",
        ),
        ("typo", "kind = \"vm\"\ncld = 6", "unknown key `cld`"),
    ];
    for (n, (name, text, _)) in files.iter().enumerate() {
        let id = format!("{}{n:x}", &id[..35]);
        let path = folder.join(format!("partitions/{name}.toml"));
        fs::write(path, format!("{text}\nid = \"{id}\"\n")).unwrap();
    }
    let broker = Broker::start(config(folder.path())).unwrap();
    let partitions = broker.handle().partitions().unwrap();
    assert_eq!(partitions.len(), 2, "{partitions:#?}");
    let problems = broker.handle().status().unwrap().problems;
    assert_eq!(problems.len(), files.len(), "{problems:#?}");
    for (name, _, words) in files {
        let found = |text: &str| text.contains(name) && text.contains(words);
        let is_there = problems.iter().any(|problem| found(&problem.text));
        assert!(is_there, "{words}: {problems:#?}");
    }
}

#[test]
fn an_operators_pause_is_kept_while_the_vm_does_not_run() {
    let world = World::new();
    let handle = world.handle();
    handle.add_vm(vm("web", None)).unwrap();
    let web = partition_ref("web");
    for (state, paused) in [
        (PartitionState::Paused, true),
        (PartitionState::Running, false),
    ] {
        let seen = handle.set_state(&web, state).unwrap();
        assert_eq!(seen.state, PartitionState::Defined);
        assert_eq!(seen.paused_by_operator, paused);
    }
    let off = error_text(handle.set_state(&web, PartitionState::Off));
    assert_eq!(
        off,
        "a VM is off when its VMM has exited; stop the VMM instead"
    );
}

#[test]
fn a_vm_whose_socket_path_would_be_too_long_is_not_added() {
    let world = World::new();
    let name = "n".repeat(63);
    let deep = world.folder.join("d".repeat(50));
    fs::create_dir(&deep).unwrap();
    let broker = Broker::start(config(&deep)).unwrap();
    let error = error_text(broker.handle().add_vm(vm(&name, None)));
    assert!(error.contains("sock"), "{error}");
    assert_eq!(broker.handle().partitions().unwrap().len(), 1);
    assert_eq!(
        broker.handle().add_vm(vm("web", None)).unwrap().cid,
        Some(3)
    );
}
