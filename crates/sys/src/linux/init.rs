//! What the first process of a group of programs does: it takes their signals, and waits for those of its
//! children and of orphans that end (an *init*).

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::ptr;
use std::time::Duration;

use super::signals;

/// The signals of this process, which are queued and not delivered.
pub struct SignalQueue {
    /// What was blocked before.
    before: libc::sigset_t,
}

/// A signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal {
    /// Its number.
    pub number: i32,
    /// Sent by the kernel: by the terminal, whose whole foreground group has got it, or since a child changed
    /// its state.
    pub is_from_kernel: bool,
}

/// What became of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It has ended with this status.
    Exited(u8),
    /// This signal has ended it.
    Killed(i32),
    /// This signal has stopped it.
    Stopped(i32),
    /// It goes on after a stop.
    Continued,
}

/// Signals that report a fault of the thread itself. The kernel ends a process that blocks one and causes it.
const FAULTS: [i32; 7] = [
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGSEGV,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGSYS,
];

/// `SI_KERNEL` of asm-generic/siginfo.h.
const SI_KERNEL: i32 = 0x80;

impl SignalQueue {
    /// Queues the signals from now on. Call it before threads are started, which inherit this.
    pub fn new() -> Self {
        let before = signals::all_signals(libc::SIG_SETMASK, Some(&all_but_faults()));
        Self { before }
    }

    /// Has a program that is started with `command` begin with the signals that were blocked before, instead of
    /// all.
    pub fn restore_in(&self, command: &mut Command) {
        let before = self.before;
        let restore = move || {
            // SAFETY: a valid set. The call is safe between fork and exec.
            unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut()) };
            Ok(())
        };
        // SAFETY: it makes one system call and touches no memory but its own.
        unsafe { command.pre_exec(restore) };
    }

    /// Takes the next signal. `None` after `timeout`.
    ///
    /// # Errors
    ///
    /// Those of `sigtimedwait`, except `EINTR`, after which there is none.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Option<Signal>> {
        let set = all_but_faults();
        let mut info = MaybeUninit::<libc::siginfo_t>::uninit();
        let number = match timeout {
            // SAFETY: valid pointers to a set and to a structure that may be written.
            None => unsafe { libc::sigwaitinfo(&raw const set, info.as_mut_ptr()) },
            Some(timeout) => {
                let timeout = libc::timespec {
                    tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
                    tv_nsec: timeout.subsec_nanos().into(),
                };
                // SAFETY: as above, and a valid pointer to a time.
                unsafe { libc::sigtimedwait(&raw const set, info.as_mut_ptr(), &raw const timeout) }
            }
        };
        if number < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => Ok(None),
                _ => Err(error),
            };
        }
        // SAFETY: the call has filled it.
        let code = unsafe { info.assume_init() }.si_code;
        Ok(Some(Signal {
            number,
            is_from_kernel: code == SI_KERNEL || number == libc::SIGCHLD && code > 0,
        }))
    }
}

impl fmt::Debug for SignalQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignalQueue").finish_non_exhaustive()
    }
}

impl Default for SignalQueue {
    fn default() -> Self {
        Self::new()
    }
}

fn all_but_faults() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the first call initializes the set.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        for fault in FAULTS {
            libc::sigdelset(set.as_mut_ptr(), fault);
        }
        set.assume_init()
    }
}

/// Makes orphans among the descendants of this process its children (`PR_SET_CHILD_SUBREAPER`).
///
/// # Errors
///
/// Those of `prctl`.
pub fn adopt_orphans() -> io::Result<()> {
    // SAFETY: numbers only.
    match unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes the next change of any child, without waiting. `None` if there is none, or no child.
///
/// # Errors
///
/// Those of `waitpid`.
pub fn next_change() -> io::Result<Option<(u32, Change)>> {
    let mut status = 0;
    let flags = libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED;
    // SAFETY: a valid pointer to a number.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, flags) };
    if pid < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ECHILD) => Ok(None),
            _ => Err(error),
        };
    }
    let change = if libc::WIFEXITED(status) {
        Change::Exited(u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(u8::MAX))
    } else if libc::WIFSIGNALED(status) {
        Change::Killed(libc::WTERMSIG(status))
    } else if libc::WIFSTOPPED(status) {
        Change::Stopped(libc::WSTOPSIG(status))
    } else {
        Change::Continued
    };
    Ok(u32::try_from(pid)
        .ok()
        .filter(|pid| *pid != 0)
        .map(|pid| (pid, change)))
}

/// Whether this process has children, also ended ones that [`next_change`] has not taken.
pub fn has_children() -> bool {
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    let mut info = MaybeUninit::<libc::siginfo_t>::uninit();
    // SAFETY: a valid pointer for the result, which is not read.
    unsafe { libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), flags) == 0 }
}

/// Sends a signal to a process. One that has ended gets none.
pub fn send_signal(process: u32, signal: i32) {
    if let Ok(process) = libc::pid_t::try_from(process) {
        // SAFETY: numbers only.
        unsafe { libc::kill(process, signal) };
    }
}

/// Stops this process as a shell's job, until it is continued.
pub fn stop_self() {
    // SAFETY: a number only.
    unsafe { libc::raise(libc::SIGSTOP) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_of_a_thread_is_queued_and_names_its_origin() {
        std::thread::spawn(|| {
            let queue = SignalQueue::new();
            // SAFETY: the signal goes to this thread, which blocks it.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR2) };
            let signal = queue.wait(Some(Duration::from_secs(5))).unwrap();
            let want = Signal {
                number: libc::SIGUSR2,
                is_from_kernel: false,
            };
            assert_eq!(signal, Some(want));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_child_of_a_process_that_queues_signals_need_not_block_them() {
        let output = std::thread::spawn(|| {
            let queue = SignalQueue::new();
            let mut command = Command::new("grep");
            command.args(["SigBlk", "/proc/self/status"]);
            queue.restore_in(&mut command);
            command.output().unwrap()
        });
        let output = output.join().unwrap().stdout;
        let line = String::from_utf8(output).unwrap();
        assert_eq!(line.trim(), "SigBlk:\t0000000000000000");
    }
}
