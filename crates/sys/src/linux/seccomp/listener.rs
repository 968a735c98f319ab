//! The supervisor's end: calls come in, answers go out.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::super::remote::ThreadId;
use super::super::signals;
use super::bpf;

/// The descriptor of a filter's notifications. Readable when a call waits; hangs up when no task is left
/// under the filter.
///
/// One thread must call [`receive`](Self::receive); any thread may answer.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    wait_killable: bool,
}

/// What [`Listener::wait`] has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// A call waits.
    pub call: bool,
    /// No task is left under the filter.
    pub hung_up: bool,
    /// The other descriptor is ready.
    pub others: bool,
}

/// A call that waits. No other call of this filter ever has the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NotificationId(u64);

/// A call that waits for an answer, and what it asks for.
#[derive(Clone, Copy, Debug)]
pub struct Notification {
    /// Which call.
    pub id: NotificationId,
    /// Who called, as a number of this process's PID namespace.
    pub thread: ThreadId,
    /// The number of the call (`SYS_*`), if it is [native](Self::is_native).
    pub syscall: i64,
    /// Whether the number and the arguments are those of this architecture. A [`Filter`](super::Filter) allows
    /// all others, but one that a container runtime has installed may not: then the call can be one of i386
    /// or of x32, with other numbers.
    pub is_native: bool,
    /// All registers that can be arguments. More than the call has are arbitrary.
    pub args: [u64; 6],
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// The call returns this number.
    Return(i64),
    /// The call fails with this positive number.
    Error(i32),
    /// The kernel executes the call, with arguments that the program may have changed by then. So this is no
    /// way to allow what was examined.
    Continue,
    /// A signal interrupts the call: as its handler wants (`SA_RESTART`), the call starts again or fails with
    /// `EINTR`. If no signal is pending, it starts again.
    Restart,
}

/// How to put a descriptor into the calling process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddFd {
    /// Sets close-on-exec on it.
    pub close_on_exec: bool,
    /// Answers the call with the number of the descriptor, in the same step.
    pub respond: bool,
}

/// `ERESTARTSYS` of the kernel's linux/errno.h: never seen by programs, except here and by ptrace.
const ERESTARTSYS: i32 = 512;

