//! Running a program under a supervisor: a process that stays the ancestor of all processes of the
//! program.
//!
//! A process can leave its process group, its session, its control group, its environment and its user,
//! and its parent may end. It cannot leave its ancestors: the supervisor is a subreaper
//! (`PR_SET_CHILD_SUBREAPER`), so the kernel gives it the orphans among its descendants. They are the
//! processes of the program, exactly.
//!
//! The supervisor is a fork of the starter that executes no other program, and makes system calls only.
//! It acts on three things:
//!
//! - the program ends: it reports how. It keeps the program as a zombie, so that the program's process id
//!   keeps its meaning;
//! - its [`Control`] says that the processes that are left may continue: it ends;
//! - its [`Control`] is closed, also because the starter was killed: it sends `SIGKILL` to its descendants
//!   until there are none, and ends. So its end proves theirs.

use std::ffi::{CStr, CString, c_char, c_int};
use std::fs::File;
use std::io::{self, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process, kill_process_group,
    pidfd_open, pidfd_send_signal, waitid, waitpid,
};

use super::inherit::{self, number, numbers_in};
use super::session::{self, Session, SpawnError, SpawnStep};
use super::signals::all_signals;

/// A program to run.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its path. A name without a slash is searched in the `PATH` of `environment`.
    pub path: CString,
    /// Its arguments, from the name that it is called by.
    pub arguments: Vec<CString>,
    /// Its variables, as `NAME=VALUE`.
    pub environment: Vec<CString>,
}

/// The standard streams of a program.
#[derive(Debug)]
pub struct Streams<'a> {
    /// Standard input.
    pub stdin: OwnedFd,
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
    /// The starter's end of standard input. The supervisor keeps it open until
    /// [`Control::close_input`], so that a starter that fails is not the end of the input.
    pub input: Option<&'a OwnedFd>,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this status.
    Status(u32),
    /// This signal killed it.
    Signal(u32),
}

/// A running program. Call [`exited`](Self::exited), [`ended`](Self::ended) and [`reap`](Self::reap).
#[derive(Debug)]
pub struct Supervised {
    /// The process id of the supervisor.
    pub supervisor: Pid,
    /// The process id of the program, which leads a session and a process group.
    pub program: Pid,
    reports: File,
}

/// Ends all processes of the program when dropped.
#[derive(Debug)]
pub struct Control(OwnedFd);

/// Messages of [`Control`].
const LEAVE: u8 = b'L';
const CLOSE_INPUT: u8 = b'C';

/// Reports of the supervisor: a kind and a number.
type Report = [u32; 2];
const STARTED: u32 = 1;
const EXITED: u32 = 2;
const KILLED: u32 = 3;

impl Control {
    /// Closes the supervisor's duplicate of the starter's end of standard input.
    pub fn close_input(&self) {
        self.send(CLOSE_INPUT);
    }

    /// Lets the processes that are left continue.
    pub fn leave(&self) {
        self.send(LEAVE);
    }

    /// An error means that the supervisor is gone. The pipe always has space for these bytes.
    fn send(&self, message: u8) {
        let _ = rustix::io::retry_on_intr(|| rustix::io::write(&self.0, &[message]));
    }
}

impl Supervised {
    /// Waits until the program has ended. `None` if the supervisor was killed.
    pub fn exited(&mut self) -> Option<Exit> {
        match read_report(&mut self.reports)? {
            [EXITED, status] => Some(Exit::Status(status)),
            [KILLED, signal] => Some(Exit::Signal(signal)),
            _ => None,
        }
    }

