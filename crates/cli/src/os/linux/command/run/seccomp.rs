//! The program under a seccomp filter, whose calls a thread of this process answers.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anstyle::AnsiColor;
use anyhow::{Context as _, Result};
use hvsock::ElementName;
use hvsock_interpose::supervisor::{Event, Settings, Supervisor, filter};
use hvsock_sys::init::send_signal;
use hvsock_sys::limits;
use hvsock_sys::seccomp::{Listener, SpawnError, spawn};
use hvsock_sys::vsock;

use super::init::Init;
use super::probe::{self, Fault, Step};
use super::report::Reporter;
use super::setting::Setting;
use crate::failure::{self, Failure};

/// What stands in the way of this way.
#[derive(Debug)]
pub enum Obstacle {
    /// The filter cannot be installed.
    Filter(io::Error),
    /// Installed, it does not work as needed.
    Calls(Fault),
    /// The test itself failed.
    Test(io::Error),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filter(error) => match error.raw_os_error() {
                Some(libc_errno::EBUSY) => f.write_str(
                    "this process is under a seccomp filter with a supervisor already (it runs \
                     inside of another `hvsock run`, or the container runtime has one)",
                ),
                Some(libc_errno::EINVAL | libc_errno::ENOSYS) => {
                    f.write_str("this kernel has no seccomp user notifications (Linux 5.9 has)")
                }
                Some(libc_errno::EPERM | libc_errno::EACCES) => write!(
                    f,
                    "an outer seccomp filter forbids to install another one ({error})"
                ),
                _ => write!(f, "cannot install a seccomp filter: {error}"),
            },
            Self::Calls(Fault { step, errno }) => {
                let error = io::Error::from_raw_os_error(*errno);
                match step {
                    Step::Socket => write!(
                        f,
                        "an outer seccomp filter forbids sockets of AF_VSOCK ({error}), as those of \
                         Docker, containerd and newer Podman do"
                    ),
                    Step::Bind | Step::Name => write!(
                        f,
                        "this process may not read the memory of its children ({error}): Yama or an \
                         outer seccomp filter forbids it"
                    ),
                }
            }
            Self::Test(error) => write!(f, "the test before the start failed: {error}"),
        }
    }
}

impl Obstacle {
    /// What helps.
    pub fn help(&self) -> &'static str {
        match self {
            Self::Filter(error) => match error.raw_os_error() {
                Some(libc_errno::EBUSY) => {
                    "run the program without `hvsock run`: it is served already"
                }
                Some(libc_errno::EPERM | libc_errno::EACCES) => {
                    "run the container with a seccomp profile that allows the call seccomp"
                }
                _ => "update the kernel",
            },
            Self::Calls(Fault {
                step: Step::Socket, ..
            }) => "run the container with a seccomp profile that allows socket with the family 40",
            Self::Calls(_) => {
                "sysctl -w kernel.yama.ptrace_scope=1, or a profile that allows process_vm_readv and pidfd_getfd"
            }
            Self::Test(_) => "report this error",
        }
    }
}

/// Numbers of errno.h.
mod libc_errno {
    use hvsock_sys::errno;

    pub const EACCES: i32 = errno::EACCES;
    pub const EINVAL: i32 = errno::EINVAL;
    pub const EPERM: i32 = errno::EPERM;
    pub const EBUSY: i32 = 16;
    pub const ENOSYS: i32 = 38;
}

/// Tries whether a program can be served.
///
/// # Errors
///
/// What stands in the way.
pub fn check(setting: &Setting<'_>) -> Result<(), Obstacle> {
    let filter = filter(false).map_err(|error| Obstacle::Test(io::Error::other(error)))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg(probe::COMMAND).env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let spawned = spawn(command, &filter).map_err(|error| match error {
        SpawnError::Filter(error) => Obstacle::Filter(error),
        SpawnError::Program(error) => Obstacle::Test(error),
    })?;
    let mut child = spawned.child;
    let supervisor = supervisor(setting, spawned.listener, VecDeque::new(), |_| {});
    let supervisor = supervisor.map_err(Obstacle::Test)?;
    let thread = thread::Builder::new().name("supervisor".into());
    let thread = thread.spawn(|| supervisor.run()).map_err(Obstacle::Test)?;
    let mut printed = String::new();
    let read = child.stdout.take().map(|out| out.take(100));
    let read = read.map(|mut out| out.read_to_string(&mut printed));
    // It ends by itself; the supervisor with it.
    let ended = child.wait().and_then(|_| {
        let _ = thread.join();
        read.transpose()
    });
    ended.map_err(Obstacle::Test)?;
    match Fault::parse(&printed) {
        Ok(None) => Ok(()),
        Ok(Some(fault)) => Err(Obstacle::Calls(fault)),
        Err(()) => Err(Obstacle::Test(io::ErrorKind::InvalidData.into())),
    }
}

/// Runs the program. Returns its exit status.
pub fn run(
    setting: &Setting<'_>,
    init: &Init,
    mut command: Command,
    names: VecDeque<ElementName>,
) -> Result<u8> {
    let has_device = std::fs::File::open(vsock::DEVICE).is_ok();
    let filter = filter(!has_device).context("cannot make a seccomp filter")?;
    init.prepare(&mut command);
    let program = command.get_program().to_owned();
    let spawned = spawn(command, &filter).map_err(|error| match error {
        SpawnError::Program(error) => not_started(Path::new(&program), &error),
        error @ SpawnError::Filter(_) => error.into(),
    })?;
    // After the program has got the limit of this process.
    let _ = limits::raise_descriptors();
    let reporter = Reporter::start(setting.context)?;
    let report = move |event| reporter.report(event);
    let supervisor = supervisor(setting, spawned.listener, names, report)?;
    let is_done = Arc::new(AtomicBool::new(false));
    let done = Arc::clone(&is_done);
    let thread = thread::Builder::new().name("supervisor".into());
    thread.spawn(move || {
        if let Err(error) = supervisor.run() {
            let text = format!("the program's sockets are no longer served: {error}");
            failure::print(AnsiColor::Red.on_default().bold(), "error", &text);
        }
        done.store(true, Ordering::Release);
        // Wakes the thread that waits for signals.
        send_signal(std::process::id(), SIGCHLD);
    })?;
    init.wait(spawned.child.id(), || is_done.load(Ordering::Acquire))
}

/// `SIGCHLD` of asm-generic/signal.h.
const SIGCHLD: i32 = 17;

/// The error of a program that does not start, with the status of shells.
pub fn not_started(program: &Path, error: &io::Error) -> anyhow::Error {
    const NOT_FOUND: u8 = 127;
    const NOT_EXECUTABLE: u8 = 126;
    let status = match error.kind() {
        io::ErrorKind::NotFound => NOT_FOUND,
        _ => NOT_EXECUTABLE,
    };
    let text = format!("cannot run {}: {error}", program.display());
    Failure::new(text).with_status(status).into()
}

fn supervisor(
    setting: &Setting<'_>,
    listener: Listener,
    register: VecDeque<ElementName>,
    on_event: impl FnMut(Event) + Send + 'static,
) -> io::Result<Supervisor> {
    let settings = Settings {
        endpoint: setting.endpoint.clone(),
        register,
        on_event: Box::new(on_event),
    };
    Supervisor::new(listener, settings, setting.own, None)
}
