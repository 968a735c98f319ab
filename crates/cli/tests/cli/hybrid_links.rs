//! VMs that are reached by the hybrid Unix socket of their VMM, which does not run.

use std::fs;
use std::os::unix::fs::symlink;

use crate::util::{Completed, DEMO, World, folder, in_container};

#[test]
fn a_vm_that_is_off_is_started_by_its_vmm_whose_socket_only_the_host_is_told() {
    let world = World::new();
    world.register(DEMO);
    let path = world.dir().join("v.sock");
    let path = path.to_str().unwrap();
    world.ok(["vm", "add", "web", "--hybrid", path, "--group", "front"]);
    world.ok(["container", "add", "box", "--group", "front"]);
    let want = format!("start the VMM of web, whose socket is {path}");
    for command in [&["connect", "web", DEMO][..], &["why", "web", DEMO]] {
        let done = world.run(command);
        let text = format!("{}{}", done.stdout, done.stderr);
        assert_ne!(done.code, Some(0), "{text}");
        assert!(text.contains(&want), "{text}");
        assert!(!text.contains("vm show"), "{text}");
    }
    let id = world.ok(["vm", "id", "web"]);
    let endpoint = world.dir().join("containers/box/endpoint");
    for verb in ["connect", "why"] {
        let mut inside = in_container(&endpoint, [verb, id.trim(), DEMO]);
        let done = Completed::of(&mut inside);
        let text = format!("{}{}", done.stdout, done.stderr);
        assert!(text.contains("start the VMM of web"), "{text}");
        assert!(!text.contains(path), "{text}");
    }
}

#[test]
fn two_vms_cannot_have_one_hybrid_socket_in_any_spelling() {
    let world = World::new();
    let folder = folder();
    let base = folder.path().canonicalize().unwrap();
    fs::create_dir(base.join("run")).unwrap();
    symlink("run", base.join("var")).unwrap();
    let at = |path: &str| base.join(path).to_str().unwrap().to_owned();
    world.ok(["vm", "add", "web", "--hybrid", &at("run/v.sock")]);
    for spelling in [
        "run/v.sock",
        "var/v.sock",
        "run//v.sock",
        "run/./v.sock",
        "run/../run/v.sock",
        "none/../run/v.sock",
    ] {
        let add = ["vm", "add", "db", "--hybrid", &at(spelling)];
        let error = world.run(add).failed();
        let want = format!(
            "the VM web has the hybrid socket {} already",
            at("run/v.sock")
        );
        assert!(error.contains(&want), "{spelling}: {error}");
    }
    world.ok(["vm", "add", "db", "--hybrid", &at("var/w.sock")]);
    let shown = world.json(["vm", "show", "db", "--json"]);
    assert_eq!(shown["link"]["path"], at("run/w.sock"));
    world.ok(["vm", "remove", "web"]);
    world.ok(["vm", "add", "ci", "--hybrid", &at("var/v.sock")]);
}
