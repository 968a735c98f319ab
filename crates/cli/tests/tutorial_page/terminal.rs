//! A terminal of the reader, and what the page types into it.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hvsock_testkit::process::{CapturedOutput, Running};
use rustix::process::{Pid, Signal, kill_process};

use super::{Block, Likeness, Line};

/// The bound on every wait; longer than any command takes.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// One terminal of the reader: a shell, its output, and the part of the output already compared.
pub struct Terminal {
    /// The shell, if it is a process of this machine.
    shell: Option<Running>,
    input: Box<dyn Write>,
    output: CapturedOutput,
    /// Bytes of the output that were compared.
    seen: usize,
    commands: usize,
    busy: bool,
}

impl Terminal {
    /// A shell of this machine, with the programs in `bin` of its home directory.
    pub fn open(home: &Path) -> Self {
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
        let input = shell.take_stdin().expect("a pipe");
        let output = shell.take_stdout().expect("a pipe");
        let mut terminal = Self::of(input, output);
        terminal.shell = Some(shell);
        terminal
    }

    /// A shell elsewhere, by its standard input and output.
    pub fn of(mut input: impl Write + 'static, output: impl Read + Send + 'static) -> Self {
        input.write_all(b"exec 2>&1\n").expect("written");
        Self {
            input: Box::new(input),
            output: CapturedOutput::from(output),
            shell: None,
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
    pub fn finish(&mut self) {
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
        let id = self.shell.as_ref().expect("a shell of this machine").id();
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
        let Some(shell) = &self.shell else { return };
        let id = shell.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        for child in children.unwrap_or_default().split_whitespace() {
            if let Some(child) = child.parse().ok().and_then(Pid::from_raw) {
                let _ = kill_process(child, Signal::KILL);
            }
        }
    }
}

/// Runs the commands of a block and compares their output. Returns the number of commands.
pub fn follow(terminal: &mut Terminal, block: &Block<'_>, likeness: &mut Likeness) -> usize {
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
