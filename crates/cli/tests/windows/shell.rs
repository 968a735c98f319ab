//! What shells and packages need: help, completions, man pages.

use std::fs;

use hvsock_testkit::TempFolder;

use crate::util::run;

/// Every command, as its words after `hvsock`.
const COMMANDS: &[&[&str]] = &[
    &[],
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
    &["vm", "list"],
    &["vm", "id"],
    &["vm", "show"],
    &["listen"],
    &["connect"],
    &["why"],
    &["completions"],
    &["man"],
];

#[test]
fn every_command_helps() {
    for command in COMMANDS {
        let help = run(command.iter().chain(&["--help"])).ok();
        assert!(help.contains("Usage: hvsock"), "{command:?}: {help}");
        for line in help.lines() {
            assert!(line.chars().count() <= 100, "{command:?}: {line}");
        }
    }
    assert!(run(["--version"]).ok().starts_with("hvsock 0."));
}

#[test]
fn every_command_has_a_man_page() {
    let folder = TempFolder::new();
    run(["man", "--output", folder.path().to_str().unwrap()]).ok();
    for command in COMMANDS {
        let name: Vec<_> = ["hvsock"].iter().chain(*command).copied().collect();
        let page = fs::read_to_string(folder.join(format!("{}.1", name.join("-")))).unwrap();
        assert!(page.contains(".SH NAME"), "{name:?}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), COMMANDS.len());
    assert!(run(["man"]).ok().contains(".TH HVSOCK 1"));
}

#[test]
fn completions_know_the_commands() {
    for shell in ["elvish", "powershell"] {
        let script = run(["completions", shell]).ok();
        assert!(script.contains("unregister"), "{shell}");
        assert!(!script.contains("container"), "{shell}");
    }
    run(["completions", "cmd"]).misused();
}

#[test]
fn what_a_broker_is_needed_for_is_not_there_and_help_says_whose_it_is() {
    let help = run(["--help"]).ok();
    for command in [
        "demo",
        "broker",
        "container",
        "connections",
        "events",
        "bench",
    ] {
        let error = run([command]).misused();
        assert!(
            error.contains(command) && error.contains("--help"),
            "{error}"
        );
        assert!(help.contains(command), "{command}: {help}");
    }
    assert!(help.contains("Windows itself is the broker"), "{help}");
}

#[test]
fn colours_are_for_terminals_only() {
    assert!(!run(["status"]).ok().contains('\x1b'));
    assert!(!run(["nonsense"]).misused().contains('\x1b'));
}
