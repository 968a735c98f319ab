//! `hvsock service register --clip`, with fakes of the clipboard programs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::util::{Completed, World};

/// Adds a fake clipboard program that runs the script. Returns its folder.
fn fake(world: &World, name: &str, script: &str) -> PathBuf {
    let folder = world.dir().join("tools");
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    folder
}

/// Registers a service with this folder as the only one in `PATH`.
fn register(world: &World, name: &str, tools: &Path) -> Completed {
    let mut command = world.command(["service", "register", name, "--clip"]);
    Completed::of(command.env("PATH", tools))
}

#[test]
fn the_guid_is_printed_and_copied_to_the_clipboard() {
    let world = World::new();
    let clipboard = world.dir().join("clipboard");
    let cat = format!("/bin/cat > {}", clipboard.display());
    for (name, tool_name) in [("a", "wl-copy"), ("b", "xclip"), ("c", "xsel")] {
        let tools = fake(&world, tool_name, &cat);
        let printed = register(&world, name, &tools).ok();
        assert_eq!(fs::read_to_string(&clipboard).unwrap(), printed.trim());
        fs::remove_file(tools.join(tool_name)).unwrap();
    }
}

#[test]
fn the_next_program_is_tried_if_one_fails() {
    let world = World::new();
    let clipboard = world.dir().join("clipboard");
    fake(&world, "wl-copy", "exit 1");
    let tools = fake(
        &world,
        "xclip",
        &format!("/bin/cat > {}", clipboard.display()),
    );
    let printed = register(&world, "backup", &tools).ok();
    assert_eq!(fs::read_to_string(&clipboard).unwrap(), printed.trim());
}

#[test]
fn without_a_clipboard_the_guid_is_printed_and_the_error_names_packages() {
    let world = World::new();
    let none = world.dir().join("none");
    let done = register(&world, "backup", &none);
    assert_eq!(done.code, Some(1));
    for part in ["the service is registered", "wl-clipboard", "xclip"] {
        assert!(done.stderr.contains(part), "{}", done.stderr);
    }
    let shown = world.json(["service", "show", "backup", "--json"]);
    assert_eq!(shown["id"], done.stdout.trim());

    let done = register(&world, "other", &fake(&world, "xsel", "exit 3"));
    assert_eq!(done.code, Some(1));
    assert!(done.stderr.contains("xsel") && done.stderr.contains('3'));
}
