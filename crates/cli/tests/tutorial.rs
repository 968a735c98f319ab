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
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use hvsock_testkit::process::{self, CapturedOutput, Running};
use hvsock_testkit::{TempFolder, require};
use rustix::process::{Pid, Signal, kill_process};
use tutorial_page::{Block, Likeness, Line};

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
/// The bound on every wait; longer than any command takes.
const TIMEOUT: Duration = Duration::from_secs(20);

/// One terminal of the reader: a shell, its output, and the part of the output already compared.
struct Terminal {
    shell: Running,
    input: ChildStdin,
    output: CapturedOutput,
    /// Bytes of the output that were compared.
    seen: usize,
    commands: usize,
    busy: bool,
}

impl Terminal {
    fn open(home: &Path) -> Self {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("bash");
        command
            .args(["--noprofile", "--norc"])
            .current_dir(home)
            .env("HOME", home)
            .env(
                "PATH",
                format!("{}:{path}:/usr/sbin", home.join("bin").display()),
            )
            .env("LC_ALL", "C.UTF-8")
            .env_remove("HVSOCK_DIR")
            .env_remove("HVSOCK_ENDPOINT")
            .env_remove("RUST_BACKTRACE")
            .env_remove("RUST_LOG")
            .env_remove("BASH_ENV")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut shell = Running::start(&mut command).expect("bash");
        let mut input = shell.take_stdin().expect("a pipe");
        input.write_all(b"exec 2>&1\n").expect("written");
        Self {
            input,
            output: CapturedOutput::from(shell.take_stdout().expect("a pipe")),
            shell,
            seen: 0,
            commands: 0,
            busy: false,
        }
    }

    /// Types a command. Its exit status is printed on a line of its own, and is `$?` of the next command.
    fn command(&mut self, command: &str) {
        self.finish();
        self.commands += 1;
        let mark = self.mark();
        let script = format!(
            "{{ {command}\n}} </dev/null; status=$?; echo '{mark}'$status; (exit $status)\n"
        );
        self.input.write_all(script.as_bytes()).expect("written");
        self.busy = true;
    }

    fn mark(&self) -> String {
        format!("\u{1}{} ended with ", self.commands)
    }

    /// The lines not yet compared, and the exit status if the command has ended.
    fn lines(&self) -> (Vec<String>, Option<i32>) {
        let text = self.output.text();
        let new = &text[self.seen..];
        let whole = new.rfind('\n').map_or("", |end| &new[..=end]);
        match new.split_once(&self.mark()) {
            Some((before, status)) if status.contains('\n') => {
                let lines = before.lines().map(str::to_owned).collect();
                (lines, status.trim().parse().ok())
            }
            _ => (whole.lines().map(str::to_owned).collect(), None),
        }
    }

    /// Waits until the new lines begin with the expected ones. Returns the command's exit status if it has
    /// ended.
    fn expect(&mut self, expected: &[&str], ends: bool, likeness: &mut Likeness) -> Option<i32> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let (lines, status) = self.lines();
            let fitting = likeness.begin_alike(expected, &lines, ends);
            if let Some(count) = fitting.filter(|_| status.is_some() || !ends) {
                self.skip(&lines[..count]);
                return status;
            }
            let over = status.is_some() || Instant::now() > deadline;
            assert!(
                !over,
                "the page shows:\n{}\nbut the output is{}:\n{}\n",
                expected.join("\n"),
                status.map_or(String::new(), |status| format!(
                    ", with exit status {status}"
                )),
                lines.join("\n"),
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn skip(&mut self, lines: &[String]) {
        // Each is a whole line, except that the last one before the mark may have no end of line.
        let text = self.output.text();
        for line in lines {
            self.seen += line.len();
            self.seen += text[self.seen..].chars().take_while(|&c| c == '\r').count();
            self.seen += usize::from(text[self.seen..].starts_with('\n'));
        }
    }

    /// Waits for the end of the running command.
    fn finish(&mut self) {
        if !self.busy {
            return;
        }
        let mark = self.mark();
        self.output
            .wait_for(&mark, TIMEOUT)
            .expect("the end of the command");
        let deadline = Instant::now() + TIMEOUT;
        while self.lines().1.is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.seen = self.output.text().len();
        self.busy = false;
    }

    fn control_c(&mut self) {
        let id = self.shell.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        for child in children.expect("a list").split_whitespace() {
            let child = child.parse().ok().and_then(Pid::from_raw).expect("an id");
            kill_process(child, Signal::INT).expect("a running process");
        }
        self.finish();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let id = self.shell.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        for child in children.unwrap_or_default().split_whitespace() {
            if let Some(child) = child.parse().ok().and_then(Pid::from_raw) {
                let _ = kill_process(child, Signal::KILL);
            }
        }
    }
}

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

/// Runs the commands of a block and compares their output. Returns the number of commands.
fn follow(terminal: &mut Terminal, block: &Block<'_>, likeness: &mut Likeness) -> usize {
    let mut commands = 0;
    let mut lines = block.lines.iter().peekable();
    while let Some(line) = lines.next() {
        match line {
            Line::Command(command) => {
                let command = likeness.as_run(command);
                let command = match rustix::process::geteuid().is_root() {
                    true => command,
                    // The page says so.
                    false => command.replace("runc spec", "runc spec --rootless"),
                };
                eprintln!("{}$ {command}", block.terminal);
                terminal.command(&command);
                commands += 1;
            }
            Line::ControlC => {
                terminal.control_c();
                continue;
            }
            Line::Output(_) => {
                assert!(
                    terminal.busy,
                    "output without a running command in the terminal `{}`",
                    block.terminal
                );
            }
        }
        let first = match line {
            Line::Output(first) => Some(*first),
            _ => None,
        };
        let mut expected: Vec<&str> = first.into_iter().collect();
        while let Some(Line::Output(line)) = lines.peek() {
            expected.push(line);
            lines.next();
        }
        let goes_on = first.is_some() || (block.running && lines.peek().is_none());
        let status = terminal.expect(&expected, !goes_on, likeness);
        if let Some(status) = status.filter(|_| !goes_on) {
            let refused = |line: &&str| line.starts_with("error:") || line.starts_with("refused:");
            let shown = expected.iter().any(refused);
            assert_eq!(status != 0, shown, "exit status {status} of {line:?}");
            terminal.finish();
        }
    }
    commands
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
