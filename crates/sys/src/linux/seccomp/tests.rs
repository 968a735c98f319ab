//! Real programs under real filters. The program is this test binary, told by a variable what to do.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::super::poll;
use super::super::remote::{self, ThreadState};
use super::spawn::OWN_CALLS;
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
                handle_signal(number() as i32);
                continue;
            }
            "undumpable" => call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), 0, 0]),
            "descriptors" => limit_descriptors(number()),
            "thread" => in_a_thread(|| call(libc::SYS_socket, [AF_VSOCK.into(), 1, 0])),
            "nested" => nested(),
            "supervise" => supervise(),
            "interrupted" => supervise_interrupted(),
            "sockets" => wrong_numbers(number()),
            "sleeper" => {
                // A descendant that outlives this process.
                let mut sleeper = Command::new("sleep");
                let sleeper = sleeper.arg("600").stderr(Stdio::null()).spawn();
                sleeper.unwrap().id().into()
            }
            other => panic!("unknown word {other}"),
        };
        writeln!(io::stderr(), "{result}").unwrap();
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

/// Installs a handler of `SIGUSR1` that does nothing.
fn handle_signal(flags: i32) {
    extern "C" fn ignore(_: libc::c_int) {}
    // SAFETY: the handler does nothing; the structure is valid for the call.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ignore as *const () as usize;
        action.sa_flags = flags;
        libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut());
    }
}

/// Limits the numbers of descriptors.
fn limit_descriptors(limit: i64) -> i64 {
    let limit = libc::rlimit {
        rlim_cur: limit as u64,
        rlim_max: limit as u64,
    };
    // SAFETY: the structure is valid for the call.
    i64::from(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })
}

fn in_a_thread(body: fn() -> i64) -> i64 {
    std::thread::spawn(body).join().unwrap()
}

/// Is the supervisor of a program that cannot be read, and returns the error of an attempt.
fn supervise() -> i64 {
    let running = Running::role("undumpable socket 40");
    let notification = running.next();
    let error = remote::read_memory(notification.thread, 4096, &mut [0; 8]).unwrap_err();
    running.respond(notification, Response::Error(libc::EPERM));
    -i64::from(error.raw_os_error().unwrap())
}

const MANY: i64 = 2000;

/// Is a supervisor that signals interrupt all the time. Returns how many numbers of descriptors were wrong.
fn supervise_interrupted() -> i64 {
    let mut running = Running::role(&format!("sockets {MANY}"));
    handle_signal(0);
    let own = rustix::thread::gettid().as_raw_nonzero().get();
    std::thread::spawn(move || {
        // SAFETY: numbers only.
        while unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), own, libc::SIGUSR1) } == 0 {
            std::thread::yield_now();
        }
    });
    let (file, _other) = crate::stream::pair().unwrap();
    let how = AddFd {
        close_on_exec: true,
        respond: true,
    };
    for _ in 0..MANY {
        let call = running.next();
        let added = running.listener.add_fd(call.id, file.as_fd(), how).unwrap();
        assert!(added.is_some());
    }
    running.result()
}