    /// Waits until the supervisor has ended, which stays a zombie. Returns false if it was killed: then
    /// nothing is known of the program's processes. Otherwise all have ended, or were left.
    pub fn ended(&mut self) -> bool {
        while read_report(&mut self.reports).is_some() {}
        loop {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            match waitid(WaitId::Pid(self.supervisor), options) {
                Ok(Some(status)) => return status.exit_status() == Some(0),
                Ok(None) | Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Reaps the supervisor, whose process id is free then.
    pub fn reap(self) {
        reap(self.supervisor);
    }
}

fn read_report(reports: &mut File) -> Option<Report> {
    let mut bytes = [0; size_of::<Report>()];
    reports.read_exact(&mut bytes).ok()?;
    let [kind, number] = bytes.as_chunks::<4>().0 else {
        return None;
    };
    Some([u32::from_ne_bytes(*kind), u32::from_ne_bytes(*number)])
}

fn reap(pid: Pid) {
    loop {
        match waitpid(Some(pid), WaitOptions::empty()) {
            Err(Errno::INTR) => {}
            _ => return,
        }
    }
}

/// Starts a program in a session of its own, under a supervisor. The program gets no descriptor but its
/// standard streams.
///
/// # Errors
///
/// [`SpawnError`], with the step that failed.
pub fn start(
    program: &Program,
    streams: Streams<'_>,
    session: &Session,
) -> Result<(Supervised, Control), SpawnError> {
    let system = |error: Errno| SpawnError {
        step: SpawnStep::Session,
        error: error.into(),
    };
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(system);
    let (control_end, control) = pipe()?;
    let (reports, reports_end) = pipe()?;
    let (failure, failure_end) = pipe()?;
    let (arguments, environment) = (pointers(&program.arguments), pointers(&program.environment));
    let plan = Plan {
        path: &program.path,
        arguments: &arguments,
        environment: &environment,
        streams: [&streams.stdin, &streams.stdout, &streams.stderr].map(AsRawFd::as_raw_fd),
        input: streams.input.map(AsRawFd::as_raw_fd),
        control: control_end.as_raw_fd(),
        reports: reports_end.as_raw_fd(),
        failure: failure_end.as_raw_fd(),
        session,
        oom_protected: session::is_oom_protected(),
    };
    // Handlers of this process must not run in the supervisor.
    let mask = all_signals(libc::SIG_BLOCK, None);
    // SAFETY: the new process makes only system calls, on memory allocated before. It allocates, locks and
    // frees nothing, and does not return.
    let supervisor = unsafe { libc::fork() };
    if supervisor == 0 {
        supervise(&plan);
    }
    let error = Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::AGAIN);
    all_signals(libc::SIG_SETMASK, Some(&mask));
    let Some(supervisor) = Pid::from_raw(supervisor).filter(|_| supervisor > 0) else {
        return Err(system(error));
    };
    drop((control_end, reports_end, failure_end, streams));
    let control = Control(control);
    let mut number = [0; 4];
    let failed = File::from(failure).read_exact(&mut number).is_ok();
    let mut reports = File::from(reports);
    let started = read_report(&mut reports);
    let program = match started {
        Some([STARTED, pid]) => i32::try_from(pid).ok().and_then(Pid::from_raw),
        _ => None,
    };
    match program {
        Some(program) if !failed => {
            let supervised = Supervised {
                supervisor,
                program,
                reports,
            };
            Ok((supervised, control))
        }
        _ => {
            drop(control);
            reap(supervisor);
            let number = match failed {
                true => i32::from_ne_bytes(number),
                false => Errno::SRCH.raw_os_error(),
            };
            Err(SpawnStep::decode(io::Error::from_raw_os_error(number)))
        }
    }
}

/// Pointers to strings, and a null pointer.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    let strings = strings.iter().map(|string| string.as_ptr());
    strings.chain([ptr::null()]).collect()
}

/// What the new processes need. All of it was allocated by the starter.
struct Plan<'a> {
    path: &'a CStr,
    arguments: &'a [*const c_char],
    environment: &'a [*const c_char],
    streams: [RawFd; 3],
    input: Option<RawFd>,
    control: RawFd,
    reports: RawFd,
    failure: RawFd,
    session: &'a Session,
    oom_protected: bool,
}

/// The supervisor's descriptors, in the place of the standard streams.
const CONTROL: RawFd = 0;
const REPORTS: RawFd = 1;
const INPUT: RawFd = 2;

fn exit(status: c_int) -> ! {
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(status) }
}

/// The supervisor, after its fork.
fn supervise(plan: &Plan<'_>) -> ! {
    let own = rustix::process::getpid();
    // SAFETY: no memory is involved.
    unsafe {
        // Signals to the starter's process group are not for the supervisor.
        libc::setsid();
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
        libc::prctl(libc::PR_SET_NAME, c"hvsock-session".as_ptr());
    }
    // SAFETY: the new process makes only system calls, as this one does, and does not return.
    let program = unsafe { libc::fork() };
    if program == 0 {
        run_program(plan, own);
    }
    let Some(program) = Pid::from_raw(program).filter(|_| program > 0) else {
        report_failure(plan.failure, &SpawnStep::Session.failed());
        exit(1);
    };
    keep_descriptors(plan);
    unmap_shared();
    let pid = program.as_raw_nonzero().get().unsigned_abs();
    report([STARTED, pid]);
    follow(own, program)
}

