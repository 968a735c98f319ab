//! `hvsock service register --clip`, with programs for a clipboard that are not the real ones.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::util::{Done, World};

/// A folder with one such program, which does what the script says.
fn tool(world: &World, name: &str, script: &str) -> PathBuf {
    let folder = world.dir().join("tools");
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    folder
}

/// Registers with only these programs there.
fn register(world: &World, name: &str, tools: &Path) -> Done {
    let mut command = world.command(["service", "register", name, "--clip"]);
    Done::of(command.env("PATH", tools))
}

#[test]
fn the_guid_is_printed_and_in_the_clipboard_as_it_is() {
    let world = World::new();
    let kept = world.dir().join("kept");
    let cat = format!("/bin/cat > {}", kept.display());
    for (name, tool_name) in [("a", "wl-copy"), ("b", "xclip"), ("c", "xsel")] {
        let tools = tool(&world, tool_name, &cat);
        let printed = register(&world, name, &tools).ok();
        assert_eq!(fs::read_to_string(&kept).unwrap(), printed.trim());
        fs::remove_file(tools.join(tool_name)).unwrap();
    }
}

#[test]
fn the_next_program_is_tried_where_one_fails() {
    let world = World::new();
    let kept = world.dir().join("kept");
    tool(&world, "wl-copy", "exit 1");
    let tools = tool(&world, "xclip", &format!("/bin/cat > {}", kept.display()));
    let printed = register(&world, "backup", &tools).ok();
    assert_eq!(fs::read_to_string(&kept).unwrap(), printed.trim());
}

#[test]
fn without_a_clipboard_the_guid_is_printed_and_what_to_install_is_said() {
    let world = World::new();
    let none = world.dir().join("none");
    let done = register(&world, "backup", &none);
    assert_eq!(done.code, Some(1));
    for part in ["the service is registered", "wl-clipboard", "xclip"] {
        assert!(done.stderr.contains(part), "{}", done.stderr);
    }
    let shown = world.json(["service", "show", "backup", "--json"]);
    assert_eq!(shown["id"], done.stdout.trim());

    let done = register(&world, "other", &tool(&world, "xsel", "exit 3"));
    assert_eq!(done.code, Some(1));
    assert!(done.stderr.contains("xsel") && done.stderr.contains('3'));
}
