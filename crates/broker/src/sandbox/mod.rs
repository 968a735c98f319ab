//! The confinement of the broker's threads.
//!
//! Once a program has [enabled](enable()) it, each thread of the broker confines itself at its start by what its
//! [`Kind`] needs: an allow list of system calls (`lists`), no capability that it does not use, and no file at all for
//! those that open none. What is denied fails with `EPERM` and is logged: an entry that a list lacks must not end all
//! virtual machines, and a refused call helps nobody who has taken a thread over. Tests end at it instead.
//!
//! A confined thread passes its confinement on to what it starts. So threads and programs are started on one thread
//! that is not confined (`outside`).

mod kind;
mod lists;
mod outside;

use std::cell::Cell;
use std::fmt::Display;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use hvsock_control::{ConfinedThreads, Confinement, DeniedCall};
use hvsock_sys::capabilities::{self, Set};
use hvsock_sys::landlock;
use hvsock_sys::seccomp::{self, Filter, Unlisted, denials, names};

pub use kind::Kind;
pub use outside::outside;

/// The capabilities of the broker's process.
///
/// - `CAP_CHOWN`: to give a VM's socket to the user of its VMM (`vm add --user`).
/// - `CAP_DAC_OVERRIDE`, `CAP_FOWNER`: to serve sockets in the folders of VMMs of other users (`vm add --hybrid`), and to
///   read the control groups of containers.
/// - `CAP_NET_BIND_SERVICE`: for ports of the kernel's vsock below 1024, of the integration services and for an uplink.
/// - `CAP_SETGID`, `CAP_SETUID`: to connect by the rights of the thread that called, in supervisors of containers.
/// - `CAP_SYS_ADMIN`: to enter network namespaces of VMs (`vm add --kernel-cid`).
/// - `CAP_SYS_PTRACE`: to tell whose a container's user namespace is, which program a process runs, and to answer the
///   calls of containers' programs.
/// - `CAP_SYS_RESOURCE`: to have more descriptors in flight than the limit of open files (`unix(7)`, `ETOOMANYREFS`).
pub const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RESOURCE",
];

/// What has come of the confinement of one kind of thread: numbers of threads since the start.
struct State {
    entered: AtomicU32,
    with_seccomp: AtomicU32,
    with_landlock: AtomicU32,
}

static STATES: [State; Kind::ALL.len()] = [const {
    State {
        entered: AtomicU32::new(0),
        with_seccomp: AtomicU32::new(0),
        with_landlock: AtomicU32::new(0),
    }
}; Kind::ALL.len()];

/// How a broker's process is confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A call that a list lacks fails with `EPERM`, and is counted and logged.
    Deny,
    /// It ends the process with a message: for tests, and for who would rather have no broker than one that was attacked.
    Kill,
}

const OFF: u8 = 0;
const ON: u8 = 1;
/// Tests have Unix sockets in place of the kernel's vsock.
const ON_WITH_STAND_INS: u8 = 2;
static MODE: AtomicU8 = AtomicU8::new(OFF);

thread_local! {
    static IS_CONFINED: Cell<bool> = const { Cell::new(false) };
}

/// What confined threads cannot ask about the process.
struct Process {
    capabilities: Set,
    landlock: Option<u32>,
}

static PROCESS: OnceLock<Process> = OnceLock::new();

/// Why something is not confined: the first reason for each.
struct Faults {
    privileges: OnceLock<String>,
    capabilities: OnceLock<String>,
    seccomp: OnceLock<String>,
    landlock: OnceLock<String>,
}

static FAULTS: Faults = Faults {
    privileges: OnceLock::new(),
    capabilities: OnceLock::new(),
    seccomp: OnceLock::new(),
    landlock: OnceLock::new(),
};

/// Keeps the first reason. Returns whether this is it.
fn note(fault: &OnceLock<String>, error: &impl Display) -> bool {
    fault.set(error.to_string()).is_ok()
}

/// Starts the thread that is not confined, and notes what confined threads cannot find out.
fn start(mode: Mode) -> io::Result<()> {
    let capabilities = capabilities::permitted().unwrap_or_default();
    let landlock = landlock::version();
    let _ = PROCESS.set(Process {
        capabilities,
        landlock,
    });
    outside::start()?;
    if mode == Mode::Kill {
        denials::end_at_first();
    }
    MODE.store(ON, Ordering::Release);
    Ok(())
}

/// Confines the threads that brokers of this process start from now on, and drops what capabilities the calling thread
/// and the threads that it starts do not need. Call it before the program has other threads.
///
/// What the kernel does not offer or an outer sandbox does not allow is left out, and told by [`missing()`] and by
/// [`Handle::status`](crate::Handle::status).
///
/// # Errors
///
/// If the thread that starts the others cannot be started.
pub fn enable(mode: Mode) -> io::Result<()> {
    if let Err(error) = seccomp::no_new_privileges() {
        note(&FAULTS.privileges, &error);
    }
    if let Err(error) = capabilities::keep_only(Set::named(CAPABILITIES)) {
        note(&FAULTS.capabilities, &error);
    }
    start(mode)
}

