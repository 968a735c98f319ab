//! Terminals in a guest, used from a local terminal.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;

use hvsock_sys::session::{Session, spawn};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::fixture::{BOX, Fixture};
use crate::util::eventually;

/// A line for a shell: prints `begun` when a Ctrl-C from then on ends the command.
///
/// The command itself prints, since it then is the terminal's foreground process group. Between the shell's own output and
/// that, a Ctrl-C interrupts the shell alone, which goes on to wait for the command.
pub const SLEEP: &str = "sh -c \"echo be''gun; exec sleep 600\"\r";

/// A command with its own pseudo-terminal, whose other end the test reads and writes.
pub struct Terminal {
    child: Child,
    keyboard: File,
    /// Output that no [`Terminal::shows`] has consumed yet.
    seen: Arc<Mutex<String>>,
}

fn size(ws_row: u16, ws_col: u16) -> Winsize {
    Winsize {
        ws_row,
        ws_col,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

impl Terminal {
    pub fn start(mut command: Command) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let outer = openpt(flags).unwrap();
        unlockpt(&outer).unwrap();
        tcsetwinsize(&outer, size(33, 101)).unwrap();
        let inner = || -> OwnedFd { ioctl_tiocgptpeer(&outer, flags).unwrap() };
        command.stdin(inner()).stdout(inner()).stderr(inner());
        command.env("TERM", "vt220");
        let session = Session {
            terminal: true,
            ..Session::default()
        };
        let child = spawn(command, session).unwrap();
        let keyboard = File::from(outer);
        let seen = Arc::new(Mutex::new(String::new()));
        let (mut screen, shown) = (keyboard.try_clone().unwrap(), Arc::clone(&seen));
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..count]);
                shown.lock().unwrap().push_str(&text);
            }
        });
        Self {
            child,
            keyboard,
            seen,
        }
    }

    pub fn type_in(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until the output contains the text, and consumes the output up to its end.
    pub fn shows(&mut self, text: &str) {
        eventually(text, || {
            let mut seen = self.seen.lock().unwrap();
            let found = seen.find(text);
            if let Some(at) = found {
                seen.drain(..at + text.len());
            }
            found.is_some()
        });
    }

    /// Whether the local terminal is in cooked mode: it edits and echoes lines.
    fn is_cooked(&self) -> bool {
        let modes = tcgetattr(&self.keyboard).unwrap().local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    pub fn end(&mut self) -> Option<i32> {
        eventually("the command ends", || {
            self.child.try_wait().unwrap().is_some()
        });
        self.child.wait().unwrap().code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn terminal(fixture: &Fixture, arguments: &[&str]) -> Terminal {
    let mut command = fixture.world.command(arguments);
    command.env("PS1", "");
    Terminal::start(command)
}

#[test]
fn the_remote_terminal_has_the_size_and_type_of_the_local_one() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let mut terminal = terminal(&fixture, &["exec", BOX, "-t", "--", "sh"]);
    terminal.type_in("stty size; echo =$TERM=; tty\r");
    terminal.shows("33 101");
    terminal.shows("=vt220=");
    terminal.shows("/dev/pts/");
    assert!(!terminal.is_cooked());
    tcsetwinsize(&terminal.keyboard, size(40, 120)).unwrap();
    // The new size arrives asynchronously.
    eventually("the size has changed", || {
        terminal.type_in("stty size\r");
        thread::sleep(std::time::Duration::from_millis(100));
        terminal.seen.lock().unwrap().contains("40 120")
    });
    // Ctrl-C interrupts the program in the guest, not the local command.
    terminal.type_in(SLEEP);
    terminal.shows("begun");
    terminal.type_in("\x03");
    terminal.type_in("echo b''ack\r");
    terminal.shows("back");
    terminal.type_in("exit 5\r");
    assert_eq!(terminal.end(), Some(5));
    assert!(terminal.is_cooked());
}

#[test]
fn a_shell_is_a_login_shell_and_ends_at_the_end_of_its_input() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let mut terminal = terminal(&fixture, &["shell", BOX]);
    terminal.type_in("echo =$0=; tty\r");
    terminal.shows("=-");
    terminal.shows("/dev/pts/");
    // While `tty` has the terminal, an end of input is its own and not the shell's.
    eventually("the shell ends", || {
        terminal.type_in("\x04");
        terminal.child.try_wait().unwrap().is_some()
    });
    assert_eq!(terminal.end(), Some(0));
    assert!(terminal.is_cooked());
}

#[test]
fn the_local_terminals_mode_is_restored_however_the_session_ends() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let script = "echo pid=$$=; exec sleep 600";
    let start = || {
        let mut terminal = terminal(&fixture, &["exec", BOX, "-t", "--", "sh", "-c", script]);
        terminal.shows("pid=");
        assert!(!terminal.is_cooked());
        let mut pid = None;
        eventually("the complete process id", || {
            let seen = terminal.seen.lock().unwrap();
            pid = seen.split_once('=').map(|(pid, _)| pid.to_owned());
            pid.is_some()
        });
        (terminal, pid.unwrap())
    };
    let wait_for_end = |pid: String| {
        eventually("the process has ended", || {
            !std::path::Path::new(&format!("/proc/{pid}")).exists()
        });
    };

    let (mut detached, pid) = start();
    detached.type_in("x\r~.");
    assert_eq!(detached.end(), Some(125));
    assert!(detached.is_cooked());
    wait_for_end(pid);

    let (mut ended, pid) = start();
    kill_process(Pid::from_child(&ended.child), Signal::TERM).unwrap();
    assert_eq!(ended.end(), Some(128 + 15));
    assert!(ended.is_cooked());
    wait_for_end(pid);

    let (mut closed, pid) = start();
    fixture.world.ok(["service", "disable", "hvsock session"]);
    closed.shows("disabled");
    assert_eq!(closed.end(), Some(125));
    assert!(closed.is_cooked());
    wait_for_end(pid);
}
