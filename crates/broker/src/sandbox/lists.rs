//! The allow lists.
//!
//! A list has what the code of its threads calls, of its own and by the C library and Rust's standard library.
//! Where an argument makes a call dangerous, only values that are used are allowed: memory never becomes
//! executable, a new task is always a thread, and sockets have the families that the threads need.

use hvsock_sys::seccomp::{Action, ArgEq, Rule};

use super::kind::Kind;

/// The calls of this architecture with these names. Others exist on old architectures only.
macro_rules! calls {
    ($($name:ident),* $(,)?) => {
        &[$(libc::$name),*]
    };
}

/// Memory, time, waiting, and the life of a thread.
const BASE: &[i64] = calls![
    SYS_brk,
    SYS_clock_getres,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_close,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_eventfd2,
    SYS_exit,
    SYS_exit_group,
    SYS_fcntl,
    SYS_futex,
    SYS_getcpu,
    SYS_getegid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getpid,
    SYS_getrandom,
    SYS_gettid,
    SYS_getuid,
    SYS_lseek,
    SYS_madvise,
    SYS_membarrier,
    SYS_mremap,
    SYS_munmap,
    SYS_nanosleep,
    SYS_ppoll,
    SYS_read,
    SYS_readv,
    SYS_restart_syscall,
    SYS_rseq,
    SYS_rt_sigaction,
    SYS_rt_sigpending,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_rt_sigtimedwait,
    SYS_sched_getaffinity,
    SYS_sched_yield,
    SYS_set_robust_list,
    SYS_sigaltstack,
    SYS_tgkill,
    SYS_write,
    SYS_writev,
];