/// Reports the error of a step, encoded by [`SpawnStep::failed`].
fn report_failure(failure: RawFd, error: &io::Error) {
    let number = error.raw_os_error().unwrap_or(libc::EINVAL).to_ne_bytes();
    // SAFETY: pointer and length are of one array.
    unsafe { libc::write(failure, number.as_ptr().cast(), number.len()) };
}

/// Moves the descriptors that are needed to the place of the standard streams, and closes all others.
fn keep_descriptors(plan: &Plan<'_>) {
    let kept = [Some(plan.control), Some(plan.reports), plan.input];
    let moved = kept.map(|fd| fd.map(above));
    // SAFETY: this process uses no descriptor of the starter's but these.
    unsafe {
        for (fd, place) in moved.into_iter().zip([CONTROL, REPORTS, INPUT]) {
            match fd {
                Some(fd) => libc::dup2(fd, place),
                None => libc::close(place),
            };
        }
        inherit::close_all();
    }
}

/// Unmaps shared memory. The starter's connections may use it, and it would exist for as long as the
/// supervisor does. A failure keeps it mapped.
fn unmap_shared() {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let Ok(maps) = rustix::fs::open(c"/proc/self/maps", flags, Mode::empty()) else {
        return;
    };
    let (mut buffer, mut filled) = ([0; 8192], 0);
    while let Ok(count @ 1..) = rustix::io::read(&maps, &mut buffer[filled..]) {
        filled += count;
        let mut done = 0;
        while let Some(length) = buffer[done..filled].iter().position(|byte| *byte == b'\n') {
            if let Some((start, end)) = shared_range(&buffer[done..done + length]) {
                // SAFETY: this process never uses the memory of its starter's connections.
                unsafe { libc::munmap(ptr::without_provenance_mut(start), end - start) };
            }
            done += length + 1;
        }
        buffer.copy_within(done..filled, 0);
        filled -= done;
        if filled == buffer.len() {
            return;
        }
    }
}

/// The range of a shared mapping: `7f00-7f10 rw-s …`. `None` for a private one.
fn shared_range(line: &[u8]) -> Option<(usize, usize)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let range = fields.next()?;
    let is_shared = fields.next()?.get(3) == Some(&b's');
    let hyphen = range.iter().position(|byte| *byte == b'-')?;
    let number = |digits: &[u8]| usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
    let (start, end) = (number(&range[..hyphen])?, number(&range[hyphen + 1..])?);
    (is_shared && start < end).then_some((start, end))
}

/// A duplicate after the standard streams, close-on-exec.
fn above(fd: RawFd) -> RawFd {
    // SAFETY: numbers only.
    unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, inherit::FIRST) }
}

fn report(report: Report) {
    let mut bytes = [0; size_of::<Report>()];
    let (kind, number) = bytes.split_at_mut(4);
    kind.copy_from_slice(&report[0].to_ne_bytes());
    number.copy_from_slice(&report[1].to_ne_bytes());
    // SAFETY: pointer and length are of one array. An error means that the starter is gone.
    unsafe { libc::write(REPORTS, bytes.as_ptr().cast(), bytes.len()) };
}

/// The program, after its fork from the supervisor.
fn run_program(plan: &Plan<'_>, supervisor: Pid) -> ! {
    let error = match prepare_program(plan, supervisor) {
        Ok(()) => execute(plan),
        Err(error) => error,
    };
    report_failure(plan.failure, &error);
    exit(127)
}

fn prepare_program(plan: &Plan<'_>, supervisor: Pid) -> io::Result<()> {
    for (fd, place) in plan.streams.map(above).into_iter().zip(0..) {
        // SAFETY: numbers only.
        if unsafe { libc::dup2(fd, place) } < 0 {
            return Err(SpawnStep::Session.failed());
        }
    }
    if plan.oom_protected {
        // Best effort: the program can run with the protection.
        let _ = session::reset_oom_score();
    }
    session::prepare(supervisor, plan.session)?;
    // Without this, it would inherit what other code left open. `/proc` may be missing on old kernels.
    let _ = inherit::set_close_on_exec();
    let mut none = MaybeUninit::uninit();
    // SAFETY: the first call initializes the set that the second one uses.
    unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
    }
    Ok(())
}

unsafe extern "C" {
    static mut environ: *const *const c_char;
}

