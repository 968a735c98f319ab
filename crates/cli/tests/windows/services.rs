//! `hvsock service`, with the registry of this machine.

use std::time::Instant;

use hvsock_registry::key_store::SERVICES;
use hvsock_testkit::process::CapturedOutput;
use serde_json::json;
use windows_registry::LOCAL_MACHINE;

use crate::util::{TIMEOUT, World, hvsock, id_of, run, start};

const IN_BOX: &str = "999e53d4-3d5c-4c3e-8779-bed06ec056e1";

#[test]
fn register_prints_only_the_guid_and_creates_the_registry_key() {
    let world = World::new();
    let name = world.name("HV Socket Demo");
    let done = run(["service", "register", &name, "--purpose", "a test"]);
    assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""));
    assert_eq!(done.stdout.lines().count(), 1);
    let id = done.stdout.trim();
    let key = LOCAL_MACHINE.open(format!("{SERVICES}\\{id}")).unwrap();
    assert_eq!(key.get_string("ElementName").unwrap(), name);
    let shown = world.show(&name);
    assert_eq!((&shown["id"], &shown["name"]), (&json!(id), &json!(name)));
    assert_eq!(
        (&shown["enabled"], &shown["lease"], &shown["creator"]),
        (&json!(true), &json!(false), &json!("hvsock"))
    );
    let user = std::env::var("USERNAME").unwrap();
    let owner = shown["owner"].as_str().unwrap();
    assert!(owner.ends_with(&user), "{owner}");
    // Windows does not count them, so the fields are absent instead of zero.
    assert_eq!(
        (shown.get("listeners"), shown.get("connections")),
        (None, None)
    );
    let text = world.ok(["service", "show", &name]);
    assert!(
        text.contains("a test") && !text.contains("listener"),
        "{text}"
    );
}

#[test]
fn a_service_is_found_by_name_port_and_guid_in_any_case() {
    let world = World::new();
    let (name, port) = (world.name("Backup"), world.port().to_string());
    let id = world.ok(["service", "register", &name, "--port", &port]);
    let id = id.trim();
    assert!(id.ends_with("-facb-11e6-bd58-64006a7986d3"), "{id}");
    let braces = format!("{{{}}}", id.to_uppercase());
    for service in [&name, &name.to_uppercase(), &port, &id.to_owned(), &braces] {
        let shown = world.show(service);
        assert_eq!((&shown["name"], &shown["id"]), (&json!(name), &json!(id)));
    }
}

#[test]
fn names_in_any_script_are_kept() {
    let world = World::new();
    let name = world.name("Sicherung für Büro 数据库 😀");
    let id = world.register(&name);
    assert_eq!(world.show(&id)["name"], json!(name));
    assert!(world.ok(["service", "list"]).contains(&name));
}

#[test]
fn a_list_is_printed_as_a_table_or_as_json() {
    let world = World::new();
    let names = [world.name("a"), world.name("b")];
    for name in &names {
        world.register(name);
    }
    let table = world.ok(["service", "list"]);
    assert!(table.starts_with("NAME"), "{table}");
    assert!(
        !table.contains("CONN") && !table.contains('\x1b'),
        "{table}"
    );
    let own = table
        .lines()
        .filter(|line| names.iter().any(|name| line.starts_with(name)));
    assert_eq!(own.count(), 2, "{table}");
    let listed = world.services();
    assert_eq!(listed[0]["name"], json!(names[0]));
    assert_eq!(listed[0].get("connections"), None);
    let all = world.json(["service", "list", "--all", "--json"]);
    let all = all.as_array().unwrap();
    assert!(
        all.iter()
            .any(|one| one["id"] == IN_BOX && one["in_box"] == true)
    );
}

#[test]
fn a_clash_is_refused_and_names_both_services() {
    let world = World::new();
    let (name, other, port) = (
        world.name("mine"),
        world.name("other"),
        world.port().to_string(),
    );
    world.ok(["service", "register", &name, "--port", &port]);
    let error = run(["service", "register", &other, "--port", &port]).failed();
    assert!(error.contains(&name) && error.contains(&other), "{error}");
    run(["service", "register", &name.to_uppercase()]).failed();
    let error = run(["service", "register", &other, "--id", IN_BOX]).failed();
    assert!(error.contains("Microsoft"), "{error}");
    assert_eq!(world.services().len(), 1);
}

#[test]
fn a_disabled_service_has_no_key_and_keeps_its_name() {
    let world = World::new();
    let name = world.name("backup");
    let id = world.register(&name);
    let done = run(["service", "disable", &name]);
    assert_eq!((done.code, done.stdout.as_str()), (Some(0), ""));
    assert!(done.stderr.contains("disabled"), "{}", done.stderr);
    assert!(!world.windows_has(&id));
    let shown = world.show(&name);
    assert_eq!(
        (&shown["id"], &shown["enabled"]),
        (&json!(id), &json!(false))
    );
    assert!(world.ok(["service", "list"]).contains("disabled"));
    run(["service", "register", &name]).failed();
    run(["service", "register", &world.name("x"), "--id", &id]).failed();

    let done = run(["--quiet", "service", "enable", &name]);
    assert_eq!(
        (done.code, done.stdout.as_str(), done.stderr.as_str()),
        (Some(0), "", "")
    );
    assert!(world.windows_has(&id));
    assert_eq!(world.show(&name)["enabled"], json!(true));
}

