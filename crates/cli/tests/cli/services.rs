//! `hvsock service`.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use hvsock_testkit::require;
use rustix::process::Signal;
use serde_json::json;

use crate::util::{Completed, DEMO, Running, World, eventually};

const IN_BOX: &str = "999e53d4-3d5c-4c3e-8779-bed06ec056e1";

#[test]
fn register_prints_only_the_guid() {
    let world = World::new();
    let done = world.run(["service", "register", DEMO]);
    assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""));
    assert_eq!(done.stdout.lines().count(), 1);
    let id = done.stdout.trim();
    assert_eq!((id.len(), id.matches('-').count()), (36, 4), "{id}");
    let shown = world.json(["service", "show", DEMO, "--json"]);
    assert_eq!((&shown["id"], &shown["name"]), (&json!(id), &json!(DEMO)));
    assert_eq!(
        (&shown["enabled"], &shown["lease"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(shown["creator"], "hvsock");
}

#[test]
fn a_service_with_a_port_has_the_guid_of_the_vsock_template() {
    let world = World::new();
    let id = world.ok(["service", "register", "backup", "--port", "2761"]);
    assert_eq!(id.trim(), "00000ac9-facb-11e6-bd58-64006a7986d3");
    for service in ["backup", "BACKUP", "2761", id.trim()] {
        let shown = world.json(["service", "show", service, "--json"]);
        assert_eq!(
            (&shown["name"], &shown["port"]),
            (&json!("backup"), &json!(2761))
        );
    }
}

#[test]
fn access_rules_are_registered_and_shown() {
    let world = World::new();
    let id = "0b2f1f0e-0000-4000-8000-000000000001";
    let done = world.run([
        "service",
        "register",
        "backup",
        "--id",
        id,
        "--purpose",
        "nightly",
        "--connect-user",
        "root",
        "--connect-user",
        "1001",
        "--bind-user",
        "*",
        "--partition",
        "@front",
    ]);
    assert_eq!(done.ok().trim(), id);
    let shown = world.json(["service", "show", "backup", "--json"]);
    assert_eq!(shown["connect"]["users"], json!(["root", "1001"]));
    assert_eq!(shown["bind"]["users"], json!(["*"]));
    assert_eq!(shown["bind"]["partitions"], json!(["@front"]));
    assert_eq!(shown["connect"]["partitions"], json!(["@front"]));
    let text = world.ok(["service", "show", "backup"]);
    for part in [
        "nightly",
        "users root, 1001 ",
        "partitions @front ",
        "everyone on this machine ",
        "services/0b2f1f0e-0000-4000-8000-000000000001.toml",
        "0 listeners, 0 connections",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_service_is_not_registered_with_rules_for_a_user_who_does_not_exist() {
    let world = World::new();
    for option in ["--connect-user", "--bind-user"] {
        let register = ["service", "register", "backup", option, "no-such-user"];
        let error = world.run(register).failed();
        assert!(error.contains("has no user \"no-such-user\""), "{error}");
        let shown = world.run(["service", "show", "backup"]);
        assert!(shown.failed().contains("backup"), "nothing is registered");
    }
}

#[test]
fn a_list_is_printed_as_a_table_or_as_json() {
    let world = World::new();
    assert!(
        world
            .ok(["service", "list"])
            .contains("hvsock service register")
    );
    assert_eq!(world.json(["service", "list", "--json"]), json!([]));
    world.register(DEMO);
    world.register("another");
    let table = world.ok(["service", "list"]);
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[0].starts_with("NAME"), "{table}");
    assert!(
        lines[1].starts_with("another") && lines[2].starts_with(DEMO),
        "{table}"
    );
    assert!(!table.contains('\x1b'), "colour without a terminal");
    let all = world.json(["service", "list", "--all", "--json"]);
    let count = |what: &str| {
        let all = all.as_array().unwrap().iter();
        all.filter(|one| one[what] == true).count()
    };
    assert_eq!((count("in_box"), count("built_in")), (2, 9));
    let table = world.ok(["service", "list", "--all"]);
    assert!(
        table.contains("in-box") && table.contains("built in"),
        "{table}"
    );
}

#[test]
fn a_clash_is_refused_and_names_both_services() {
    let world = World::new();
    world.ok(["service", "register", "backup", "--port", "2761"]);
    let error = world
        .run(["service", "register", "other", "--port", "2761"])
        .failed();
    for part in ["backup", "other", "hvsock"] {
        assert!(error.contains(part), "{error}");
    }
    world.run(["service", "register", "Backup"]).failed();
    let error = world
        .run(["service", "register", "mine", "--id", IN_BOX])
        .failed();
    assert!(error.contains("Microsoft"), "{error}");
    assert_eq!(
        world
            .json(["service", "list", "--json"])
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn enable_disable_and_unregister_print_what_they_did_unless_quiet() {
    let world = World::new();
    world.register(DEMO);
    world.container("web");
    let done = world.run(["service", "disable", DEMO]);
    assert_eq!((done.code, done.stdout.as_str()), (Some(0), ""));
    assert!(done.stderr.contains("disabled"), "{}", done.stderr);
    assert_eq!(
        world.json(["service", "show", DEMO, "--json"])["enabled"],
        false
    );
    let done = world.run(["--quiet", "service", "enable", DEMO]);
    assert_eq!(
        (done.code, done.stdout.as_str(), done.stderr.as_str()),
        (Some(0), "", "")
    );
    world.ok(["service", "disable", DEMO, "--vm", "web"]);
    let shown = world.json(["service", "show", DEMO, "--json"]);
    assert_eq!(
        (&shown["enabled"], &shown["vm"]["web"]["enabled"]),
        (&json!(true), &json!(false))
    );
    let shown = world.ok(["service", "show", DEMO]);
    let of_web = shown.lines().skip_while(|line| *line != "for web").nth(1);
    let of_web = of_web.unwrap_or_default();
    assert!(
        of_web.starts_with("  enabled     no") && of_web.contains("[vm.web]"),
        "{shown}"
    );
    world.ok(["service", "unregister", DEMO]);
    let error = world.run(["service", "show", DEMO]).failed();
    assert!(error.contains(DEMO), "{error}");
}

#[test]
fn exported_services_can_be_imported() {
    let world = World::new();
    let id = world.register(DEMO);
    world.ok(["service", "register", "backup", "--connect-user", "1001"]);
    let json_file = world.dir().join("services.json");
    let reg_file = world.dir().join("services.reg");
    fs::write(&json_file, world.ok(["service", "export"])).unwrap();
    world.ok([
        "service",
        "export",
        "--reg",
        "--output",
        reg_file.to_str().unwrap(),
    ]);
    let reg = fs::read(&reg_file).unwrap();
    assert_eq!(&reg[..2], [0xff, 0xfe], "no UTF-16 byte order mark");

    let before = world.json(["service", "list", "--json"]);
    for service in [DEMO, "backup"] {
        world.ok(["service", "unregister", service]);
    }
    let added = world.ok(["service", "import", json_file.to_str().unwrap()]);
    assert!(
        added.lines().any(|line| line == format!("{id} {DEMO}")),
        "{added}"
    );
    assert_eq!(world.json(["service", "list", "--json"]), before);
    let again = world.run(["service", "import", json_file.to_str().unwrap()]);
    assert!(again.stderr.contains("0 services added"), "{again:?}");

    world.ok(["service", "unregister", DEMO]);
    world.ok(["service", "import", reg_file.to_str().unwrap()]);
    assert!(world.ok(["service", "show", DEMO]).contains(&id));
    world.ok(["service", "unregister", DEMO]);
    let piped = Completed::with_input(&mut world.command(["service", "import", "-"]), &reg).ok();
    assert!(piped.contains(&id), "{piped}");
}

#[test]
fn an_invalid_file_is_named_with_its_error() {
    let world = World::new();
    let file = world.dir().join("broken");
    fs::write(&file, "[{\"nam\": 1}]").unwrap();
    let error = world
        .run(["service", "import", file.to_str().unwrap()])
        .failed();
    assert!(
        error.contains("broken") && error.contains("line 1"),
        "{error}"
    );
    fs::write(&file, "hello").unwrap();
    world
        .run(["service", "import", file.to_str().unwrap()])
        .failed();
    let error = world.run(["service", "import", "/nonexistent"]).failed();
    assert!(error.contains("/nonexistent"), "{error}");
}

#[test]
fn a_lease_lasts_as_long_as_the_command() {
    let world = World::new();
    let mut command = world.command(["service", "register", "trial", "--lease"]);
    let mut lease = Running::start(command.stdout(Stdio::piped()));
    let id = lease.line();
    let shown = world.json(["service", "show", "trial", "--json"]);
    assert_eq!((&shown["id"], &shown["lease"]), (&json!(id), &json!(true)));
    assert!(world.ok(["service", "list"]).contains("lease"));
    lease.signal(Signal::INT);
    assert!(lease.end().success(), "Ctrl-C did not end it cleanly");
    eventually("the lease is removed", || {
        world.run(["service", "show", "trial"]).code == Some(1)
    });

    let mut command = world.command(["service", "register", "trial", "--lease"]);
    let mut lease = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    lease.line();
    world.ok(["service", "unregister", "trial"]);
    assert_eq!(lease.end().code(), Some(1), "the lease was unregistered");
    assert!(lease.rest_of_stderr().contains("the lease has ended"));
}

#[test]
fn a_change_without_the_privilege_is_refused_and_names_who_may_make_it() {
    // Only root can run a command as another user.
    let Some(()) = require::root() else { return };
    let world = World::new();
    world.register(DEMO);
    let other_user = |arguments: &[&str]| {
        let mut command = world.command(arguments);
        Completed::of(command.uid(65_534).gid(65_534))
    };
    assert!(
        other_user(&["service", "list"]).ok().contains(DEMO),
        "reading needs a privilege"
    );
    for arguments in [
        &["service", "register", "mine"][..],
        &["service", "disable", DEMO],
        &["service", "unregister", DEMO],
        &["container", "add", "mine", "--json"],
        &["connections", "close", "1"],
    ] {
        let error = other_user(arguments).failed();
        assert!(
            error.contains("only root") && error.contains("65534"),
            "{error}"
        );
    }
    other_user(&["service", "register", "mine", "--lease"]).failed();
    assert_eq!(
        world
            .json(["service", "list", "--json"])
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn wrong_usage_has_exit_status_two() {
    let world = World::new();
    for arguments in [
        &["service"][..],
        &["service", "register"],
        &["service", "register", "2761"],
        &["service", "register", "x", "--port", "1", "--id", IN_BOX],
        &["service", "register", "x", "--port", "4294967296"],
        &["service", "register", "x", "--lease", "--bind-user", "y"],
        &["service", "show", ""],
        &["nonsense"],
        &["--nonsense"],
        &[],
    ] {
        let error = world.run(arguments).usage_error();
        assert!(!error.is_empty(), "{arguments:?}");
    }
}

#[test]
fn input_that_cannot_be_read_is_not_an_empty_list_of_services() {
    let world = World::new();
    let no_input = fs::OpenOptions::new().write(true).open("/dev/null");
    let mut import = world.command(["service", "import", "-"]);
    let done = Completed::of(import.stdin(no_input.unwrap()));
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.stderr.contains("Bad file descriptor"), "{done:?}");
}