/// Executes the program. Returns only on failure.
fn execute(plan: &Plan<'_>) -> io::Error {
    // SAFETY: both lists end with a null pointer and live as long as this process, which has one thread.
    // `execvp` searches in the PATH of `environ`.
    unsafe {
        environ = plan.environment.as_ptr();
        libc::execvp(plan.path.as_ptr(), plan.arguments.as_ptr());
    }
    io::Error::last_os_error()
}

/// The supervisor's work from the start of the program.
fn follow(own: Pid, program: Pid) -> ! {
    let signals = child_signals();
    let mut exited = false;
    loop {
        exited = exited || reap_until(program);
        let control = wait(signals.as_ref(), None);
        if !control {
            continue;
        }
        let mut message = [0];
        // SAFETY: pointer and length are of one array.
        let count = unsafe { libc::read(CONTROL, message.as_mut_ptr().cast(), 1) };
        match (count, message[0]) {
            (1, CLOSE_INPUT) => {
                // SAFETY: nothing else uses it.
                unsafe { libc::close(INPUT) };
            }
            (1, LEAVE) => {
                while reap_one(WaitFor::Any, 0).is_some() {}
                exit(0);
            }
            (1, _) => {}
            (-1, _) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            _ => {
                kill_descendants(own, program, signals.as_ref());
                exit(0);
            }
        }
    }
}

/// A descriptor that is readable when a child has ended.
fn child_signals() -> Option<SignalFd> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the first two calls initialize the set that the third one uses.
    let fd = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        libc::signalfd(-1, set.as_ptr(), libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
    };
    (fd >= 0).then_some(SignalFd(fd))
}

/// A descriptor that is never closed: the process ends first.
struct SignalFd(RawFd);

/// How often to look for ended children without [`SignalFd`].
const INTERVAL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// Waits for a message, the end of a child, or the time limit. Returns true if there is a message or the
/// control pipe is closed.
fn wait(signals: Option<&SignalFd>, limit: Option<Timespec>) -> bool {
    // SAFETY: both stay open.
    let borrowed = |fd: RawFd| unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    let (control, child) = (
        borrowed(CONTROL),
        borrowed(signals.map_or(CONTROL, |fd| fd.0)),
    );
    // While it kills, only children matter.
    let control_events = match limit {
        Some(_) => PollFlags::empty(),
        None => PollFlags::IN,
    };
    let mut fds = [
        PollFd::from_borrowed_fd(child, PollFlags::IN),
        PollFd::from_borrowed_fd(control, control_events),
    ];
    let limit = limit.or(signals.is_none().then_some(INTERVAL));
    let polled = match (signals.is_some(), control_events.is_empty()) {
        (true, true) => poll(&mut fds[..1], limit.as_ref()),
        (true, false) => poll(&mut fds, limit.as_ref()),
        (false, true) => poll(&mut fds[..0], limit.as_ref()),
        (false, false) => poll(&mut fds[1..], limit.as_ref()),
    };
    if let Some(signals) = signals {
        let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
        // SAFETY: pointer and length are of one array.
        while unsafe { libc::read(signals.0, info.as_mut_ptr().cast(), info.len()) } > 0 {}
    }
    polled.is_ok() && !fds[1].revents().is_empty()
}

/// Which child to wait for.
#[derive(Clone, Copy)]
enum WaitFor {
    Any,
    This(Pid),
}

/// An ended child: its process id, and how it ended.
struct Ended {
    pid: i32,
    report: Report,
}

/// Waits without blocking.
fn reap_one(which: WaitFor, flags: c_int) -> Option<Ended> {
    let (kind, id) = match which {
        WaitFor::Any => (libc::P_ALL, 0),
        WaitFor::This(pid) => (libc::P_PID, pid.as_raw_nonzero().get().unsigned_abs()),
    };
    // SAFETY: all zeros are valid for this structure of numbers.
    let mut info: libc::siginfo_t = unsafe { MaybeUninit::zeroed().assume_init() };
    let flags = flags | libc::WEXITED | libc::WNOHANG;
    // SAFETY: the pointer is to a structure of the type that the call writes.
    if unsafe { libc::waitid(kind, id, &mut info, flags) } < 0 {
        return None;
    }
    // SAFETY: `waitid` wrote these fields, or they are zero: no child has ended.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let kind = match info.si_code {
        libc::CLD_EXITED => EXITED,
        _ => KILLED,
    };
    let report = [kind, status.unsigned_abs()];
    (pid > 0).then_some(Ended { pid, report })
}