/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP` of linux/seccomp.h, since Linux 6.6.
const SYNC_WAKE_UP: libc::c_ulong = 1;

/// The room for a notification. Kernels to come may write more than `struct seccomp_notif`.
#[repr(C, align(8))]
struct Buffer([MaybeUninit<u8>; 512]);

impl Listener {
    /// The listener of a filter that another program has installed. `wait_killable` says whether it did so
    /// with `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`; the kernel does not.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if it is no listener; `Unsupported` if this kernel's notifications are larger than any
    /// that are known here.
    pub fn from_descriptor(fd: OwnedFd, wait_killable: bool) -> io::Result<Self> {
        check_size()?;
        let listener = Self { fd, wait_killable };
        // On a foreign descriptor the request is unknown.
        match listener.is_valid(NotificationId(u64::MAX)) {
            Ok(_) => Ok(listener),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the descriptor is not that of a seccomp listener",
            )),
        }
    }

    pub(super) fn new(fd: OwnedFd, wait_killable: bool) -> Self {
        Self { fd, wait_killable }
    }

    /// Whether a thread whose call was received waits until it is answered or killed. Otherwise any signal
    /// may end the call, of which `false` from [`is_valid`](Self::is_valid) tells.
    #[must_use]
    pub fn has_wait_killable(&self) -> bool {
        self.wait_killable
    }

    /// Makes the kernel run an answered thread on the processor of the answering one, which is faster if that
    /// thread then waits for the next call. Returns whether the kernel can (Linux 6.6).
    pub fn prefer_same_processor(&self) -> bool {
        // SAFETY: the request takes a number.
        unsafe { self.ioctl(libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP) }.is_ok()
    }

    /// Waits for a call or for `others`, such as an epoll set, for up to `timeout` (`None`: without a limit). A signal
    /// ends the wait with nothing that is ready.
    ///
    /// The kernel wakes a thread that waits here on the processor of the calling program, as
    /// [`prefer_same_processor`](Self::prefer_same_processor) says. One that waits by epoll it wakes on an idle processor,
    /// which takes longer.
    ///
    /// # Errors
    ///
    /// Those of `poll`.
    pub fn wait(&self, others: impl AsFd, timeout: Option<Duration>) -> io::Result<Ready> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut fds = [
            PollFd::new(&self.fd, PollFlags::IN),
            PollFd::new(&others, PollFlags::IN),
        ];
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(error.into()),
        }
        let calls = fds[0].revents();
        Ok(Ready {
            call: calls.contains(PollFlags::IN),
            hung_up: calls.intersects(PollFlags::HUP | PollFlags::ERR),
            others: !fds[1].revents().is_empty(),
        })
    }

    /// Takes the next call. Does not block: `None` if none waits, also if it has ended meanwhile, or no task is
    /// left.
    ///
    /// # Errors
    ///
    /// Those of `SECCOMP_IOCTL_NOTIF_RECV`.
    pub fn receive(&self) -> io::Result<Option<Notification>> {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        super::super::retry(|| rustix::event::poll(&mut fds, Some(&Timespec::default())))?;
        match fds[0].revents().contains(PollFlags::IN) {
            true => self.receive_ready(),
            false => Ok(None),
        }
    }

    /// As [`receive`](Self::receive), at once after [`wait`](Self::wait) has reported a call.
    ///
    /// # Errors
    ///
    /// Those of `SECCOMP_IOCTL_NOTIF_RECV`.
    pub fn receive_ready(&self) -> io::Result<Option<Notification>> {
        // The kernel requires zeros.
        let mut buffer = Buffer([MaybeUninit::new(0); 512]);
        let pointer = (&raw mut buffer).cast::<libc::seccomp_notif>();
        // SAFETY: the buffer is aligned and larger than what this kernel writes, as was checked when the
        // listener was made.
        match unsafe { self.ioctl_retry(libc::SECCOMP_IOCTL_NOTIF_RECV, pointer) } {
            Ok(_) => {}
            // The thread was killed or interrupted before.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            Err(error) => return Err(error),
        }
        // SAFETY: all bytes were initialized above, and each is valid in a structure of numbers.
        let notification = unsafe { &*pointer };
        Ok(Some(Notification {
            id: NotificationId(notification.id),
            thread: ThreadId::from_kernel(notification.pid),
            syscall: notification.data.nr.into(),
            is_native: bpf::is_native(notification.data.arch, notification.data.nr.into()),
            args: notification.data.args,
        }))
    }

    /// Whether a received call still waits, so that its thread is the one that made it, and memory read before
    /// was that thread's.
    ///
    /// # Errors
    ///
    /// Those of `SECCOMP_IOCTL_NOTIF_ID_VALID`, other than that it is gone.
    pub fn is_valid(&self, id: NotificationId) -> io::Result<bool> {
        let mut id = id.0;
        // SAFETY: the request reads a number of 64 bits at the pointer.
        let done = unsafe { self.ioctl_retry(libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw mut id) };
        unless_gone(done).map(|done| done.is_some())
    }

    /// Answers a call. Returns whether it was still there.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if an error number is not from 1 to 4095; `EINPROGRESS` if it was answered before; those of
    /// `SECCOMP_IOCTL_NOTIF_SEND`.
    pub fn respond(&self, id: NotificationId, response: Response) -> io::Result<bool> {
        let (mut value, mut error, mut flags) = (0, 0, 0);
        match response {
            Response::Return(number) => value = number,
            Response::Error(number @ 1..=4095) => error = -number,
            Response::Error(_) => return Err(io::ErrorKind::InvalidInput.into()),
            Response::Continue => flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
            Response::Restart => error = -ERESTARTSYS,
        }
        let mut answer = libc::seccomp_notif_resp {
            id: id.0,
            val: value,
            error,
            flags,
        };
        // SAFETY: the request reads a structure of this type at the pointer.
        let done = unsafe { self.ioctl_retry(libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) };
        unless_gone(done).map(|done| done.is_some())
    }

    /// Puts a duplicate of `fd` into the process of a waiting call, at its lowest free number, which is
    /// returned; `None` if the call is gone.
    ///
    /// Before Linux 5.14 installing and answering are two steps: a call that a signal interrupts in between
    /// leaves the descriptor in the process.
    ///
    /// # Errors
    ///
    /// `EMFILE` if the process has no free number, and then the call still waits for its answer; those of
    /// `SECCOMP_IOCTL_NOTIF_ADDFD`.
    pub fn add_fd(
        &self,
        id: NotificationId,
        fd: BorrowedFd<'_>,
        how: AddFd,
    ) -> io::Result<Option<RawFd>> {
        let respond = if how.respond {
            libc::SECCOMP_ADDFD_FLAG_SEND as u32
        } else {
            0
        };
        let new_flags = if how.close_on_exec {
            libc::O_CLOEXEC as u32
        } else {
            0
        };
        let mut request = libc::seccomp_notif_addfd {
            id: id.0,
            flags: respond,
            srcfd: u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)?,
            newfd: 0,
            newfd_flags: new_flags,
        };
        match self.install(&mut request) {
            // The kernel does not know the flag.
            Err(error) if how.respond && error.raw_os_error() == Some(libc::EINVAL) => {
                request.flags = 0;
                let Some(number) = unless_gone(self.install(&mut request))? else {
                    return Ok(None);
                };
                let answered = self.respond(id, Response::Return(number.into()))?;
                Ok(answered.then_some(number))
            }
            done => unless_gone(done),
        }
    }

    /// Puts a duplicate of `fd` into the process of a waiting call in place of its descriptor `number`. The call
    /// still waits for its answer. Returns whether it was still there.
    ///
    /// # Errors
    ///
    /// Those of `SECCOMP_IOCTL_NOTIF_ADDFD`.
    pub fn replace_fd(
        &self,
        id: NotificationId,
        fd: BorrowedFd<'_>,
        number: RawFd,
        close_on_exec: bool,
    ) -> io::Result<bool> {
        let new_flags = if close_on_exec {
            libc::O_CLOEXEC as u32
        } else {
            0
        };
        let mut request = libc::seccomp_notif_addfd {
            id: id.0,
            flags: libc::SECCOMP_ADDFD_FLAG_SETFD as u32,
            srcfd: u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)?,
            newfd: u32::try_from(number).map_err(io::Error::other)?,
            newfd_flags: new_flags,
        };
        unless_gone(self.install(&mut request)).map(|done| done.is_some())
    }

    /// Makes the request with all signals blocked. After an interrupted one with `SECCOMP_ADDFD_FLAG_SEND` the
    /// call has returned 0 without a descriptor; a repeated one might install two.
    fn install(&self, request: &mut libc::seccomp_notif_addfd) -> io::Result<i32> {
        let mask = signals::all_signals(libc::SIG_BLOCK, None);
        // SAFETY: the request reads a structure of this type at the pointer.
        let done = unsafe { self.ioctl(libc::SECCOMP_IOCTL_NOTIF_ADDFD, request) };
        signals::all_signals(libc::SIG_SETMASK, Some(&mask));
        done
    }

    /// Makes a request that can be repeated: the kernel looks for signals before it does anything.
    ///
    /// # Safety
    ///
    /// As [`Self::ioctl`].
    unsafe fn ioctl_retry<T>(&self, request: libc::Ioctl, argument: *mut T) -> io::Result<i32> {
        loop {
            // SAFETY: the caller's.
            match unsafe { self.ioctl(request, argument) } {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }

    /// # Safety
    ///
    /// The argument must be what the request expects.
    unsafe fn ioctl<T>(&self, request: libc::Ioctl, argument: T) -> io::Result<i32> {
        // SAFETY: the caller's; the descriptor is open.
        let done = unsafe { libc::ioctl(self.fd.as_raw_fd(), request, argument) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(done)
    }
}

/// Turns the errors that mean that the call has ended into `None`: `ENOENT`, and `ESRCH` if it ends while the
/// request is carried out.
fn unless_gone<T>(done: io::Result<T>) -> io::Result<Option<T>> {
    match done {
        Ok(value) => Ok(Some(value)),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => Ok(None),
            _ => Err(error),
        },
    }
}

/// Checks that the kernel's structures fit into those that are known here.
pub(super) fn check_size() -> io::Result<()> {
    let mut sizes = libc::seccomp_notif_sizes {
        seccomp_notif: 0,
        seccomp_notif_resp: 0,
        seccomp_data: 0,
    };
    // SAFETY: the operation writes a structure of this type at the pointer.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_NOTIF_SIZES,
            0,
            &raw mut sizes,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    let fits = usize::from(sizes.seccomp_notif) <= size_of::<Buffer>()
        && usize::from(sizes.seccomp_notif_resp) == size_of::<libc::seccomp_notif_resp>();
    if !fits {
        let message = "the kernel's seccomp notifications have an unknown size";
        return Err(io::Error::new(io::ErrorKind::Unsupported, message));
    }
    Ok(())
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Listener> for OwnedFd {
    fn from(listener: Listener) -> Self {
        listener.fd
    }
}