/// As [`enable()`] with [`Mode::Kill`], once, for tests of many brokers in a process: keeps the capabilities of the
/// calling thread, which is the test's.
///
/// # Errors
///
/// As [`enable()`].
#[doc(hidden)]
pub fn enable_strictly() -> io::Result<()> {
    match MODE.load(Ordering::Acquire) {
        OFF => {
            start(Mode::Kill)?;
            MODE.store(ON_WITH_STAND_INS, Ordering::Release);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// As [`enable_strictly()`], but what a list lacks is only denied.
///
/// # Errors
///
/// As [`enable()`].
#[doc(hidden)]
pub fn enable_for_this_program() -> io::Result<()> {
    start(Mode::Deny)
}

/// Confines the calling thread for good, if that is enabled. Whatever the kernel does not offer is left out.
pub fn enter(kind: Kind) {
    let mode = MODE.load(Ordering::Acquire);
    if mode == OFF || IS_CONFINED.get() {
        return;
    }
    IS_CONFINED.set(true);
    let state = &STATES[kind as usize];
    state.entered.fetch_add(1, Ordering::Relaxed);
    let name = kind.name();
    if let Err(error) = capabilities::keep_only(Set::named(kind.capabilities()))
        && note(&FAULTS.capabilities, &error)
    {
        tracing::warn!(%error, "a thread of kind {name} keeps its capabilities");
    }
    // Before the allow list, which does not have the calls for it.
    if kind.needs_no_file() {
        let landlocked = seccomp::no_new_privileges().and_then(|()| landlock::deny_all());
        match landlocked {
            Ok(_) => _ = state.with_landlock.fetch_add(1, Ordering::Relaxed),
            Err(error) if note(&FAULTS.landlock, &error) => {
                tracing::warn!(%error, "a thread of kind {name} may open files");
            }
            Err(_) => {}
        }
    }
    let tag = u16::try_from(kind as usize).unwrap_or(u16::MAX);
    let rules = lists::of(kind, mode == ON_WITH_STAND_INS);
    let filter = Filter::allow_only(&rules, Unlisted::Deny(tag));
    let confined = filter
        .map_err(io::Error::other)
        .and_then(|filter| seccomp::confine_thread(&filter));
    match confined {
        Ok(()) => _ = state.with_seccomp.fetch_add(1, Ordering::Relaxed),
        Err(error) if note(&FAULTS.seccomp, &error) => {
            tracing::warn!(%error, "a thread of kind {name} may make any system call");
        }
        Err(_) => {}
    }
}

/// What the confinement is.
pub(crate) fn report() -> Confinement {
    let process = PROCESS.get();
    let permitted = process.map_or(Set::NONE, |process| process.capabilities);
    let threads = Kind::ALL.into_iter().filter_map(|kind| {
        let state = &STATES[kind as usize];
        let entered = state.entered.load(Ordering::Relaxed);
        (entered > 0).then(|| ConfinedThreads {
            kind: kind.name().into(),
            seccomp: state.with_seccomp.load(Ordering::Relaxed) >= entered,
            landlock: state.with_landlock.load(Ordering::Relaxed) >= entered,
            capabilities: owned(Set::named(kind.capabilities()).and(permitted)),
        })
    });
    let (denied, others) = denials::list();
    let denied = denied.into_iter().map(|denial| DeniedCall {
        kind: Kind::name_of(denial.filter).into(),
        syscall: denial.syscall,
        name: names::of(denial.syscall).map(Into::into),
        count: denial.count,
    });
    Confinement {
        enabled: MODE.load(Ordering::Acquire) != OFF,
        landlock_abi: process.and_then(|process| process.landlock),
        capabilities: owned(permitted),
        threads: threads.collect(),
        missing: missing(),
        denied: denied.collect(),
        denied_others: others,
    }
}

/// Calls a function on a thread of a kind, and waits for it. The threads that it starts are confined likewise.
///
/// # Errors
///
/// If the thread cannot be started or has panicked.
pub(crate) fn within<T: Send + 'static>(
    kind: Kind,
    function: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let run = move || {
        enter(kind);
        function()
    };
    let thread = std::thread::Builder::new().name(format!("hvsock-{}", kind.name()));
    let done = thread.spawn(run)?.join();
    done.map_err(|_| io::Error::other("a thread has panicked"))
}

/// What is not confined although it should be, with the reason: sentences without a full stop.
pub fn missing() -> Vec<String> {
    let faults = [
        (
            &FAULTS.privileges,
            "programs that the broker starts may gain privileges",
        ),
        (
            &FAULTS.capabilities,
            "capabilities that are not used are kept",
        ),
        (
            &FAULTS.seccomp,
            "threads may make any system call, since seccomp filters are not available",
        ),
        (
            &FAULTS.landlock,
            "threads that need no file may open files, since Landlock is not available",
        ),
    ];
    let faults = faults
        .into_iter()
        .filter_map(|(fault, text)| Some(format!("{text}: {}", fault.get()?)));
    faults.collect()
}

fn owned(set: Set) -> Vec<String> {
    set.names().into_iter().map(str::to_owned).collect()
}
