//! Runs docs/tutorial.md: every command, in order, prints what the page shows. Every line of Rust in it is a
//! line of the examples.
//!
//! A block of the page is for one terminal: the word after `console`, or the main terminal. A block marked
//! `running` ends with a command that continues to run; a later block of that terminal shows its further
//! output, and `^C` ends it. A block marked `container` needs runc and a static `hvsock`.

#![cfg(target_os = "linux")]

mod tutorial_page;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use hvsock_testkit::{TempFolder, process, require};
use tutorial_page::Likeness;
use tutorial_page::terminal::{TIMEOUT, Terminal, follow};

const PAGE: &str = include_str!("../../../docs/tutorial.md");
const EXAMPLES: [&str; 3] = [
    include_str!("../../../examples/src/bin/heartbeat_host.rs"),
    include_str!("../../../examples/src/bin/heartbeat_guest.rs"),
    include_str!("../../../examples/src/bin/heartbeat_calls.rs"),
];
const PROGRAMS: [&str; 3] = ["heartbeat_host", "heartbeat_guest", "heartbeat_calls"];
/// The broker's folder in the page.
const FOLDER: &str = "/tmp/hvsock-tutorial";
/// The reader's name in the page.
const READER: &str = "alice";
/// The path of an example of this package. Skips the test (`None`) if it is not built, or older than its
/// source: `cargo test --test tutorial` does not build it.
fn example(name: &str) -> Option<PathBuf> {
    let path = require::example("hvsock-cli", name)?;
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/src/bin");
    let changed = |path: &Path| fs::metadata(path).and_then(|file| file.modified()).ok();
    let source = changed(&sources.join(name).with_extension("rs"));
    let is_current = (changed(&path) >= source).then_some(path);
    let outdated =
        format!("the example {name} is outdated (`cargo build -p hvsock-cli --examples`)");
    require::found(is_current.ok_or(outdated))
}

/// Links the programs that the page runs into a home directory. Skips the test (`None`) if one is missing.
fn link_programs(home: &Path) -> Option<()> {
    let bin = home.join("bin");
    fs::create_dir(&bin).expect("a folder");
    symlink(env!("CARGO_BIN_EXE_hvsock"), bin.join("hvsock")).expect("a link");
    for name in PROGRAMS {
        symlink(example(name)?, bin.join(name)).expect("a link");
    }
    Some(())
}

fn user_name() -> String {
    let output = process::output(Command::new("id").arg("-un"), b"", TIMEOUT).expect("id");
    String::from_utf8(output.stdout)
        .expect("text")
        .trim()
        .to_owned()
}

#[test]
fn every_command_of_the_page_prints_what_the_page_shows() {
    if require::program("curl", &["--version"]).is_none() {
        return;
    }
    let containers = require::runc().and(require::static_hvsock());
    let home = TempFolder::new();
    let Some(()) = link_programs(home.path()) else {
        return;
    };
    if let Some(program) = &containers {
        symlink(program, home.join("hvsock-static")).expect("a link");
    }
    let folder = home.join("d").display().to_string();
    // A user without a name is shown by its number.
    let number = format!("uid {}", rustix::process::geteuid());
    let words = [
        (folder.as_str(), FOLDER),
        (&number, READER),
        (&user_name(), READER),
    ];
    let mut likeness = Likeness::new(&words);
    let mut terminals: HashMap<&str, Terminal> = HashMap::new();
    let mut run = 0;
    for block in tutorial_page::console_blocks(PAGE) {
        if block.container && containers.is_none() {
            continue;
        }
        let terminal = terminals
            .entry(block.terminal)
            .or_insert_with(|| Terminal::open(home.path()));
        run += follow(terminal, &block, &mut likeness);
    }
    assert!(run > 40, "only {run} commands were run");
    // A command that continues to run here is missing a `^C` in the page.
    for terminal in terminals.values_mut() {
        terminal.finish();
    }
}

#[test]
fn every_line_of_rust_in_the_page_is_a_line_of_the_examples_in_order() {
    let mut shown = String::new();
    for block in tutorial_page::blocks(PAGE, "rust") {
        let text = dedented(block);
        let is_found = EXAMPLES
            .iter()
            .any(|example| dedented_contains(example, &text));
        assert!(is_found, "no example has this:\n{text}");
        let _ = writeln!(shown, "{text}");
    }
    for example in &EXAMPLES {
        for line in example.lines().map(str::trim) {
            let is_optional = line.starts_with("//!") || line.len() < 2;
            assert!(
                is_optional || shown.contains(line),
                "missing in the page: {line}"
            );
        }
    }
}

#[test]
fn every_block_of_the_page_has_a_tested_language() {
    for language in tutorial_page::languages(PAGE) {
        assert!(
            ["console", "rust"].contains(&language),
            "untested language {language}"
        );
    }
}

/// The text without the common indentation of its lines.
fn dedented(text: &str) -> String {
    let filled = text.lines().filter(|line| !line.trim().is_empty());
    let depth = filled
        .map(|line| line.len() - line.trim_start().len())
        .min();
    let dedent = |line: &str| line.get(depth.unwrap_or(0)..).unwrap_or("").to_owned();
    text.lines().map(dedent).collect::<Vec<_>>().join("\n")
}

/// Whether the lines of `text` are consecutive lines of `whole`, at any indentation.
fn dedented_contains(whole: &str, text: &str) -> bool {
    let lines: Vec<&str> = whole.lines().collect();
    let count = text.lines().count();
    lines
        .windows(count)
        .any(|window| dedented(&window.join("\n")) == text)
}
