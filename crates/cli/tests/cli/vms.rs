//! `hvsock vm`, without a running VMM.

use serde_json::json;

use hvsock_testkit::require;

use crate::util::{Completed, DEMO, World};

const ID: &str = "0b2f1f0e-0000-4000-8000-000000000001";

#[test]
fn a_vm_is_shown_listed_paused_resumed_and_removed() {
    let world = World::new();
    assert!(world.ok(["vm", "list"]).contains("hvsock vm add"));
    world.ok(["vm", "add", "web"]);
    world.ok(["vm", "add", "db", "--id", ID, "--unsealed-memory"]);
    world.container("box");
    assert_eq!(world.ok(["vm", "id", "db"]).trim(), ID);
    let list = world.json(["vm", "list", "--json"]);
    let cids: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|vm| &vm["cid"])
        .collect();
    assert_eq!(cids, [&json!(4), &json!(3)]);
    let table = world.ok(["vm", "list"]);
    let first: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(
        first,
        ["db", ID, "4", "vhost-user", "defined", "0"],
        "{table}"
    );
    let status = world.ok(["status"]);
    assert!(status.contains("web (vm with CID 3) defined"), "{status}");
    let shown = world.ok(["vm", "show", ID]);
    for part in ["CID           4\n", "QEMU          -object", "unsealed,"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    for (verb, state) in [
        ("pause", "`web` is defined, and paused when it starts"),
        ("resume", "`web` is defined\n"),
    ] {
        let done = world.run(["vm", verb, "web"]);
        assert!(done.stderr.contains(state), "{done:?}");
    }
    world.ok(["vm", "groups", "web", "front", "back"]);
    assert!(world.ok(["vm", "show", "web"]).contains("front, back"));
    world.ok(["vm", "remove", "web"]);
    assert!(world.run(["vm", "show", "web"]).failed().contains("web"));

    let error = world.run(["vm", "add", "ci", "--cid", "4"]).failed();
    assert!(error.contains("the VM db has the CID 4"), "{error}");
    for bad in ["2", "4294967295", "x"] {
        world.run(["vm", "add", "ci", "--cid", bad]).usage_error();
    }
    world
        .run(["vm", "add", "ci", "--memory", "2GB"])
        .usage_error();
    world.run(["vm", "add", "a/b/c"]).usage_error();
    let nested = world.run(["vm", "add", "a/b"]).failed();
    assert!(nested.contains("names a container"), "{nested}");
}

#[test]
fn the_vmm_of_a_vm_can_run_as_another_user() {
    let world = World::new();
    let error = world
        .run(["vm", "add", "web", "--user", "no-such-user"])
        .failed();
    assert!(error.contains("no user `no-such-user`"), "{error}");
    let done = world.run(["vm", "add", "web", "--user", "0", "--libvirt"]);
    // Only root can give the VM's socket to another user.
    if rustix::process::geteuid().is_root() {
        assert!(done.stderr.contains("must run as the user 0:"), "{done:?}");
        assert!(
            world
                .ok(["vm", "show", "web"])
                .contains("user          0\n")
        );
    } else {
        assert!(done.failed().contains("for the user 0"));
    }
}

#[test]
fn the_example_that_vm_show_prints_reaches_the_socket_of_the_vm() {
    let Some(_socat) = require::program("socat", &["-V"]) else {
        return;
    };
    let world = World::new();
    world.ok(["vm", "add", "web"]);
    let shown = world.ok(["vm", "show", "web"]);
    let fact = |label: &str| {
        let line = shown.lines().find(|line| line.starts_with(label)).unwrap();
        line[label.len()..].trim().to_owned()
    };
    let socket = world.dir().join("vm/web.vsock");
    assert_eq!(fact("hybrid vsock"), socket.to_str().unwrap());
    let json = world.json(["vm", "show", "web", "--json"]);
    assert_eq!(json["hybrid_socket"], json!(socket));
    let mut shell = std::process::Command::new("sh");
    let done = Completed::with_input(shell.args(["-c", &fact("example")]), b"");
    assert_eq!(done.stdout, "ERR the partition is off\n", "{done:?}");
}

#[test]
fn vm_commands_refuse_containers_and_container_commands_refuse_vms() {
    let world = World::new();
    world.ok(["vm", "add", "web"]);
    world.container("box");
    for verb in ["id", "show", "pause", "resume", "groups", "remove"] {
        let error = world.run(["container", verb, "web"]).failed();
        assert!(error.contains("web is a vm"), "{error}");
        assert!(error.contains("vm show web"), "{error}");
        let error = world.run(["vm", verb, "box"]).failed();
        assert!(error.contains("box is a container"), "{error}");
    }
    let list = world.json(["vm", "list", "--json"]);
    assert_eq!(list.as_array().unwrap().len(), 1);
    let list = world.json(["container", "list", "--json"]);
    assert_eq!(list.as_array().unwrap().len(), 1);
}

#[test]
fn why_reports_that_a_vm_is_off() {
    let world = World::new();
    world.ok(["vm", "add", "web"]);
    let error = world.run(["why", "web", "5000"]);
    assert!(
        error.stdout.contains("the VMM of web has not been seen"),
        "{error:?}"
    );
    world.register(DEMO);
    let error = world.run(["why", "web", DEMO]);
    assert!(
        error.stdout.contains("the VMM of web has not been seen"),
        "{error:?}"
    );
}

