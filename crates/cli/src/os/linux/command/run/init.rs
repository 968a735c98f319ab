//! The first process of the program's processes: forwards signals to the program, takes the ends of orphans,
//! and ends with the program's status.

use std::fs::{self, File};
use std::io;
use std::process::Command;

use anyhow::Result;
use hvsock_sys::init::{
    Change, Signal, SignalQueue, adopt_orphans, next_change, send_signal, stop_self,
};

/// Signals of asm-generic/signal.h that have a meaning here.
const SIGINT: i32 = 2;
const SIGQUIT: i32 = 3;
const SIGTERM: i32 = 15;
const SIGCHLD: i32 = 17;
const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;

/// Queues this process's signals and adopts orphans.
#[derive(Debug)]
pub struct Init {
    queue: SignalQueue,
}

impl Init {
    /// Before any other thread is started.
    pub fn new() -> io::Result<Self> {
        adopt_orphans()?;
        Ok(Self {
            queue: SignalQueue::new(),
        })
    }

    /// Has a program begin with the signals that this process began with.
    pub fn prepare(&self, command: &mut Command) {
        self.queue.restore_in(command);
    }

    /// Waits until the program `main` has ended and, unless this is the first process of a container, until
    /// nothing else needs this one (`is_done`), as orphans do whose calls it answers. Returns the program's
    /// exit status; 128 and the signal's number if one has ended it.
    ///
    /// A signal from elsewhere is passed on, to the program, and after its end to what is left of it. One of the terminal
    /// has reached the program as well. When the terminal stops the program, this process stops, too, so that a
    /// shell can continue both. What does not end by a signal that ends programs is left alone with the second one.
    pub fn wait(&self, main: u32, is_done: impl Fn() -> bool) -> Result<u8> {
        let is_first = std::process::id() == 1;
        let has_terminal = !is_first && File::open("/dev/tty").is_ok();
        let mut status = None;
        let mut is_asked_to_end = false;
        loop {
            while let Some((process, change)) = next_change()? {
                if process != main {
                    continue;
                }
                match change {
                    Change::Exited(code) => status = Some(code),
                    Change::Killed(signal) => {
                        status = Some(u8::try_from(128 + signal).unwrap_or(u8::MAX));
                    }
                    // By a shell's terminal. Whoever stops the program otherwise continues it alone.
                    Change::Stopped(signal) if signal != SIGSTOP && has_terminal => {
                        stop_self();
                        send_signal(main, SIGCONT);
                    }
                    Change::Stopped(_) | Change::Continued => {}
                }
            }
            if let Some(status) = status
                && (is_first || is_done())
            {
                return Ok(status);
            }
            let Some(Signal {
                number,
                is_from_kernel,
            }) = self.queue.wait(None)?
            else {
                continue;
            };
            match (number, status) {
                (SIGCHLD, _) => {}
                (SIGINT | SIGTERM | SIGQUIT, Some(status)) if is_asked_to_end => return Ok(status),
                // The terminal's does not reach a program that has gone to the background.
                (SIGINT | SIGTERM | SIGQUIT, Some(_)) => {
                    is_asked_to_end = true;
                    send_to_children(number);
                }
                (number, Some(_)) if !is_from_kernel => send_to_children(number),
                (_, Some(_)) => {}
                (number, None) if !is_from_kernel => send_signal(main, number),
                (_, None) => {}
            }
        }
    }
}

/// Sends a signal to the children of this process, such as orphans that it has adopted.
fn send_to_children(signal: i32) {
    let own = std::process::id();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for process in numbers {
        let stat = fs::read_to_string(format!("/proc/{process}/stat"));
        if stat.is_ok_and(|stat| parent_in(&stat) == Some(own)) {
            send_signal(process, signal);
        }
    }
}

/// The parent's number in `/proc/PID/stat` (proc_pid_stat(5)): the second field after the name, which may have spaces and
/// parentheses.
fn parent_in(stat: &str) -> Option<u32> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processs_name_hides_not_whose_child_it_is() {
        assert_eq!(parent_in("7 (sh) S 42 7 7 0 -1"), Some(42));
        assert_eq!(parent_in("7 (a) S 1 (b) R 42 7 7"), Some(42));
        assert_eq!(parent_in("7 (sh) Z"), None);
        assert_eq!(parent_in(""), None);
    }
}
