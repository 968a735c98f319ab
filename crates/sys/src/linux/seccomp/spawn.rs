//! Starting a program under a filter.

use std::error::Error;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

use super::super::{message, seqpacket};
use super::bpf::Filter;
use super::install::{no_new_privileges, set_filter};
use super::listener::{self, Listener};

/// A program under a filter.
#[derive(Debug)]
pub struct Spawned {
    /// Its first process.
    pub child: Child,
    /// The calls that it and its descendants make.
    pub listener: Listener,
}

/// Why a program was not started.
#[derive(Debug)]
pub enum SpawnError {
    /// The kernel does not install the filter: `EBUSY` if this process is under a filter with a listener
    /// itself; `EINVAL` or `ENOSYS` on a kernel without notifications; `EPERM`, `EACCES` or `ENOSYS` if an outer filter
    /// denies `seccomp` or `prctl`.
    Filter(io::Error),
    /// The program cannot be executed, with the error of [`Command::spawn`].
    Program(io::Error),
}

impl fmt::Display for SpawnError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filter(_) => formatter.write_str("cannot install a seccomp filter"),
            Self::Program(_) => formatter.write_str("cannot execute the program"),
        }
    }
}

impl Error for SpawnError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let (Self::Filter(error) | Self::Program(error)) = self;
        Some(error)
    }
}

/// Calls between the installation of the filter and the start of the program. If they waited for an answer,
/// nobody would be there to give one.
pub(super) const OWN_CALLS: [i64; 10] = [
    libc::SYS_seccomp,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_execve,
    libc::SYS_write,
    libc::SYS_exit_group,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
];

/// Starts a program under a filter. It, its threads and all its descendants can gain no privileges by executing
/// programs (`PR_SET_NO_NEW_PRIVS`).
///
/// A thread whose call was received waits until it is answered or killed, if the kernel can do that (Linux
/// 5.19): see [`Listener::has_wait_killable`].
///
/// # Errors
///
/// See [`SpawnError`]. `InvalidInput` as a [`SpawnError::Filter`] if the filter notifies of a call that is made
/// before the program runs: `sendmsg`, `write`, `close`, `execve` and such.
pub fn spawn(mut command: Command, filter: &Filter) -> Result<Spawned, SpawnError> {
    if filter
        .notified()
        .iter()
        .any(|call| OWN_CALLS.contains(call))
    {
        return Err(SpawnError::Filter(io::ErrorKind::InvalidInput.into()));
    }
    listener::check_size().map_err(SpawnError::Filter)?;
    let (own, theirs) = seqpacket::pair().map_err(SpawnError::Program)?;
    let (program, socket) = (filter.program().to_vec(), theirs.as_raw_fd());
    let install = move || {
        let installed = no_new_privileges().and_then(|()| install_with_listener(&program));
        let sent = installed.and_then(|(listener, killable)| send(socket, listener, killable));
        // So the parent knows whose error it is.
        sent.inspect_err(|_| send_failure(socket))
    };
    // SAFETY: the closure makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(install) };
    let spawned = command.spawn();
    // The child has its copy, or has ended. Without this one, the end of the child ends the stream.
    drop(theirs);
    let mut kind = [0];
    let received = message::recv_with_descriptors(&own, &mut kind);
    let error = match (spawned, received) {
        (Ok(child), Ok(mut received)) => {
            if let Some(fd) = received.descriptors.pop() {
                let wait_killable = kind == [WITH_KILLABLE];
                let listener = Listener::new(fd, wait_killable);
                return Ok(Spawned { child, listener });
            }
            end(child);
            SpawnError::Filter(io::Error::other("the listener was not received"))
        }
        (Ok(child), Err(error)) => {
            end(child);
            SpawnError::Filter(error)
        }
        (Err(error), Ok(received)) if received.len == 1 && kind == [FAILED] => {
            SpawnError::Filter(error)
        }
        (Err(error), _) => SpawnError::Program(error),
    };
    Err(error)
}

/// Makes `command` start its program under a filter without a listener, and without new privileges. Filters
/// add up: the strictest action wins, in this order: an error, a notification, allow.
///
/// # Errors
///
/// `InvalidInput` if the filter notifies.
pub fn restrict(command: &mut Command, filter: &Filter) -> io::Result<()> {
    if !filter.notified().is_empty() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let program = filter.program().to_vec();
    let install = move || {
        no_new_privileges()?;
        set_filter(&program, 0).map(drop)
    };
    // SAFETY: the closure makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(install) };
    Ok(())
}

/// Ends a program whose listener is lost: it would wait at its first call.
fn end(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Installs the filter. Returns the listener, and whether its threads wait until they are answered or killed.
fn install_with_listener(program: &[libc::sock_filter]) -> io::Result<(OwnedFd, bool)> {
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    let killable = flags | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    let (fd, is_killable) = match set_filter(program, killable) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            (set_filter(program, flags)?, false)
        }
        done => (done?, true),
    };
    // SAFETY: it is a new descriptor that nobody else has.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }, is_killable))
}

/// The messages of the child.
const WITH_KILLABLE: u8 = 1;
const WITHOUT_KILLABLE: u8 = 2;
const FAILED: u8 = 3;

#[repr(C, align(8))]
struct Control([u8; 64]);

/// Sends the listener to the parent. Allocates nothing.
fn send(socket: RawFd, listener: OwnedFd, killable: bool) -> io::Result<()> {
    let mut kind = [if killable {
        WITH_KILLABLE
    } else {
        WITHOUT_KILLABLE
    }];
    let mut part = libc::iovec {
        iov_base: kind.as_mut_ptr().cast(),
        iov_len: kind.len(),
    };
    let mut control = Control([0; 64]);
    const LENGTH: u32 = size_of::<RawFd>() as u32;
    // SAFETY: all zeros are valid for this structure; the pointers are to memory that is valid for the call;
    // the control buffer is aligned and has room for one descriptor.
    let done = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(LENGTH) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(LENGTH) as _;
        libc::CMSG_DATA(header)
            .cast::<RawFd>()
            .write_unaligned(listener.as_raw_fd());
        libc::sendmsg(socket, &raw const message, libc::MSG_NOSIGNAL)
    };
    // Before the descriptor is closed, which may change it.
    let error = io::Error::last_os_error();
    drop(listener);
    if done < 0 { Err(error) } else { Ok(()) }
}

fn send_failure(socket: RawFd) {
    let kind = [FAILED];
    // SAFETY: pointer and length are of one array.
    unsafe { libc::send(socket, kind.as_ptr().cast(), kind.len(), libc::MSG_NOSIGNAL) };
}
