//! `--help`: its layout at several widths, and the examples of each command.

use std::process::Command;

use crate::util::{Completed, hvsock};

/// Every command, as its words after `hvsock`.
pub const COMMANDS: &[&[&str]] = &[
    &[],
    &["demo"],
    &["broker"],
    &["status"],
    &["upgrade"],
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
    &["vm", "reconnect"],
    &["vm", "discover"],
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
    &["keeper"],
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
    &["connections", "close"],
    &["events"],
    &["audit"],
    &["bench"],
    &["completions"],
    &["man"],
    &["nri"],
    &["run"],
    &["seccomp-agent"],
    &["oci-hook"],
    &["oci-hook", "create-runtime"],
    &["oci-hook", "poststop"],
    &["container", "oci-hooks"],
    &["container", "oci-hooks", "install"],
    &["container", "oci-hooks", "show"],
];

/// The help of a command at a width, or as it is piped.
fn help(command: &[&str], width: Option<usize>) -> String {
    let mut run: Command = hvsock();
    run.args(command).arg("--help").env_remove("COLUMNS");
    if let Some(width) = width {
        run.env("COLUMNS", width.to_string());
    }
    Completed::of(&mut run).ok()
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

#[test]
fn every_command_has_help() {
    for command in COMMANDS {
        let help = help(command, None);
        assert!(help.contains("Usage: hvsock"), "{command:?}: {help}");
        assert!(help.contains("Examples:"), "{command:?}: {help}");
        assert!(!help.contains("demo-guest"), "{command:?}: {help}");
    }
    assert!(
        Completed::of(hvsock().arg("--version"))
            .ok()
            .starts_with("hvsock 0.")
    );
}

#[test]
fn help_fits_the_terminal() {
    for width in [Some(60), Some(80), Some(140), None] {
        // Lines are no longer than 100 columns, which is also the width without a terminal.
        let widest = width.unwrap_or(100).min(100);
        for command in COMMANDS {
            for line in help(command, width).lines() {
                // clap does not wrap the usage.
                let fits = line.chars().count() <= widest || line.starts_with("Usage:");
                assert!(fits, "{command:?} at {width:?}: {line}");
            }
        }
    }
}

/// Text that is wrapped already has such lines after it is wrapped again.
#[test]
fn no_line_within_a_paragraph_is_a_single_word() {
    for width in [Some(60), Some(80), Some(140), None] {
        for command in COMMANDS {
            let help = help(command, width);
            let lines: Vec<&str> = help.lines().collect();
            for window in lines.windows(3) {
                let [before, line, after] = window else {
                    continue;
                };
                let is_within = !before.is_empty()
                    && !after.is_empty()
                    && indentation(line) == indentation(after);
                let is_word = line.split_whitespace().count() == 1;
                assert!(!(is_within && is_word), "{command:?} at {width:?}: {line}");
            }
        }
    }
}

#[test]
fn paragraphs_fill_the_width() {
    let paragraph = |width| {
        let help = help(&["exec"], Some(width));
        let first = help
            .lines()
            .find(|line| line.starts_with("SIGINT, SIGTERM"));
        first.expect("the paragraph").chars().count()
    };
    for width in [60, 80, 100] {
        assert!(
            paragraph(width) > width - 12,
            "{width}: {}",
            paragraph(width)
        );
    }
}

#[test]
fn the_examples_of_a_shared_command_are_of_its_own_kind() {
    for command in COMMANDS.iter().filter(|command| command.len() > 1) {
        let other = match command[0] {
            "vm" => "hvsock container ",
            "container" => "hvsock vm ",
            _ => continue,
        };
        let help = help(command, None);
        let (_, examples) = help.split_once("Examples:").expect("examples");
        let own = format!("hvsock {} ", command[0]);
        assert!(examples.contains(&own), "{command:?}: {examples}");
        assert!(!examples.contains(other), "{command:?}: {examples}");
    }
    let wait = help(&["container", "wait"], None);
    assert!(wait.contains("hvsock container wait web &&"), "{wait}");
}

#[test]
fn a_wrong_command_line_is_misused_and_names_help() {
    let error = Completed::of(hvsock().args(["vm", "wait"])).usage_error();
    assert!(error.contains("Usage: hvsock vm wait"), "{error}");
    assert!(error.contains("--help"), "{error}");
}