/// Makes sockets and closes them. Returns how often the number was none of a new descriptor.
fn wrong_numbers(count: i64) -> i64 {
    let one = || {
        let fd = call(libc::SYS_socket, [AF_VSOCK.into(), 1, 0]);
        fd <= 2 || call(libc::SYS_close, [fd, 0, 0]) != 0
    };
    (0..count).map(|_| i64::from(one())).sum()
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
    // Not by its path, which another user may be unable to search.
    let mut command = Command::new("/proc/self/exe");
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
    assert!(first.is_native);
    assert_eq!(first.args[0] as u32, AF_VSOCK);
    assert_eq!(first.args[1] as i32, libc::SOCK_STREAM);
    assert!(running.listener.is_valid(first.id).unwrap());
    running.respond(first, Response::Return(77));
    assert!(!running.listener.is_valid(first.id).unwrap());
    assert_eq!(running.result(), 77);
    let second = running.next();
    assert_ne!(second.id, first.id);
    assert_eq!(second.args[0] as u32, AF_HYPERV);
    for number in [0, -1, 4096] {
        let odd = running.listener.respond(second.id, Response::Error(number));
        assert_eq!(odd.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
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

#[test]
fn other_calls_are_the_kernels() {
    let mut running = Running::role("socket 1 call 4001 0 0 0 socket 40");
    assert!(running.result() > 2);
    assert_eq!(running.result(), -i64::from(libc::ENOSYS));
    let only = running.next();
    running.respond(only, Response::Error(libc::EAFNOSUPPORT));
    assert_eq!(running.result(), -i64::from(libc::EAFNOSUPPORT));
    // No more.
    assert!(running.listener.receive().unwrap().is_none());
}

#[test]
fn a_thread_and_its_process_are_known_by_the_call() {
    let mut running = Running::role("socket 40 thread");
    let first = running.next();
    let process = remote::thread_group(first.thread).unwrap();
    assert_eq!(process.number(), running.child.id());
    running.respond(first, Response::Return(1));
    running.result();
    let second = running.next();
    assert_ne!(second.thread, process);
    assert_eq!(remote::thread_group(second.thread).unwrap(), process);
    running.respond(second, Response::Return(5));
    assert_eq!(running.result(), 5);
}

#[test]
fn a_descriptor_is_installed_and_returned_in_one_step() {
    let mut running = Running::role("socket 40 socket 40");
    let (file, _other) = crate::stream::pair().unwrap();
    let first = running.next();
    // Not yet answered.
    let how = AddFd::default();
    let added = running
        .listener
        .add_fd(first.id, file.as_fd(), how)
        .unwrap();
    let added = added.unwrap();
    let thread = remote::open_thread(first.thread).unwrap();
    let copy = remote::duplicate_fd(thread.as_fd(), added).unwrap();
    let inode = |fd: &std::os::fd::OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
    assert_eq!(inode(&copy), inode(&file));
    let missing = remote::duplicate_fd(thread.as_fd(), 1000).unwrap_err();
    assert_eq!(missing.raw_os_error(), Some(libc::EBADF));
    running.respond(first, Response::Return(added.into()));
    assert_eq!(running.result(), i64::from(added));
    let second = running.next();
    let how = AddFd {
        close_on_exec: true,
        respond: true,
    };
    let next = running
        .listener
        .add_fd(second.id, file.as_fd(), how)
        .unwrap();
    assert_eq!(next, Some(added + 1));
    assert_eq!(running.result(), i64::from(added) + 1);
    // It is answered.
    let again = running.listener.respond(second.id, Response::Return(0));
    assert!(!again.unwrap_or(false));
    let again = running.listener.add_fd(second.id, file.as_fd(), how);
    assert_eq!(again.unwrap_or(None), None);
}

#[test]
fn the_flags_of_an_installed_descriptor_are_those_asked_for() {
    for close_on_exec in [false, true] {
        // The number is the first free one, which the first answer tells.
        let mut running = Running::role("socket 40");
        let first = running.next();
        let how = AddFd {
            close_on_exec,
            respond: false,
        };
        let (file, _other) = crate::stream::pair().unwrap();
        let added = running
            .listener
            .add_fd(first.id, file.as_fd(), how)
            .unwrap();
        let info = format!("/proc/{}/fdinfo/{}", running.child.id(), added.unwrap());
        let info = std::fs::read_to_string(info).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = i32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
        assert_eq!(flags & libc::O_CLOEXEC != 0, close_on_exec);
        running.respond(first, Response::Return(0));
        running.result();
    }
}

#[test]
fn a_supervisor_that_signals_interrupt_installs_each_descriptor_once() {
    let mut child = program("interrupted").spawn().unwrap();
    let mut results = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    results.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "0");
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_process_without_a_free_number_gets_no_descriptor_and_its_call_still_waits() {
    let mut running = Running::role("descriptors 3 socket 40");
    assert_eq!(running.result(), 0);
    let notification = running.next();
    let (file, _other) = crate::stream::pair().unwrap();
    let how = AddFd {
        close_on_exec: false,
        respond: true,
    };
    let full = running.listener.add_fd(notification.id, file.as_fd(), how);
    assert_eq!(full.unwrap_err().raw_os_error(), Some(libc::EMFILE));
    running.respond(notification, Response::Error(libc::EMFILE));
    assert_eq!(running.result(), -i64::from(libc::EMFILE));
}

#[test]
fn memory_is_read_and_written_or_it_is_a_fault() {
    let running = Running::role("socket 40");
    let thread = running.next().thread;
    // The first mapping of the program itself: its ELF header.
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", thread.number())).unwrap();
    let start = |line: &str| u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
    let header = start(maps.lines().next().unwrap());
    let mut bytes = [0; 4];
    remote::read_memory(thread, header, &mut bytes).unwrap();
    assert_eq!(bytes, *b"\x7fELF");
    let stack = start(maps.lines().find(|line| line.ends_with("[stack]")).unwrap());
    let memory = remote::Memory::open(thread).unwrap();
    memory.write(stack, b"written").unwrap();
    let mut bytes = [0; 7];
    remote::read_memory(thread, stack, &mut bytes).unwrap();
    assert_eq!(bytes, *b"written");
    memory.read(stack + 3, &mut bytes[..4]).unwrap();
    assert_eq!(bytes, *b"ttenten");
    remote::read_memory(thread, 0, &mut []).unwrap();
    // The first page below it is not mapped: a part only.
    let faults = [
        remote::read_memory(thread, 0, &mut bytes),
        remote::read_memory(thread, u64::MAX, &mut bytes),
        remote::read_memory(thread, header - 4, &mut bytes),
        memory.read(header - 4, &mut bytes),
        memory.read(u64::MAX, &mut bytes),
        memory.write(16, b"nothing"),
        memory.write(header - 4, b"a part only"),
        memory.write(u64::MAX - 3, b"beyond"),
    ];
    for fault in faults {
        assert_eq!(fault.unwrap_err().raw_os_error(), Some(libc::EFAULT));
    }
}

#[test]
fn the_calls_of_a_killed_program_are_gone() {
    let mut running = Running::role("socket 40");
    let notification = running.next();
    let memory = remote::Memory::open(notification.thread).unwrap();
    running.child.kill().unwrap();
    // Not waited for yet.
    assert!(wait(&running.listener), "no hang-up");
    let listener = &running.listener;
    assert!(!listener.is_valid(notification.id).unwrap());
    assert!(
        !listener
            .respond(notification.id, Response::Return(3))
            .unwrap()
    );
    let (file, _other) = crate::stream::pair().unwrap();
    for respond in [false, true] {
        let how = AddFd {
            close_on_exec: true,
            respond,
        };
        let added = listener.add_fd(notification.id, file.as_fd(), how).unwrap();
        assert_eq!(added, None);
    }
    assert!(listener.receive().unwrap().is_none());
    running.child.wait().unwrap();
    let gone = |error: io::Error| error.raw_os_error() == Some(libc::ESRCH);
    let thread = notification.thread;
    assert_eq!(remote::thread_state(thread).unwrap(), ThreadState::Gone);
    assert!(gone(
        remote::read_memory(thread, 4096, &mut [0]).unwrap_err()
    ));
    assert!(gone(remote::Memory::open(thread).unwrap_err()));
    let fault = memory.write(4096, &[0]).unwrap_err();
    assert_eq!(fault.raw_os_error(), Some(libc::EFAULT));
    assert!(gone(remote::credentials(thread).unwrap_err()));
    assert!(gone(remote::thread_group(thread).unwrap_err()));
    assert!(gone(remote::open_thread(thread).unwrap_err()));
}

#[test]
fn a_call_that_is_killed_before_it_is_received_is_none() {
    let mut running = Running::role("socket 40");
    assert!(wait(&running.listener));
    running.child.kill().unwrap();
    running.child.wait().unwrap();
    assert!(running.listener.receive().unwrap().is_none());
}

#[test]
fn the_listener_hangs_up_when_the_last_descendant_has_ended() {
    let mut running = Running::role("sleeper");
    let sleeper = remote::ThreadId::new(running.result() as u32);
    running.child.wait().unwrap();
    let mut fds = [poll::PollFd::new(&running.listener, PollFlags::IN)];
    assert!(!poll::wait(&mut fds, Some(Instant::now())).unwrap());
    let pid = rustix::process::Pid::from_raw(sleeper.number() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert!(poll::wait(&mut fds, Some(deadline())).unwrap());
    assert!(fds[0].revents().contains(PollFlags::HUP));
    assert!(running.listener.receive().unwrap().is_none());
}

#[test]
fn without_its_supervisor_a_program_gets_an_error_at_once() {
    let mut running = Running::role("socket 40 socket 40 socket 1");
    running.next();
    let (other, _) = crate::stream::pair().unwrap();
    let listener = std::mem::replace(&mut running.listener, Listener::new(other, false));
    drop(listener);
    // The waiting call, and the next.
    assert_eq!(running.result(), -i64::from(libc::ENOSYS));
    assert_eq!(running.result(), -i64::from(libc::ENOSYS));
    assert!(running.result() > 2);
}

/// A program that waits in a call when a signal comes for its thread.
fn interrupted(command: Command) -> (Running, Notification) {
    let running = Running::start(command);
    let notification = running.next();
    let (process, thread) = (running.child.id(), notification.thread.number());
    // SAFETY: numbers only.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGUSR1) };
    assert_eq!(sent, 0);
    (running, notification)
}

#[test]
fn a_signal_makes_the_wait_uninterruptible_and_the_answer_lets_its_handler_decide() {
    for flags in [0, libc::SA_RESTART] {
        let (mut running, notification) =
            interrupted(program(&format!("signal {flags} socket 40")));
        if !running.listener.has_wait_killable() {
            return;
        }
        let deadline = deadline();
        while remote::thread_state(notification.thread).unwrap() != ThreadState::Uninterruptible {
            assert!(Instant::now() < deadline, "no signal came");
            std::thread::yield_now();
        }
        assert!(running.listener.is_valid(notification.id).unwrap());
        running.respond(notification, Response::Restart);
        if flags == 0 {
            assert_eq!(running.result(), -i64::from(libc::EINTR));
            continue;
        }
        let again = running.next();
        assert_ne!(again.id, notification.id);
        assert_eq!(again.args[..3], notification.args[..3]);
        running.respond(again, Response::Return(9));
        assert_eq!(running.result(), 9);
    }
}

#[test]
fn on_a_kernel_without_the_wait_that_only_a_kill_ends_a_signal_ends_the_call() {
    let flags =
        libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    let unknown = [ArgEq {
        index: 1,
        value: flags as u32,
    }];
    let old = [Rule {
        syscall: libc::SYS_seccomp,
        args: &unknown,
        action: Action::Errno(libc::EINVAL),
    }];
    let mut command = program("signal 0 socket 40");
    restrict(&mut command, &Filter::build(&old).unwrap()).unwrap();
    let (mut running, notification) = interrupted(command);
    assert!(!running.listener.has_wait_killable());
    assert_eq!(running.result(), -i64::from(libc::EINTR));
    let answered = running
        .listener
        .respond(notification.id, Response::Return(1));
    assert!(!answered.unwrap());
}

#[test]
fn under_a_denying_outer_filter_no_call_is_seen() {
    let vsock = [ArgEq {
        index: 0,
        value: AF_VSOCK,
    }];
    let denied = [Rule {
        syscall: libc::SYS_socket,
        args: &vsock,
        action: Action::Errno(libc::EPERM),
    }];
    let mut command = program("socket 40 socket 34");
    restrict(&mut command, &Filter::build(&denied).unwrap()).unwrap();
    let mut running = Running::start(command);
    assert_eq!(running.result(), -i64::from(libc::EPERM));
    let seen = running.next();
    assert_eq!(seen.args[0] as u32, AF_HYPERV);
    running.respond(seen, Response::Return(4));
    assert_eq!(running.result(), 4);
}

#[test]
fn what_prevents_the_filter_is_told_from_what_prevents_the_program() {
    let missing = spawn(Command::new("/nonexistent/program"), &vsock_filter()).unwrap_err();
    assert!(
        matches!(&missing, SpawnError::Program(error) if error.kind() == io::ErrorKind::NotFound),
        "{missing:?}"
    );
    let rules = [Rule {
        syscall: libc::SYS_seccomp,
        args: &[],
        action: Action::Errno(libc::EPERM),
    }];
    let mut command = Command::new("true");
    restrict(&mut command, &Filter::build(&rules).unwrap()).unwrap();
    let denied = spawn(command, &vsock_filter()).unwrap_err();
    assert!(
        matches!(&denied, SpawnError::Filter(error) if error.raw_os_error() == Some(libc::EPERM)),
        "{denied:?}"
    );
    // The calls of the start itself can have no answer.
    for call in OWN_CALLS {
        let filter = Filter::build(&[rule(call, &[])]).unwrap();
        let refused = spawn(Command::new("true"), &filter).unwrap_err();
        assert!(matches!(refused, SpawnError::Filter(_)), "{refused:?}");
    }
    let error = restrict(&mut Command::new("true"), &vsock_filter()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_program_under_a_listener_can_have_no_second_one() {
    let mut running = Running::role("nested");
    assert_eq!(running.result(), -i64::from(libc::EBUSY));
}

#[test]
fn a_program_that_is_not_dumpable_is_read_by_root_only() {
    if !rustix::process::geteuid().is_root() {
        assert_eq!(supervise(), -i64::from(libc::EPERM));
        return;
    }
    // As root, the address is what is wrong.
    assert_eq!(supervise(), -i64::from(libc::EFAULT));
    let mut command = program("supervise");
    command.uid(65534).gid(65534);
    let mut child = command.spawn().unwrap();
    let mut results = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    results.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), format!("-{}", libc::EPERM));
    assert!(child.wait().unwrap().success());
}

#[test]
fn only_a_listener_is_one() {
    let (file, _other) = crate::stream::pair().unwrap();
    let error = Listener::from_descriptor(file, false).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    for path in ["/dev/null", "/proc/self/exe", "/"] {
        let file = std::fs::File::open(path).unwrap();
        assert!(
            Listener::from_descriptor(file.into(), false).is_err(),
            "{path}"
        );
    }
    let Running {
        child, listener, ..
    } = &mut Running::role("socket 40");
    let copy = listener.as_fd().try_clone_to_owned().unwrap();
    let copy = Listener::from_descriptor(copy, true).unwrap();
    assert!(wait(&copy));
    let notification = copy.receive().unwrap().unwrap();
    assert!(copy.respond(notification.id, Response::Return(0)).unwrap());
    assert!(child.wait().unwrap().success());
}
