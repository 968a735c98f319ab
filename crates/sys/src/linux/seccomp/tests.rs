//! Real programs under real filters. The program is this test binary, told by a variable what to do.

use std::io::{self, BufRead as _, BufReader};

use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::super::poll;

use super::*;

/// The variable that says what the program does.
const ROLE: &str = "HVSOCK_SYS_TEST_ROLE";

const AF_VSOCK: u32 = libc::AF_VSOCK as u32;
const AF_HYPERV: u32 = 34;
/// A call that the kernel does not have.
const UNKNOWN_CALL: i64 = 4000;

/// Does what [`ROLE`] says, and ends the process. Without it, this is no test.
#[test]
fn the_program_that_the_other_tests_start() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let mut words = role.split(' ');
    while let Some(word) = words.next() {
        let mut number = || words.next().unwrap().parse::<i64>().unwrap();
        // Each result is one line: the number that the call returned, or minus the error's.
        let result = match word {
            "socket" => call(libc::SYS_socket, [number(), libc::SOCK_STREAM.into(), 0]),
            "call" => call(number(), [number(), number(), number()]),
            "signal" => {
                interrupt_by_alarm(number() as i32);
                continue;
            }
            "undumpable" => call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), 0, 0]),
            "fork" => call(libc::SYS_fork, [0; 3]),
            "nested" => nested(),
            "cloexec" => call(libc::SYS_fcntl, [number(), libc::F_GETFD.into(), 0]),
            "wait" => call(libc::SYS_wait4, [-1, 0, 0]),
            other => panic!("unknown word {other}"),
        };
        eprintln!("{result}");
    }
    std::process::exit(0);
}

fn call(number: i64, args: [i64; 3]) -> i64 {
    // SAFETY: the tests pass numbers only, and to calls that take such.
    let result = unsafe { libc::syscall(number, args[0], args[1], args[2]) };
    if result < 0 {
        -i64::from(io::Error::last_os_error().raw_os_error().unwrap())
    } else {
        result
    }
}

/// Raises `SIGALRM` repeatedly from now on, with a handler that does nothing.
fn interrupt_by_alarm(flags: i32) {
    extern "C" fn ignore(_: libc::c_int) {}
    // SAFETY: the handler does nothing; the structures are valid for the calls.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ignore as *const () as usize;
        action.sa_flags = flags;
        libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut());
        let every = libc::timeval {
            tv_sec: 0,
            tv_usec: 20_000,
        };
        let timer = libc::itimerval {
            it_interval: every,
            it_value: every,
        };
        libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut());
    }
}

fn nested() -> i64 {
    match spawn(Command::new("true"), &vsock_filter()) {
        Ok(_) => 0,
        Err(SpawnError::Filter(error)) => -i64::from(error.raw_os_error().unwrap()),
        Err(error) => panic!("{error}"),
    }
}

fn rule(syscall: i64, args: &[ArgEq]) -> Rule<'_> {
    Rule {
        syscall,
        args,
        action: Action::Notify,
    }
}

/// Notifies of `socket` for both families.
fn vsock_filter() -> Filter {
    let family = |value| [ArgEq { index: 0, value }];
    let (vsock, hyperv) = (family(AF_VSOCK), family(AF_HYPERV));
    let rules = [
        rule(libc::SYS_socket, &vsock),
        rule(libc::SYS_socket, &hyperv),
        rule(UNKNOWN_CALL, &[]),
    ];
    Filter::build(&rules).unwrap()
}

fn program(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let name = "linux::seccomp::tests::the_program_that_the_other_tests_start";
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
    command.env(ROLE, role).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// A program under [`vsock_filter`].
struct Running {
    child: Child,
    listener: Listener,
    results: BufReader<ChildStderr>,
}

impl Running {
    fn start(command: Command) -> Self {
        let Spawned {
            mut child,
            listener,
        } = spawn(command, &vsock_filter()).unwrap();
        let results = BufReader::new(child.stderr.take().unwrap());
        Self {
            child,
            listener,
            results,
        }
    }

    fn role(role: &str) -> Self {
        Self::start(program(role))
    }

    /// Waits for a call.
    fn next(&self) -> Notification {
        loop {
            assert!(wait(&self.listener), "no call came");
            if let Some(notification) = self.listener.receive().unwrap() {
                return notification;
            }
        }
    }

    fn respond(&self, to: Notification, response: Response) {
        assert!(self.listener.respond(to.id, response).unwrap());
    }

    fn result(&mut self) -> i64 {
        let mut line = String::new();
        self.results.read_line(&mut line).unwrap();
        line.trim().parse().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Waits until a descriptor is readable or hangs up.
fn wait(fd: impl std::os::fd::AsFd) -> bool {
    let mut fds = [poll::PollFd::new(&fd, PollFlags::IN)];
    poll::wait(&mut fds, Some(deadline())).unwrap()
}

#[test]
fn a_call_waits_for_the_answer_and_returns_it() {
    let mut running = Running::role("socket 40 socket 34 call 4000 5 6 7");
    let first = running.next();
    assert_eq!(first.syscall, libc::SYS_socket);
    assert_eq!(first.args[0] as u32, AF_VSOCK);
    assert_eq!(first.args[1] as i32, libc::SOCK_STREAM);
    assert_ne!(first.thread.number(), 0);
    assert!(running.listener.is_valid(first.id).unwrap());
    running.respond(first, Response::Return(77));
    assert!(!running.listener.is_valid(first.id).unwrap());
    assert_eq!(running.result(), 77);
    let second = running.next();
    assert_ne!(second.id, first.id);
    assert_eq!(second.args[0] as u32, AF_HYPERV);
    running.respond(second, Response::Error(libc::ECONNRESET));
    assert_eq!(running.result(), -i64::from(libc::ECONNRESET));
    let third = running.next();
    assert_eq!(third.syscall, UNKNOWN_CALL);
    assert_eq!(third.args[..3], [5, 6, 7]);
    // The kernel's own answer.
    running.respond(third, Response::Continue);
    assert_eq!(running.result(), -i64::from(libc::ENOSYS));
    assert!(running.child.wait().unwrap().success());
}
