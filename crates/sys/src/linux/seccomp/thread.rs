//! Confining the calling thread.

use std::io;

use super::bpf::Filter;
use super::denials;
use super::install::{no_new_privileges, set_filter};

/// Puts this thread under a filter, for good, and without new privileges. The threads and processes that it starts
/// from then on are under it as well; the other threads of this process are not. Filters add up.
///
/// # Errors
///
/// `InvalidInput` if the filter notifies; those of `prctl`, `sigaction` and `seccomp`: `EINVAL` or `ENOSYS` on a kernel
/// without filters.
pub fn confine_thread(filter: &Filter) -> io::Result<()> {
    if !filter.notified().is_empty() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    denials::catch()?;
    no_new_privileges()?;
    set_filter(filter.program(), 0).map(drop)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::{Action, Rule, Unlisted};
    use super::*;

    /// The number of the tests' filter.
    const TAG: u16 = 300;
    /// Makes [`a_denied_call_ends_a_strict_process`] the process that is ended.
    const STRICT: &str = "HVSOCK_TEST_STRICT";

    /// Calls `getppid`, which no library needs, on a thread whose list lacks it.
    fn call(allowed: &[libc::c_long]) -> io::Result<()> {
        let rules: Vec<Rule<'_>> = allowed
            .iter()
            .map(|call| Rule {
                syscall: *call,
                args: &[],
                action: Action::Allow,
            })
            .collect();
        let filter = Filter::allow_only(&rules, Unlisted::Deny(TAG)).unwrap();
        let thread = std::thread::spawn(move || {
            confine_thread(&filter).unwrap();
            // SAFETY: no memory is involved.
            match unsafe { libc::syscall(libc::SYS_getppid) } {
                ..0 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            }
        });
        thread.join().unwrap()
    }

    /// What the end of a thread takes.
    const END: &[libc::c_long] = &[
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_futex,
        libc::SYS_getrandom,
        libc::SYS_madvise,
        libc::SYS_mmap,
        libc::SYS_mprotect,
        libc::SYS_munmap,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_write,
    ];

    fn denied() -> u64 {
        let (list, _) = denials::list();
        let number = u32::try_from(libc::SYS_getppid).unwrap();
        let mut own = list
            .iter()
            .filter(|denial| denial.filter == TAG && denial.syscall == number);
        own.next().map_or(0, |denial| denial.count)
    }

    #[test]
    fn a_call_that_a_list_lacks_fails_and_is_counted() {
        let before = denied();
        let error = call(END).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(denied(), before + 1);
        call(&[END, &[libc::SYS_getppid]].concat()).unwrap();
        assert_eq!(denied(), before + 1);
        // This thread is under no list.
        // SAFETY: no memory is involved.
        assert!(unsafe { libc::syscall(libc::SYS_getppid) } > 0);
    }

    #[test]
    fn a_denied_call_ends_a_strict_process() {
        if std::env::var_os(STRICT).is_some() {
            denials::end_at_first();
            let _ = call(END);
            return;
        }
        let name = "linux::seccomp::thread::tests::a_denied_call_ends_a_strict_process";
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output = command.args(["--exact", name]).env(STRICT, "1").output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(159));
        let text = String::from_utf8_lossy(&output.stderr);
        let number = libc::SYS_getppid;
        let wanted = format!("hvsock: the allow list 00300 lacks system call {number:05}\n");
        assert!(text.contains(&wanted), "{text}");
    }
}
