//! Ends all processes that a command started.
//!
//! A process belongs to the command if it descends from the command's supervisor, which it cannot
//! change: it may have another session, process group, user and environment by then. Only a process
//! of root can kill the supervisor. Then those processes are still found whose environment has the
//! command's variable. Process ids may be reused (TOCTOU): a pidfd is opened first, and then the
//! process is examined.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use super::environment::COOKIE;

/// How long processes have to exit after `SIGHUP`.
pub(super) const GRACE: Duration = Duration::from_secs(2);
/// How long killed processes have to end. One that waits for a device or a network filesystem does
/// not end before that.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// How often to check whether they have exited.
const CHECK_INTERVAL: Duration = Duration::from_millis(10);
/// How often to kill processes that appeared meanwhile.
const KILL_INTERVAL: Duration = Duration::from_millis(100);
/// The most bytes of an environment that are read.
const MAX_ENVIRONMENT: u64 = 8 << 20;
/// The most generations between a process and its supervisor.
const GENERATIONS: usize = 4096;

/// A process of the command.
struct Member {
    pid: Pid,
    /// `None` on kernels without pidfds, and without free descriptors.
    fd: Option<OwnedFd>,
}

/// The outcome of [`end`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Swept {
    /// Processes that were not seen to end.
    pub(super) left: Vec<Pid>,
    /// The supervisor was killed: there may be others.
    pub(super) unknown: bool,
}

/// Ends every process of the command: sends `SIGHUP`, and `SIGKILL` to those that still exist after
/// the grace period. `close_control` makes the supervisor kill its descendants; `ended` receives
/// whether they have all ended, when the supervisor has. The supervisor must not be reaped before
/// this returns.
pub(super) fn end(
    supervisor: Pid,
    cookie: &str,
    close_control: impl FnOnce(),
    ended: &Receiver<bool>,
) -> Swept {
    let session = Session::new(supervisor, cookie);
    let mut members = session.members();
    for member in &members {
        member.send(Signal::HUP);
        // A stopped process would not react.
        member.send(Signal::CONT);
    }
    session.wait(&mut members, GRACE);
    close_control();
    let deadline = Instant::now() + KILL_LIMIT;
    let mut complete = None;
    loop {
        if complete.is_none() {
            complete = match ended.recv_timeout(KILL_INTERVAL) {
                Ok(complete) => Some(complete),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(false),
            };
        } else {
            thread::sleep(CHECK_INTERVAL);
        }
        let members = session.members();
        let late = Instant::now() >= deadline;
        if members.is_empty() && (complete.is_some() || late) {
            let unknown = complete != Some(true);
            return Swept {
                left: Vec::new(),
                unknown,
            };
        }
        if late {
            let left: Vec<Pid> = members.iter().map(|member| member.pid).collect();
            tracing::warn!("processes of a command did not end: {left:?}");
            let unknown = complete == Some(false);
            return Swept { left, unknown };
        }
        for member in &members {
            member.send(Signal::KILL);
        }
    }
}

/// The attributes that identify the processes of a command.
struct Session {
    supervisor: Pid,
    /// The variable as it appears in an environment.
    variable: Vec<u8>,
    own: Pid,
}

impl Session {
    fn new(supervisor: Pid, cookie: &str) -> Self {
        Self {
            supervisor,
            variable: format!("{COOKIE}={cookie}").into_bytes(),
            own: rustix::process::getpid(),
        }
    }

    fn members(&self) -> Vec<Member> {
        // Without /proc only the supervisor finds them.
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        let pids = entries.filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            Pid::from_raw(pid).filter(|pid| *pid != self.own && *pid != self.supervisor)
        });
        let mut parents = BTreeMap::new();
        pids.filter(|pid| self.has(*pid, &mut parents))
            .filter_map(|pid| {
                let fd = match pidfd_open(pid, PidfdFlags::empty()) {
                    Ok(fd) => Some(fd),
                    Err(Errno::SRCH) => return None,
                    Err(_) => None,
                };
                self.has(pid, &mut BTreeMap::new())
                    .then_some(Member { pid, fd })
            })
            .collect()
    }

    /// Whether the process is alive and belongs to the command. `parents` are those that are known.
    fn has(&self, pid: Pid, parents: &mut BTreeMap<i32, i32>) -> bool {
        let pid = pid.as_raw_nonzero().get();
        let Some(stat) = Stat::of(pid) else {
            return false;
        };
        !stat.dead
            && (self.is_ancestor(stat.parent, parents)
                || environment(pid)
                    .is_ok_and(|environment| has_variable(&environment, &self.variable)))
    }

    /// Whether this process or an ancestor of it is the supervisor.
    fn is_ancestor(&self, mut pid: i32, parents: &mut BTreeMap<i32, i32>) -> bool {
        let supervisor = self.supervisor.as_raw_nonzero().get();
        for _ in 0..GENERATIONS {
            if pid == supervisor {
                return true;
            }
            if pid <= 1 {
                return false;
            }
            let known = parents.get(&pid).copied();
            let Some(parent) = known.or_else(|| Some(Stat::of(pid)?.parent)) else {
                return false;
            };
            parents.insert(pid, parent);
            pid = parent;
        }
        false
    }

    /// Waits until none of them is left, or until the time limit.
    fn wait(&self, members: &mut Vec<Member>, limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            let mut parents = BTreeMap::new();
            members.retain(|member| self.has(member.pid, &mut parents));
            if members.is_empty() || Instant::now() >= deadline {
                return;
            }
            thread::sleep(CHECK_INTERVAL);
        }
    }
}