#[test]
fn an_unregistered_service_is_removed_even_if_disabled() {
    let world = World::new();
    for disabled in [false, true] {
        let name = world.name("backup");
        let id = world.register(&name);
        if disabled {
            world.ok(["service", "disable", &name]);
        }
        let done = run(["service", "unregister", &name]);
        assert!(done.stderr.contains(&id), "{done:?}");
        assert!(!world.windows_has(&id));
        let error = run(["service", "show", &name]).failed();
        assert!(error.contains(&name), "{error}");
        run(["service", "unregister", &name]).failed();
    }
}

#[test]
fn an_entry_without_a_name_is_shown_with_its_creator_and_can_be_removed() {
    let world = World::new();
    let id = format!("{:08x}-facb-11e6-bd58-64006a7986d3", world.port());
    // Podman creates such entries: `containers/podman`, pkg/machine/hyperv/vsock/vsock.go.
    let key = LOCAL_MACHINE
        .create(format!("{SERVICES}\\{}", id.to_uppercase()))
        .unwrap();
    for (name, value) in [
        ("Purpose", "Network"),
        ("ToolName", "podman"),
        ("MachineName", "podman-machine-default"),
    ] {
        key.set_string(name, value).unwrap();
    }
    drop(key);
    let shown = world.show(&id);
    assert_eq!(
        (&shown["creator"], &shown["purpose"]),
        (&json!("podman"), &json!("Network"))
    );
    let name = shown["name"].as_str().unwrap();
    assert!(!name.is_empty(), "{shown}");
    let listed = world.ok(["service", "list"]);
    let line = listed.lines().find(|line| line.contains(&id)).unwrap();
    assert!(line.contains("podman"), "{line}");
    let error = run(["service", "register", &world.name("mine"), "--id", &id]).failed();
    assert!(error.contains("podman"), "{error}");
    world.ok(["service", "unregister", &id]);
    assert!(!world.windows_has(&id));
}

#[test]
fn an_invalid_key_is_reported_and_the_others_are_listed() {
    let world = World::new();
    let name = world.name("in order");
    world.register(&name);
    let id = format!("{:08x}-0000-4000-8000-000000000001", world.port());
    let path = format!("{SERVICES}\\{id}");
    let key = LOCAL_MACHINE.create(&path).unwrap();
    key.set_u32("ElementName", 1).unwrap();
    let done = run(["service", "list"]);
    LOCAL_MACHINE.remove_tree(&path).unwrap();
    assert!(
        done.stderr.starts_with("warning: ") && done.stderr.contains(&id),
        "{}",
        done.stderr
    );
    assert!(done.ok().contains(&name));
}

#[test]
fn a_lease_lasts_as_long_as_the_command() {
    let world = World::new();
    let name = world.name("trial");
    let mut command = hvsock();
    let mut lease = start(command.args(["service", "register", &name, "--lease"]));
    let stdout = CapturedOutput::from(lease.take_stdout().unwrap());
    stdout.wait_for("\n", TIMEOUT).unwrap();
    let id = id_of(stdout.text().trim()).to_string();
    let shown = world.show(&name);
    assert_eq!((&shown["id"], &shown["lease"]), (&json!(id), &json!(true)));
    assert!(world.ok(["service", "list"]).contains("lease"));
    lease.kill().unwrap();
    let until = Instant::now() + TIMEOUT;
    while run(["service", "show", &name]).code != Some(1) {
        assert!(
            Instant::now() < until,
            "the lease of a killed process remains"
        );
    }
    // The name can be registered again.
    world.register(&name);
}

#[test]
fn unregistering_a_lease_ends_its_command() {
    let world = World::new();
    let name = world.name("trial");
    let mut command = hvsock();
    let mut lease = start(command.args(["service", "register", &name, "--lease"]));
    let stdout = CapturedOutput::from(lease.take_stdout().unwrap());
    let stderr = CapturedOutput::from(lease.take_stderr().unwrap());
    stdout.wait_for("\n", TIMEOUT).unwrap();
    world.ok(["service", "unregister", &name]);
    assert_eq!(lease.wait(TIMEOUT).unwrap().code(), Some(1));
    stderr.wait_for("the lease has ended", TIMEOUT).unwrap();
}

#[test]
fn the_guid_is_copied_to_the_clipboard() {
    let world = World::new();
    let name = world.name("clipped");
    let id = world.ok(["service", "register", &name, "--clip"]);
    let clipboard = clipboard_win::get_clipboard_string().unwrap();
    assert_eq!(clipboard, id.trim());
}

#[test]
fn wrong_usage_has_exit_status_two() {
    for arguments in [
        &["service"][..],
        &["service", "register"],
        &["service", "register", "2761"],
        &["service", "register", "x", "--port", "1", "--id", IN_BOX],
        &["service", "register", "x", "--port", "4294967296"],
        // Windows has no access rules.
        &["service", "register", "x", "--connect-user", "y"],
        &["service", "show", ""],
        &["--dir", "x", "service", "list"],
        &["nonsense"],
        &["--nonsense"],
        &[],
    ] {
        let error = run(arguments).usage_error();
        assert!(!error.is_empty(), "{arguments:?}");
    }
}
