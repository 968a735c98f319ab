//! Ends all processes that a command started.
//!
//! Processes can leave their process group and their session, but they pass on their environment by
//! default. So a process belongs to the command if its group, its session or its environment does.
//! Process ids may be reused (TOCTOU): a pidfd is opened first, and then the process is examined.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use super::environment::COOKIE;

/// How long processes have to exit after `SIGHUP`.
pub(super) const GRACE: Duration = Duration::from_secs(2);
/// How often to check whether they have exited.
const CHECK_INTERVAL: Duration = Duration::from_millis(10);
/// How often to kill processes that appeared meanwhile. The limit matters for a program that forks
/// faster than it can be killed.
const ROUNDS: usize = 100;
/// The most bytes of an environment that are read.
const MAX_ENVIRONMENT: u64 = 8 << 20;

/// A process of the session.
struct Member {
    pid: Pid,
    /// `None` on kernels without pidfds.
    fd: Option<OwnedFd>,
}

/// Ends every process of the session that `leader` leads: sends `SIGHUP`, and `SIGKILL` to those
/// that still exist after the grace period. The leader must be an unreaped child of this process.
pub(super) fn end(leader: Pid, cookie: &str) {
    let session = Session::new(leader, cookie);
    let mut members = session.members();
    for member in &members {
        member.send(Signal::HUP);
        // A stopped process would not react.
        member.send(Signal::CONT);
    }
    session.wait(&mut members, GRACE);
    for _ in 0..ROUNDS {
        let mut members = session.members();
        if members.is_empty() {
            return;
        }
        for member in &members {
            member.send(Signal::KILL);
        }
        session.wait(&mut members, CHECK_INTERVAL * 10);
    }
    tracing::warn!("cannot end all processes of the session of process {leader}");
}

/// The attributes that identify the processes of a session.
struct Session {
    leader: Pid,
    /// The variable as it appears in an environment.
    variable: Vec<u8>,
    own: Pid,
}

impl Session {
    fn new(leader: Pid, cookie: &str) -> Self {
        Self {
            leader,
            variable: format!("{COOKIE}={cookie}").into_bytes(),
            own: rustix::process::getpid(),
        }
    }

    fn members(&self) -> Vec<Member> {
        // Without /proc only the process group is known, which has received its signal.
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        let pids = entries.filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            Pid::from_raw(pid).filter(|pid| *pid != self.own)
        });
        pids.filter_map(|pid| {
            let fd = match pidfd_open(pid, PidfdFlags::empty()) {
                Ok(fd) => Some(fd),
                Err(Errno::NOSYS | Errno::PERM) => None,
                Err(_) => return None,
            };
            self.has(pid).then_some(Member { pid, fd })
        })
        .collect()
    }

    /// Whether the process is alive and belongs to the session.
    fn has(&self, pid: Pid) -> bool {
        let pid = pid.as_raw_nonzero();
        let Ok(stat) = fs::read(format!("/proc/{pid}/stat")) else {
            return false;
        };
        let Some(stat) = Stat::parse(&stat) else {
            return false;
        };
        let leader = self.leader.as_raw_nonzero().get();
        !stat.dead
            && (stat.group == leader
                || stat.session == leader
                || environment(pid.get())
                    .is_ok_and(|environment| has_variable(&environment, &self.variable)))
    }

    /// Waits until none of them is left, or until the time limit.
    fn wait(&self, members: &mut Vec<Member>, limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            members.retain(|member| self.has(member.pid));
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
    group: i32,
    session: i32,
}

impl Stat {
    /// Parses `7 (name) S 1 7 7 …`. The name may contain blanks and brackets.
    pub(super) fn parse(stat: &[u8]) -> Option<Self> {
        let name_end = stat.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?;
        Some(Self {
            dead: matches!(state, "Z" | "X" | "x"),
            parent: fields.next()?.parse().ok()?,
            group: fields.next()?.parse().ok()?,
            session: fields.next()?.parse().ok()?,
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
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::process::CommandExt as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_fields_after_any_name_are_parsed() {
        let stat = |text: &str| Stat::parse(text.as_bytes());
        let alive = Stat {
            dead: false,
            parent: 1,
            group: 7,
            session: 6,
        };
        assert_eq!(stat("8 (sh) S 1 7 6 0 -1"), Some(alive));
        let dead = Stat {
            dead: true,
            parent: 1,
            group: 7,
            session: 6,
        };
        assert_eq!(stat("8 (a) S 9 9 9) Z 1 7 6 0 -1"), Some(dead));
        for invalid in ["", "8 sh S 1 7 6", "8 (sh) S 1 x 6", "8 (sh)"] {
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

    /// Starts a shell that starts three others, which print their numbers: one in a session of its
    /// own that keeps the environment, one that ignores `SIGHUP`, one in neither its session nor
    /// its environment, which so is not one of it.
    #[test]
    fn all_processes_of_a_session_end_and_no_others() {
        let cookie = "0123456789abcdef-of-a-test";
        let script = "setsid sh -c 'echo $$; exec sleep 600' & sh -c 'trap \"\" HUP; echo $$; while :; do sleep 600; done' & \
            env -u HVSOCK_SESSION setsid sh -c 'echo $$; exec sleep 600' & wait";
        let mut leader = Command::new("sh")
            .args(["-c", script])
            .env(COOKIE, cookie)
            .process_group(0)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(leader.stdout.take().unwrap()).lines();
        let pids: Vec<i32> = lines
            .take(3)
            .map(|line| line.unwrap().parse().unwrap())
            .collect();
        let alive = |pid: &i32| {
            fs::read(format!("/proc/{pid}/stat"))
                .is_ok_and(|stat| Stat::parse(&stat).is_some_and(|stat| !stat.dead))
        };
        assert!(pids.iter().all(alive));

        end(Pid::from_child(&leader), cookie);
        let mut left = pids.clone();
        left.retain(alive);
        let stranger = left.clone();
        for pid in &left {
            kill_process(Pid::from_raw(*pid).unwrap(), Signal::KILL).unwrap();
        }
        leader.wait().unwrap();
        assert_eq!(stranger.len(), 1, "{pids:?}: {stranger:?}");
    }
}