impl Member {
    /// Ignores errors: the process may be gone or belong to another user.
    fn send(&self, signal: Signal) {
        let _ = match &self.fd {
            Some(fd) => pidfd_send_signal(fd, signal),
            None => kill_process(self.pid, signal),
        };
    }
}

/// The relevant fields of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) dead: bool,
    pub(super) parent: i32,
}

impl Stat {
    fn of(pid: i32) -> Option<Self> {
        Self::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Parses `7 (name) S 1 …`. The name may contain blanks and brackets.
    pub(super) fn parse(stat: &[u8]) -> Option<Self> {
        let name_end = stat.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?;
        Some(Self {
            dead: matches!(state, "Z" | "X" | "x"),
            parent: fields.next()?.parse().ok()?,
        })
    }
}

fn environment(pid: i32) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(format!("/proc/{pid}/environ"))?
        .take(MAX_ENVIRONMENT)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn has_variable(environment: &[u8], variable: &[u8]) -> bool {
    environment
        .split(|byte| *byte == 0)
        .any(|one| one == variable)
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::io::{BufRead as _, BufReader};
    use std::os::fd::AsFd as _;
    use std::sync::mpsc;

    use hvsock_sys::session;
    use hvsock_sys::supervisor::{self, Program, Streams};
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    #[test]
    fn the_fields_after_any_name_are_parsed() {
        let stat = |text: &str| Stat::parse(text.as_bytes());
        let parent = 1;
        let alive = Stat {
            dead: false,
            parent,
        };
        assert_eq!(stat("8 (sh) S 1 7 6 0 -1"), Some(alive));
        let dead = Stat { dead: true, parent };
        assert_eq!(stat("8 (a) S 9 9 9) Z 1 7 6 0 -1"), Some(dead));
        for invalid in ["", "8 sh S 1 7 6", "8 (sh) S x 7 6", "8 (sh)"] {
            assert_eq!(stat(invalid), None, "{invalid}");
        }
    }

    #[test]
    fn a_variable_matches_a_whole_entry_only() {
        let environment = b"A=1\0HVSOCK_SESSION=abc\0B=2\0";
        assert!(has_variable(environment, b"HVSOCK_SESSION=abc"));
        assert!(!has_variable(environment, b"HVSOCK_SESSION=ab"));
        assert!(!has_variable(environment, b"SESSION=abc"));
    }

    /// A command under a supervisor, with the ids of the processes that it prints.
    struct Family {
        supervised: supervisor::Supervised,
        control: supervisor::Control,
        pids: Vec<i32>,
    }

    const TOKEN: &str = "0123456789abcdef-of-a-test";

    fn start(script: &str, count: usize) -> Family {
        let text = |text: &str| CString::new(text).unwrap();
        let program = Program {
            path: text("/bin/sh"),
            arguments: ["sh", "-c", script].map(text).to_vec(),
            environment: vec![
                text("PATH=/usr/bin:/bin"),
                text(&format!("{COOKIE}={TOKEN}")),
            ],
        };
        let (stdout, theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let streams = Streams {
            stdin: File::open("/dev/null").unwrap().into(),
            stdout: theirs,
            stderr: io::stderr().as_fd().try_clone_to_owned().unwrap(),
            input: None,
        };
        let (supervised, control) =
            supervisor::start(&program, streams, &session::Session::default()).unwrap();
        let lines = BufReader::new(File::from(stdout)).lines();
        let pids = lines.take(count).map(|line| line.unwrap().parse().unwrap());
        Family {
            supervised,
            control,
            pids: pids.collect(),
        }
    }

    fn alive(pid: i32) -> bool {
        Stat::of(pid).is_some_and(|stat| !stat.dead)
    }

    /// Ends the family, with `kill_supervisor` before.
    fn swept(family: Family, kill_supervisor: bool) -> (Swept, Vec<i32>) {
        let Family {
            mut supervised,
            control,
            pids,
        } = family;
        assert!(pids.iter().all(|pid| alive(*pid)), "{pids:?}");
        let supervisor = supervised.supervisor;
        if kill_supervisor {
            kill_process(supervisor, Signal::KILL).unwrap();
        }
        let (sender, ended) = mpsc::channel();
        let follow = thread::spawn(move || {
            let _ = sender.send(supervised.ended());
            supervised
        });
        let swept = end(supervisor, TOKEN, || drop(control), &ended);
        follow.join().unwrap().reap();
        let left = pids.into_iter().filter(|pid| alive(*pid)).collect();
        (swept, left)
    }

    /// One in a session of its own, one that ignores `SIGHUP`, and two that have neither the command's
    /// session nor its environment, one of them an orphan.
    #[test]
    fn all_processes_of_a_command_end() {
        let script = "setsid sh -c 'echo $$; exec sleep 600' & \
            sh -c 'trap \"\" HUP; echo $$; while :; do sleep 600; done' & \
            env -i setsid sh -c 'echo $$; exec sleep 600' & \
            (env -i setsid sh -c 'echo $$; exec sleep 600' &) ; wait";
        let (swept, left) = swept(start(script, 4), false);
        assert_eq!(swept, Swept::default());
        assert_eq!(left, [0; 0]);
    }

    #[test]
    fn a_killed_supervisor_is_reported_and_processes_with_the_variable_end() {
        let script = "setsid sh -c 'echo $$; exec sleep 600' & wait";
        let (swept, left) = swept(start(script, 1), true);
        assert_eq!((swept.left, swept.unknown), (Vec::new(), true));
        assert_eq!(left, [0; 0]);
    }
}