/// Reaps orphans. Returns true if the program has ended, which is reported and stays a zombie; orphans that
/// end later stay zombies, too, until the supervisor ends.
fn reap_until(program: Pid) -> bool {
    while let Some(ended) = reap_one(WaitFor::Any, libc::WNOWAIT) {
        if ended.pid == program.as_raw_nonzero().get() {
            report(ended.report);
            return true;
        }
        if let Some(pid) = Pid::from_raw(ended.pid) {
            reap_one(WaitFor::This(pid), 0);
        }
    }
    false
}

/// How long to wait between two rounds of killing, at first and at most, in nanoseconds.
const ROUND: i64 = 5_000_000;
const LONGEST_ROUND: i64 = 640_000_000;

/// Kills all descendants until there are none.
fn kill_descendants(own: Pid, program: Pid, signals: Option<&SignalFd>) {
    let mut pause = ROUND;
    loop {
        let listed = numbers_in(c"/proc", |pid, _| {
            if let Some(pid) = Pid::from_raw(pid) {
                kill_if_descendant(pid, own);
            }
        });
        if listed.is_err() {
            // The program's id is not reused before it is reaped below, with all the rest.
            let _ = kill_process_group(program, Signal::KILL);
        }
        while reap_one(WaitFor::Any, 0).is_some() {}
        if !has_children() {
            return;
        }
        wait(
            signals,
            Some(Timespec {
                tv_sec: 0,
                tv_nsec: pause,
            }),
        );
        pause = (pause * 2).min(LONGEST_ROUND);
    }
}

fn has_children() -> bool {
    // SAFETY: all zeros are valid for this structure of numbers.
    let mut info: libc::siginfo_t = unsafe { MaybeUninit::zeroed().assume_init() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the pointer is to a structure of the type that the call writes.
    unsafe { libc::waitid(libc::P_ALL, 0, &mut info, flags) == 0 }
}

fn kill_if_descendant(pid: Pid, own: Pid) {
    // First the descriptor, then the examination: the process id may be reused in between.
    let fd = pidfd_open(pid, PidfdFlags::empty());
    if matches!(fd, Err(Errno::SRCH)) || pid == own || !is_descendant(pid, own) {
        return;
    }
    // It may belong to a user whose processes this one may not kill.
    let _ = match fd {
        Ok(fd) => pidfd_send_signal(fd.as_fd(), Signal::KILL),
        Err(_) => kill_process(pid, Signal::KILL),
    };
}

/// The most generations between a process and its supervisor.
const GENERATIONS: usize = 4096;

/// Whether `own` is an ancestor of a process.
fn is_descendant(pid: Pid, own: Pid) -> bool {
    let own = own.as_raw_nonzero().get();
    let mut pid = pid.as_raw_nonzero().get();
    for _ in 0..GENERATIONS {
        match parent_of(pid) {
            Some(parent) if parent == own => return true,
            Some(parent @ 2..) => pid = parent,
            _ => return false,
        }
    }
    false
}

/// The parent of a process, from `/proc/PID/stat`. Allocates nothing.
fn parent_of(pid: i32) -> Option<i32> {
    let mut path = [0; 32];
    let path = stat_path(pid, &mut path)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    let mut stat = [0; 512];
    let count = rustix::io::read(&file, &mut stat).ok()?;
    parent_in(&stat[..count])
}

fn stat_path(pid: i32, path: &mut [u8; 32]) -> Option<&CStr> {
    let mut digits = [0; 10];
    let (mut rest, mut count) = (pid.unsigned_abs(), 0);
    while rest > 0 || count == 0 {
        digits[count] = b'0' + u8::try_from(rest % 10).ok()?;
        rest /= 10;
        count += 1;
    }
    digits[..count].reverse();
    let mut length = 0;
    for part in [&b"/proc/"[..], &digits[..count], b"/stat\0"] {
        path.get_mut(length..length + part.len())?
            .copy_from_slice(part);
        length += part.len();
    }
    CStr::from_bytes_with_nul(&path[..length]).ok()
}

/// Parses `7 (name) S 1 …`. The name may contain blanks and brackets.
fn parent_in(stat: &[u8]) -> Option<i32> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    // After the bracket: a blank, the state, a blank, the parent.
    let rest = stat.get(name_end + 4..)?;
    let length = rest.iter().position(|byte| !byte.is_ascii_digit())?;
    number(&rest[..length])
}

#[cfg(test)]
mod tests;
