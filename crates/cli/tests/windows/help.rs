//! Help, completions and man pages.

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
    &["service", "allow"],
    &["service", "deny"],
    &["service", "reset"],
    &["service", "transport"],
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
fn every_command_has_help() {
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
fn completions_list_the_commands_of_windows() {
    for shell in ["elvish", "powershell"] {
        let script = run(["completions", shell]).ok();
        assert!(script.contains("unregister"), "{shell}");
        assert!(!script.contains("container"), "{shell}");
    }
    run(["completions", "cmd"]).usage_error();
}

#[test]
fn commands_that_need_a_broker_are_refused_and_named_in_the_help() {
    let help = run(["--help"]).ok();
    for command in [
        "demo",
        "broker",
        "container",
        "connections",
        "events",
        "bench",
    ] {
        let error = run([command]).usage_error();
        assert!(
            error.contains(command) && error.contains("--help"),
            "{error}"
        );
        assert!(help.contains(command), "{command}: {help}");
    }
    assert!(help.contains("Windows itself is the broker"), "{help}");
}

#[test]
fn only_terminals_get_colours() {
    assert!(!run(["status"]).ok().contains('\x1b'));
    assert!(!run(["nonsense"]).usage_error().contains('\x1b'));
}