/// Those of the base that only some architectures have.
#[cfg(target_arch = "x86_64")]
const OLD: &[i64] = calls![SYS_epoll_wait, SYS_gettimeofday, SYS_poll, SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[i64] = &[];

/// Sockets and pipes that are open.
const STREAMS: &[i64] = calls![
    SYS_accept4,
    SYS_getpeername,
    SYS_getsockname,
    SYS_getsockopt,
    SYS_ioctl,
    SYS_pipe2,
    SYS_preadv2,
    SYS_pwritev2,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_sendmsg,
    SYS_sendto,
    SYS_setsockopt,
    SYS_shutdown,
    SYS_splice,
];

/// What is asked of descriptors and of memory that others have passed.
const DESCRIPTORS: &[i64] = calls![
    SYS_dup,
    SYS_fallocate,
    SYS_fstat,
    SYS_fstatfs,
    SYS_ftruncate,
    SYS_memfd_create,
    SYS_pread64,
    SYS_pwrite64,
    SYS_readlinkat,
    SYS_socketpair,
    SYS_timerfd_create,
    SYS_timerfd_settime,
];

/// Sockets that are made.
const SOCKETS: &[i64] = calls![SYS_bind, SYS_connect, SYS_listen];

/// Files that are read.
const READING: &[i64] = calls![
    SYS_faccessat,
    SYS_faccessat2,
    SYS_getdents64,
    SYS_inotify_add_watch,
    SYS_inotify_init1,
    SYS_inotify_rm_watch,
    SYS_newfstatat,
    SYS_openat,
    SYS_openat2,
    SYS_statfs,
    SYS_statx,
];
#[cfg(target_arch = "x86_64")]
const OLD_READING: &[i64] = calls![SYS_access, SYS_lstat, SYS_open, SYS_readlink, SYS_stat];
#[cfg(not(target_arch = "x86_64"))]
const OLD_READING: &[i64] = &[];

/// Files that are made, replaced and removed.
const WRITING: &[i64] = calls![
    SYS_fchmod,
    SYS_fchmodat,
    SYS_fchown,
    SYS_fchownat,
    SYS_fdatasync,
    SYS_flock,
    SYS_fsync,
    SYS_linkat,
    SYS_mkdirat,
    SYS_renameat,
    SYS_renameat2,
    SYS_symlinkat,
    SYS_umask,
    SYS_unlinkat,
    SYS_utimensat,
];
#[cfg(target_arch = "x86_64")]
const OLD_WRITING: &[i64] = calls![
    SYS_chmod,
    SYS_chown,
    SYS_lchown,
    SYS_link,
    SYS_mkdir,
    SYS_rename,
    SYS_rmdir,
    SYS_symlink,
    SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_WRITING: &[i64] = &[];

/// Other processes: whether they have ended, and the limits of this one.
const PROCESSES: &[i64] = calls![
    SYS_getgroups,
    SYS_kill,
    SYS_pidfd_open,
    SYS_pidfd_send_signal,
    SYS_prlimit64,
    SYS_sysinfo,
    SYS_uname,
    SYS_wait4,
    SYS_waitid,
];

/// `PROT_NONE`, `PROT_READ`, `PROT_WRITE`, and both.
const NOT_EXECUTABLE: [u32; 4] = [0, 1, 2, 3];

/// The flags of `pthread_create` in glibc and in musl: a thread of this process, which shares all with it.
const THREADS: [u32; 2] = [0x003d_0f00, 0x007d_0f00];

/// Operations of `prctl`: the name of a thread, and of memory, and what the kernel told the process at its start
/// (`PR_SET_NAME`, `PR_GET_NAME`, `PR_SET_VMA`, `PR_GET_AUXV`).
const PRCTL: [u32; 4] = [15, 16, 0x5356_4d41, 0x4155_5856];

/// Families of sockets: Unix, netlink (`sock_diag`), vsock.
const UNIX: u32 = 1;
const NETLINK: u32 = 16;
const VSOCK: u32 = 40;

/// `ENOSYS`: the C library uses an older call then.
const NO_SUCH_CALL: Action = Action::Errno(38);

/// `EPERM`, which is not counted.
const DENIED: Action = Action::Errno(1);

/// The groups of calls, and the families of sockets, of a kind of thread.
fn groups(kind: Kind) -> (Vec<&'static [i64]>, &'static [u32]) {
    let streams = vec![BASE, OLD, STREAMS];
    let files = vec![READING, OLD_READING, WRITING, OLD_WRITING];
    match kind {
        Kind::Data => (streams, &[]),
        Kind::VmData => ([streams, vec![DESCRIPTORS]].concat(), &[]),
        Kind::Vmm => {
            let groups = vec![DESCRIPTORS, READING, OLD_READING];
            ([streams, groups].concat(), &[])
        }
        Kind::Audit => ([streams, vec![SOCKETS, DESCRIPTORS]].concat(), &[UNIX]),
        Kind::Services => {
            let groups = vec![DESCRIPTORS, SOCKETS, READING, OLD_READING];
            ([streams, groups].concat(), &[UNIX])
        }
        Kind::Observer | Kind::Handover => {
            let groups = vec![DESCRIPTORS, PROCESSES];
            ([streams, groups, files].concat(), &[UNIX])
        }
        Kind::Uplink | Kind::KernelVsock => {
            let groups = vec![DESCRIPTORS, SOCKETS, PROCESSES, READING, OLD_READING];
            ([streams, groups].concat(), &[VSOCK, NETLINK])
        }
        Kind::Hybrid | Kind::Core | Kind::Control | Kind::Retry | Kind::Watch => {
            let groups = vec![DESCRIPTORS, SOCKETS, PROCESSES];
            ([streams, groups, files].concat(), &[UNIX, NETLINK, VSOCK])
        }
    }
}

/// Whether threads of this kind open files.
fn has_files(kind: Kind) -> bool {
    groups(kind).0.contains(&READING)
}

/// Whether threads of this kind start others, which then are under the same list.
const fn starts_threads(kind: Kind) -> bool {
    !matches!(
        kind,
        Kind::Data | Kind::VmData | Kind::Audit | Kind::Observer
    )
}

/// The rules of a kind of thread. `has_stand_ins`: Unix sockets are allowed where vsock is.
pub(super) fn of(kind: Kind, has_stand_ins: bool) -> Vec<Rule<'static>> {
    let (groups, families) = groups(kind);
    let has = |family: u32| {
        families.contains(&family) || has_stand_ins && family == UNIX && families.contains(&VSOCK)
    };
    let mut rules = Vec::new();
    let mut allow = |syscall, args| {
        rules.push(Rule {
            syscall,
            args,
            action: Action::Allow,
        });
    };
    for call in groups.into_iter().flatten() {
        allow(*call, &[]);
    }
    for protection in &PROTECTIONS {
        allow(libc::SYS_mmap, protection);
        allow(libc::SYS_mprotect, protection);
    }
    for operation in &OPERATIONS {
        allow(libc::SYS_prctl, operation);
    }
    for family in FAMILIES.iter().filter(|arg| has(arg[0].value)) {
        allow(libc::SYS_socket, family);
    }
    if starts_threads(kind) {
        for flags in &FLAGS {
            allow(libc::SYS_clone, flags);
        }
    }
    let mut deny = |syscall, action| {
        rules.push(Rule {
            syscall,
            args: &[],
            action,
        });
    };
    // Its flags are in memory, which a filter cannot read.
    deny(libc::SYS_clone3, NO_SUCH_CALL);
    // The C library blocks all signals around these, also the one that is counted, and that would end the process.
    deny(libc::SYS_clone, DENIED);
    #[cfg(target_arch = "x86_64")]
    for call in [libc::SYS_fork, libc::SYS_vfork] {
        deny(call, DENIED);
    }
    if !has_files(kind) {
        // The C library's allocator looks at the system's settings when it returns memory, and does without.
        deny(libc::SYS_openat, DENIED);
    }
    rules
}

const fn arg(index: u8, value: u32) -> [ArgEq; 1] {
    [ArgEq { index, value }]
}

static PROTECTIONS: [[ArgEq; 1]; 4] = {
    let [none, read, write, both] = NOT_EXECUTABLE;
    [arg(2, none), arg(2, read), arg(2, write), arg(2, both)]
};
static OPERATIONS: [[ArgEq; 1]; 4] = {
    let [set_name, get_name, memory, start] = PRCTL;
    [
        arg(0, set_name),
        arg(0, get_name),
        arg(0, memory),
        arg(0, start),
    ]
};
static FAMILIES: [[ArgEq; 1]; 3] = [arg(0, UNIX), arg(0, NETLINK), arg(0, VSOCK)];
static FLAGS: [[ArgEq; 1]; 2] = [arg(0, THREADS[0]), arg(0, THREADS[1])];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_list_has_a_call_by_which_a_thread_gets_more_than_it_has() {
        let dangerous = [
            libc::SYS_bpf,
            libc::SYS_capset,
            libc::SYS_chroot,
            libc::SYS_delete_module,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_finit_module,
            libc::SYS_init_module,
            libc::SYS_io_uring_setup,
            libc::SYS_kexec_load,
            libc::SYS_keyctl,
            libc::SYS_mknodat,
            libc::SYS_mount,
            libc::SYS_move_mount,
            libc::SYS_open_by_handle_at,
            libc::SYS_open_tree,
            libc::SYS_perf_event_open,
            libc::SYS_pidfd_getfd,
            libc::SYS_pivot_root,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_ptrace,
            libc::SYS_reboot,
            libc::SYS_setgid,
            libc::SYS_setns,
            libc::SYS_setresuid,
            libc::SYS_setuid,
            libc::SYS_swapon,
            libc::SYS_umount2,
            libc::SYS_unshare,
            libc::SYS_userfaultfd,
        ];
        for kind in Kind::ALL {
            for rule in of(kind, false) {
                assert!(!dangerous.contains(&rule.syscall), "{kind:?}: {rule:?}");
                let checked = [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_clone];
                let checked = checked.contains(&rule.syscall) || rule.syscall == libc::SYS_socket;
                let is_bounded = rule.args.len() == 1 || rule.action != Action::Allow;
                assert!(!checked || is_bounded, "{kind:?}: {rule:?}");
            }
        }
    }

    #[test]
    fn threads_that_move_bytes_have_no_call_for_files_or_new_sockets() {
        for kind in [Kind::Data, Kind::VmData] {
            for call in [
                libc::SYS_openat,
                libc::SYS_unlinkat,
                libc::SYS_socket,
                libc::SYS_connect,
                libc::SYS_clone,
                libc::SYS_kill,
            ] {
                let allows = |rule: &Rule<'_>| rule.syscall == call && rule.action == Action::Allow;
                assert!(!of(kind, false).iter().any(allows), "{kind:?}: {call}");
            }
        }
    }
}