#[test]
fn a_service_is_shown_with_its_port_alias_and_found_by_it() {
    let world = World::new();
    world.ok(["service", "register", "Backup", "--id", ID]);
    let shown = world.ok(["service", "show", "backup"]);
    assert!(
        shown.contains("port alias    2077976510 (for guests)"),
        "{shown}"
    );
    let shown = world.json(["service", "show", "2077976510", "--json"]);
    assert_eq!(
        (&shown["id"], &shown["port"], &shown["alias"]),
        (&json!(ID), &json!(null), &json!(2_077_976_510))
    );
    world.ok(["service", "register", "Echo", "--port", "7"]);
    let shown = world.ok(["service", "show", "Echo"]);
    assert!(shown.contains("port          7\n"), "{shown}");
    assert!(!shown.contains("alias"), "{shown}");
    let clash = ["service", "register", "Mine", "--port", "2077976510"];
    let error = world.run(clash).failed();
    assert!(error.contains("(the alias of 0b2f1f0e"), "{error}");
}

#[test]
fn options_that_a_link_has_no_use_for_are_misused() {
    let world = World::new();
    for (options, what) in [
        (&["--hybrid", "/v.sock", "--cid", "3"][..], "--cid"),
        (
            &["--hybrid", "/v.sock", "--kernel-cid", "3"],
            "--kernel-cid",
        ),
        (&["--kernel-cid", "3", "--user", "root"], "--user"),
        (&["--kernel-cid", "2"], "--kernel-cid"),
        (&["--style", "openvmm"], "--hybrid"),
        (&["--netns", "/run/netns/x"], "--kernel-cid"),
        (&["--hybrid", "/v.sock", "--style", "xen"], "firecracker"),
        (&["--hybrid", "/v.sock", "--vmm", "qemu"], "--vmm qemu"),
        (&["--hybrid", "/v.sock", "--memory", "2G"], "--memory"),
        (&["--kernel-cid", "3", "--machine", "pc"], "--machine"),
    ] {
        let mut line = vec!["vm", "add", "web"];
        line.extend(options);
        let done = world.run(&line);
        assert_eq!(done.code, Some(2), "{done:?}");
        assert!(done.stderr.contains(what), "{what}: {done:?}");
    }
    let list = world.json(["vm", "list", "--json"]);
    assert_eq!(list.as_array().unwrap().len(), 0);
}

#[test]
fn show_says_that_a_vm_without_the_brokers_device_has_no_options() {
    let world = World::new();
    let path = world.dir().join("v.sock");
    world.ok(["vm", "add", "web", "--hybrid", path.to_str().unwrap()]);
    for options in [["--vmm", "uml"], ["--memory", "2G"], ["--machine", "pc"]] {
        let mut line = vec!["vm", "show", "web"];
        line.extend(options);
        let error = world.run(&line).failed();
        for part in [
            "`web` does not use the broker's device",
            "help: hvsock vm show web",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}

#[test]
fn a_taken_cid_of_the_kernel_is_told_with_what_can_be_done() {
    let world = World::new();
    world.ok(["vm", "add", "k1", "--kernel-cid", "42"]);
    let error = world
        .run(["vm", "add", "k2", "--kernel-cid", "42"])
        .failed();
    let want = "the VM k1 has the CID 42 already; give the CID that the VMM has given this VM, or \
                remove the other one";
    assert!(error.contains(want), "{error}");
    world.ok(["vm", "add", "web", "--cid", "42"]);
    let error = world.run(["vm", "add", "db", "--cid", "42"]).failed();
    assert!(error.contains("or let the broker choose"), "{error}");
    for (cid, why) in [
        ("2", "CID 2 is the host"),
        ("abc", "a guest's CID is a number"),
    ] {
        let error = world.run(["vm", "add", "k3", "--kernel-cid", cid]);
        assert!(error.usage_error().contains(why), "{cid}");
    }
}

#[test]
fn a_socket_of_the_broker_is_not_taken_for_one_of_a_vmm() {
    let world = World::new();
    world.ok(["vm", "add", "web"]);
    world.container("box");
    let link = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(world.dir(), link.path().join("run")).unwrap();
    for path in [
        "vm/web.sock",
        "vm/web.vsock",
        "vm/none.sock",
        "vm/../vm/web.vsock",
        "endpoint",
        "control",
        "lock",
        "containers/box/endpoint",
    ] {
        for folder in [world.dir(), &link.path().join("run")] {
            let path = folder.join(path);
            let error = world.run(["vm", "add", "f", "--hybrid", path.to_str().unwrap()]);
            let error = error.failed();
            assert!(error.contains("is the broker's own"), "{path:?}: {error}");
        }
    }
    let folder = world
        .run(["vm", "add", "f", "--hybrid", "/run/v.sock/"])
        .failed();
    assert!(folder.contains("must name a socket"), "{folder}");
    let control = world
        .run(["vm", "add", "f", "--hybrid", "/run/a\nb"])
        .failed();
    assert!(
        control.contains("must not have control characters"),
        "{control}"
    );
    let foreign = world.dir().join("v.sock");
    world.ok(["vm", "add", "f", "--hybrid", foreign.to_str().unwrap()]);
}
