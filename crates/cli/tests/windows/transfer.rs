//! `hvsock service export` and `import`.

use std::fs;
use std::path::Path;

use hvsock_testkit::TempFolder;
use serde_json::{Value, json};

use crate::util::{World, run, run_with};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn exported_services_can_be_imported() {
    let world = World::new();
    let folder = TempFolder::new();
    let (named, at_port) = (world.name("Büro"), world.name("backup"));
    let id = world.register(&named);
    world.ok([
        "service",
        "register",
        &at_port,
        "--port",
        &world.port().to_string(),
    ]);
    let before = world.services();
    let (json_file, reg_file) = (folder.join("services.json"), folder.join("services.reg"));
    fs::write(&json_file, world.ok(["service", "export"])).unwrap();
    world.ok(["service", "export", "--reg", "--output", text(&reg_file)]);
    let reg = fs::read(&reg_file).unwrap();
    assert_eq!(&reg[..2], [0xff, 0xfe], "no UTF-16 byte order mark");

    for (file, input) in [
        (text(&json_file), &b""[..]),
        (text(&reg_file), b""),
        ("-", &reg),
    ] {
        for service in [&named, &at_port] {
            world.ok(["service", "unregister", service]);
        }
        assert!(world.services().is_empty());
        let added = run_with(["service", "import", file], input).ok();
        let line = format!("{id} {named}");
        assert!(added.lines().any(|added| added == line), "{added}");
        assert_eq!(world.services(), before);
        assert!(world.windows_has(&id));
        let again = run_with(["service", "import", file], input);
        assert!(again.stderr.contains("0 services added"), "{again:?}");
    }
}

#[test]
fn a_list_with_a_clash_adds_nothing() {
    let world = World::new();
    let folder = TempFolder::new();
    let (existing, new) = (world.name("existing"), world.name("new"));
    world.register(&existing);
    let file = folder.join("services.json");
    let list = json!([{"name": new}, {"name": existing.to_uppercase()}]);
    fs::write(&file, list.to_string()).unwrap();
    let error = run(["service", "import", text(&file)]).failed();
    assert!(error.contains(&existing), "{error}");
    assert_eq!(world.services().len(), 1);
}

#[test]
fn access_rules_of_a_broker_are_refused() {
    let world = World::new();
    let folder = TempFolder::new();
    let name = world.name("guarded");
    let list = json!([{"name": name, "connect": {"users": ["alice"]}}]);
    let file = folder.join("services.json");
    fs::write(&file, list.to_string()).unwrap();
    let error = run(["service", "import", text(&file)]).failed();
    assert!(error.contains(&name), "{error}");
    assert!(world.services().is_empty());
}

#[test]
fn a_reg_file_can_remove_services() {
    let world = World::new();
    let folder = TempFolder::new();
    let name = world.name("backup");
    let id = world.register(&name);
    let file = folder.join("gone.reg");
    let key = hvsock_registry::reg_file::KEY;
    let text_of_file = format!("Windows Registry Editor Version 5.00\r\n\r\n[-{key}\\{id}]\r\n");
    fs::write(&file, text_of_file).unwrap();
    let done = run(["service", "import", text(&file)]);
    assert!(done.stderr.contains(&id), "{done:?}");
    assert_eq!(done.ok(), "");
    assert!(!world.windows_has(&id));
}

#[test]
fn an_invalid_file_is_named_with_its_error() {
    let folder = TempFolder::new();
    let file = folder.join("broken");
    fs::write(&file, "[{\"nam\": 1}]").unwrap();
    let error = run(["service", "import", text(&file)]).failed();
    assert!(
        error.contains("broken") && error.contains("line 1"),
        "{error}"
    );
    fs::write(&file, "hello").unwrap();
    run(["service", "import", text(&file)]).failed();
    let error = run(["service", "import", r"C:\nonexistent"]).failed();
    assert!(error.contains("nonexistent"), "{error}");
}

#[test]
fn a_disabled_service_is_exported_as_disabled() {
    let world = World::new();
    let name = world.name("backup");
    world.register(&name);
    world.ok(["service", "disable", &name]);
    let exported = world.json(["service", "export"]);
    let own: Vec<&Value> = exported
        .as_array()
        .unwrap()
        .iter()
        .filter(|one| one["name"] == json!(name))
        .collect();
    assert_eq!((own.len(), &own[0]["enabled"]), (1, &json!(false)));
}
