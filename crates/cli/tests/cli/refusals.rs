//! `hvsock why`, and the errors of refused commands.

use serde_json::json;

use crate::util::{Completed, DEMO, World, hvsock, in_container};

/// Checks that an error is one sentence and one help line with the command that fixes it.
fn assert_helpful(stderr: &str, sentence: &str, help: &str) {
    let lines: Vec<_> = stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{stderr}");
    assert!(
        lines[0].starts_with("error: ") && lines[0].contains(sentence),
        "{stderr}"
    );
    assert!(
        lines[1].starts_with("help: ") && lines[1].contains(help),
        "{stderr}"
    );
}

#[test]
fn an_unknown_virtual_machine_is_named_together_with_the_service() {
    let world = World::new();
    for (arguments, service, code) in [
        (&["connect", "nope", "2761"][..], "2761", 1),
        (&["exec", "nope", "--", "true"], "hvsock session", 125),
        (&["kvp", "get", "nope", "key"], "hvsock kvp", 1),
        (&["cp", "/etc/hostname", "nope:/tmp/"], "hvsock copy", 1),
    ] {
        let done = world.run(arguments);
        assert_eq!(done.code, Some(code), "{done:?}");
        let sentence = format!("cannot connect to \"{service}\" in \"nope\"");
        assert_helpful(&done.stderr, &sentence, "status");
    }
}

#[test]
fn a_refused_connect_names_the_command_that_fixes_it() {
    let world = World::new();
    let dir = world.dir().display().to_string();
    world.container("web");
    let error = world.run(["connect", "web", DEMO]).failed();
    let help = format!("hvsock --dir {dir} service register 'HV Socket Demo'");
    assert_helpful(&error, "the service is not registered", &help);

    world.register(DEMO);
    world.ok(["service", "disable", DEMO]);
    let error = world.run(["connect", "web", DEMO]).failed();
    assert_helpful(&error, "disabled", "service enable 'HV Socket Demo'");

    world.ok(["service", "enable", DEMO]);
    let error = world.run(["connect", "web", DEMO]).failed();
    assert_helpful(
        &error,
        "no listener accepts",
        "listen 'HV Socket Demo' --from parent",
    );

    world.ok(["container", "pause", "web"]);
    let error = world.run(["connect", "web", DEMO]).failed();
    assert_helpful(&error, "paused", "container resume web");
    let error = world.run(["connect", "nobody", DEMO]).failed();
    assert!(!error.contains("did you mean"), "{error}");
    let error = world.run(["connect", "wen", DEMO]).failed();
    let sentence = "cannot connect to \"HV Socket Demo\" in \"wen\": ";
    assert!(error.contains(sentence), "{error}");
    assert!(error.contains("(did you mean \"web\"?)"), "{error}");
    let error = world.run(["connect", "web", "HV Socket Dmeo"]).failed();
    assert!(
        error.contains("(did you mean \"HV Socket Demo\"?)"),
        "{error}"
    );
    world.run(["connect", "parent", DEMO]).failed();
}

#[test]
fn a_refused_listen_names_the_command_that_fixes_it() {
    let world = World::new();
    let error = world.run(["listen", "2761"]).failed();
    assert_helpful(
        &error,
        "cannot listen for \"2761\": the service is not registered",
        "service register",
    );
    world.ok(["service", "register", "backup", "--port", "2761"]);
    let _first = world.listen(["2761", "--from", "children", "--", "cat"]);
    let error = world.run(["listen", "2761", "--from", "children"]).failed();
    assert!(error.contains("cannot listen"), "{error}");
}

#[test]
fn a_closed_listener_names_the_reason() {
    let world = World::new();
    world.register(DEMO);
    let mut command = world.command(["listen", DEMO, "--from", "children"]);
    let mut listener = world.listening(command.stderr(std::process::Stdio::piped()));
    world.ok(["service", "disable", DEMO]);
    assert_eq!(listener.end().code(), Some(1));
    let error = listener.rest_of_stderr();
    assert!(
        error.contains("the listener was closed") && error.contains("disabled"),
        "{error}"
    );
}

