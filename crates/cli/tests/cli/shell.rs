//! What shells and packages need: help, completions, man pages, colours.

use std::fs;

use crate::util::{DEMO, Done, World, folder, hvsock};

fn run(arguments: &[&str]) -> Done {
    Done::of(hvsock().args(arguments))
}

/// The subcommands, by their way from the top.
const COMMANDS: &[&[&str]] = &[
    &[],
    &["demo"],
    &["broker"],
    &["status"],
    &["service"],
    &["service", "register"],
    &["service", "list"],
    &["service", "show"],
    &["service", "enable"],
    &["service", "disable"],
    &["service", "unregister"],
    &["service", "export"],
    &["service", "import"],
    &["vm"],
    &["vm", "add"],
    &["vm", "list"],
    &["vm", "id"],
    &["vm", "show"],
    &["vm", "pause"],
    &["vm", "resume"],
    &["vm", "groups"],
    &["vm", "remove"],
    &["vm", "wait"],
    &["vm", "shutdown"],
    &["vm", "time"],
    &["vm", "freeze"],
    &["vm", "thaw"],
    &["vm", "integration"],
    &["vm", "integration", "enable"],
    &["vm", "integration", "disable"],
    &["container"],
    &["container", "add"],
    &["container", "list"],
    &["container", "id"],
    &["container", "show"],
    &["container", "pause"],
    &["container", "resume"],
    &["container", "groups"],
    &["container", "remove"],
    &["container", "wait"],
    &["container", "integration"],
    &["container", "integration", "enable"],
    &["container", "integration", "disable"],
    &["exec"],
    &["shell"],
    &["cp"],
    &["forward"],
    &["ssh"],
    &["nc"],
    &["kvp"],
    &["kvp", "get"],
    &["kvp", "set"],
    &["kvp", "unset"],
    &["kvp", "list"],
    &["kvp", "watch"],
    &["listen"],
    &["connect"],
    &["why"],
    &["connections"],
    &["connections", "cut"],
    &["events"],
    &["bench"],
    &["completions"],
    &["man"],
];

#[test]
fn every_command_helps() {
    for command in COMMANDS {
        let mut arguments = command.to_vec();
        arguments.push("--help");
        let help = run(&arguments).ok();
        assert!(help.contains("Usage: hvsock"), "{command:?}: {help}");
        assert!(!help.contains("demo-guest"), "{command:?}: {help}");
        for line in help.lines() {
            assert!(line.chars().count() <= 100, "{command:?}: {line}");
        }
    }
    assert!(run(&["--version"]).ok().starts_with("hvsock 0."));
}

#[test]
fn every_command_has_a_man_page() {
    let folder = folder();
    run(&["man", "--output", folder.path().to_str().unwrap()]).ok();
    for command in COMMANDS {
        let name = ["hvsock"]
            .iter()
            .chain(*command)
            .copied()
            .collect::<Vec<_>>()
            .join("-");
        let page = fs::read_to_string(folder.path().join(format!("{name}.1"))).unwrap();
        assert!(page.contains(".SH NAME"), "{name}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), COMMANDS.len());
    assert!(run(&["man"]).ok().contains(".TH HVSOCK 1"));
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(&["completions", shell]).ok();
        assert!(script.contains("unregister"), "{shell}");
    }
    run(&["completions", "cmd"]).misused();
}

#[test]
fn colours_are_for_terminals_and_for_those_who_want_them() {
    let world = World::new();
    world.register(DEMO);
    assert!(!world.ok(["status"]).contains('\x1b'));
    let mut forced = world.command(["status"]);
    assert!(
        Done::of(forced.env("CLICOLOR_FORCE", "1"))
            .ok()
            .contains('\x1b')
    );
    let mut never = world.command(["status"]);
    let never = Done::of(never.env("CLICOLOR_FORCE", "1").env("NO_COLOR", "1"));
    assert!(!never.ok().contains('\x1b'));
}
