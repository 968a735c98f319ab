//! Registry files of one system's command, imported by the other's.

use std::fs;

use hvsock_testkit::require;
use hvsock_testkit::wine::Wine;
use serde_json::{Value, json};

use crate::util::World;

/// The fields of services that both systems have, sorted by GUID.
fn common_fields(services: &Value) -> Vec<Value> {
    let mut services: Vec<Value> = services
        .as_array()
        .expect("a list")
        .iter()
        .map(|service| {
            let fields = ["id", "name", "enabled", "owner", "creator", "purpose"];
            fields.map(|field| service[field].clone()).into()
        })
        .collect();
    services.sort_by_key(ToString::to_string);
    services
}

#[test]
fn services_exported_on_linux_are_imported_on_windows_and_back() {
    let Some(hvsock) = require::windows_hvsock() else {
        return;
    };
    let Some(wine) = Wine::new() else { return };
    let world = World::new();
    world.ok(["service", "register", "Demo", "--port", "2761"]);
    world.ok(["service", "register", "Sauvegarde à chaud 漢 😀 \"\\;[x]="]);
    world.ok(["service", "register", "backup", "--purpose", "Ночью"]);
    world.ok(["service", "disable", "backup"]);
    let file = wine.folder().join("linux.reg");
    let file = file.to_str().expect("a path in Unicode");
    world.ok(["service", "export", "--reg", "--output", file]);

    // Imported by the registry editor, as on a Windows machine without hvsock.
    let run = |program: &str, arguments: &[&str]| {
        let output = wine.run(program, arguments).expect("no timeout");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        output.stdout
    };
    let program = hvsock.to_str().expect("a path in Unicode");
    run("regedit", &["/S", "linux.reg"]);
    let listed = || -> Value {
        let stdout = run(program, &["service", "list", "--json"]);
        serde_json::from_slice(&stdout).expect("JSON")
    };
    let before = world.json(["service", "list", "--json"]);
    assert_eq!(common_fields(&listed()), common_fields(&before));

    let added = run(
        program,
        &["service", "register", "From Windows é", "--purpose", "x"],
    );
    let added = String::from_utf8_lossy(&added);
    run(
        program,
        &["service", "export", "--reg", "--output", "back.reg"],
    );
    let back = fs::read(wine.folder().join("back.reg")).expect("a file");
    fs::write(world.dir().join("back.reg"), back).expect("a file");
    for service in ["Demo", "backup"] {
        world.ok(["service", "unregister", service]);
    }
    let file = world.dir().join("back.reg");
    world.ok(["service", "import", file.to_str().expect("a path")]);
    let after = world.json(["service", "list", "--json"]);
    let new = world.json(["service", "show", added.trim(), "--json"]);
    assert_eq!(
        (&new["name"], &new["purpose"]),
        (&json!("From Windows é"), &json!("x"))
    );
    assert_eq!(common_fields(&after), common_fields(&listed()));
}