#[test]
fn why_prints_the_verdict_the_steps_and_the_fix() {
    let world = World::new();
    world.register(DEMO);
    let done = world.run(["why", "parent", DEMO]);
    assert_eq!(done.code, Some(1), "the root partition has no parent");
    assert!(done.stdout.starts_with("refused: "), "{}", done.stdout);
    assert!(done.stdout.contains("✗"), "{}", done.stdout);

    world.container("web");
    let done = world.run(["why", "web", DEMO]);
    assert_eq!((done.code, done.stderr.as_str()), (Some(1), ""));
    assert!(
        done.stdout.contains("✓ Is the service registered"),
        "{}",
        done.stdout
    );
    assert!(
        done.stdout
            .lines()
            .last()
            .unwrap()
            .starts_with("help: hvsock --dir")
    );

    let _cat = world.listen([DEMO, "--from", "loopback", "--keep", "--", "cat"]);
    let done = world.run(["why", "loopback", DEMO]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(
        done.stdout.starts_with("the connect would succeed"),
        "{}",
        done.stdout
    );
    assert!(world.connections().is_empty(), "`why` has connected");
}

#[test]
fn why_prints_json() {
    let world = World::new();
    world.register(DEMO);
    world.container("web");
    for arguments in [
        &["why", "web", DEMO, "--json"][..],
        &["why", "web", DEMO, "--json", "--from", "machine"],
    ] {
        let done = world.run(arguments);
        assert_eq!(done.code, Some(1));
        let verdict: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
        assert_eq!(verdict["refusal"]["reason"], "no_listener");
        assert_eq!(verdict["refusal"]["errno"], 111);
        let fix = &verdict["refusal"]["fix"];
        assert_eq!(fix["kind"], "start_listener");
        assert_eq!(
            (&fix["service"], &fix["from"]),
            (&json!(DEMO), &json!("parent"))
        );
        let command = format!(
            "hvsock --dir {} listen '{DEMO}' --from parent",
            world.dir().display()
        );
        assert_eq!(fix["command"], json!(command));
        let steps = verdict["steps"].as_array().unwrap();
        let (last, others) = steps.split_last().unwrap();
        assert_eq!(last["pass"], json!(false));
        assert_eq!(
            (&last["check"], &last["subject"]),
            (&json!("listener"), &json!("web"))
        );
        assert!(others.iter().all(|step| step["pass"] == true), "{verdict}");
    }
}

#[test]
fn an_unknown_service_or_partition_names_the_commands_that_list_them() {
    let world = World::new();
    for (arguments, sentence, help) in [
        (
            &["service", "show", "nope"][..],
            "no service `nope`",
            "`hvsock service list` lists them, `hvsock service register` adds one",
        ),
        (
            &["container", "show", "nope"],
            "no partition `nope`",
            "`hvsock status` lists them, `hvsock container add` and `hvsock vm add` add one",
        ),
        (
            &["connections", "close", "7"],
            "no connection `7`",
            "`hvsock connections` lists them",
        ),
    ] {
        let error = world.run(arguments).failed();
        assert_helpful(&error, sentence, help);
    }
}

#[test]
fn why_explains_listens_and_other_partitions() {
    let world = World::new();
    world.container("web");
    let done = world.run(["why", "children", DEMO, "--listen"]);
    assert_eq!(done.code, Some(1));
    assert!(done.stdout.contains("not registered"), "{}", done.stdout);
    world.register(DEMO);
    assert!(
        world
            .ok(["why", "children", DEMO, "--listen"])
            .contains("would succeed")
    );
    let done = world.run(["why", "parent", DEMO, "--from", "web"]);
    assert_eq!(done.code, Some(1));
    assert!(done.stdout.contains("--from web"), "{}", done.stdout);
    let _cat = world.listen([DEMO, "--from", "web", "--keep", "--", "cat"]);
    assert!(
        world
            .ok(["why", "parent", DEMO, "--from", "web"])
            .contains("would succeed")
    );
    let error = world
        .run(["why", "parent", DEMO, "--from", "nobody"])
        .failed();
    assert!(error.contains("nobody"), "{error}");
}

#[test]
fn why_works_inside_a_container() {
    let world = World::new();
    world.register(DEMO);
    let web = world.container("web");
    let done = Completed::of(&mut in_container(&web, ["why", "parent", DEMO]));
    assert_eq!(done.code, Some(1));
    assert!(
        done.stdout.contains("no listener accepts"),
        "{}",
        done.stdout
    );
    let unknown = Completed::of(&mut in_container(
        &web,
        ["why", "parent", "unknown", "--json"],
    ));
    assert!(
        unknown.stdout.contains("service register unknown"),
        "{}",
        unknown.stdout
    );
}

#[test]
fn without_a_broker_errors_name_the_command_that_starts_one() {
    let folder = crate::util::folder();
    for arguments in [
        &["status"][..],
        &["service", "list"],
        &["container", "list"],
        &["connections"],
        &["events"],
        &["audit"],
        &["audit", "--follow"],
        &["listen", "x"],
        &["connect", "loopback", "x"],
        &["why", "loopback", "x"],
        &["bench"],
    ] {
        let mut command = hvsock();
        command.arg("--dir").arg(folder.path()).args(arguments);
        let error = Completed::of(&mut command).failed();
        assert!(error.contains("hvsock broker"), "{arguments:?}: {error}");
        assert!(
            error.contains(&folder.path().display().to_string()),
            "{error}"
        );
    }
}
