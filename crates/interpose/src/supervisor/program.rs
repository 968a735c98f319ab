//! The supervised program as the supervisor sees it: its calls, memory and descriptors.

use std::cell::RefCell;
use std::fs;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use hvsock_sys::foreign_socket;
use hvsock_sys::remote::{self, Credentials, CredentialsFile, ThreadId};
use hvsock_sys::seccomp::{AddFd, Listener, Notification, Ready, Response};

use crate::model::Errno;

/// What is read of a file in `/proc/PID/fdinfo`.
const MAX_INFO: u64 = 512;

/// The programs under one filter.
#[derive(Debug)]
pub(crate) struct Program {
    listener: Listener,
    /// The thread of a late call, since the next one is often the same.
    known: RefCell<Option<KnownThread>>,
}

/// A thread that has called. Both are that thread for good: once it has ended they fail with `ESRCH`, also if
/// another one has got its number.
#[derive(Debug)]
struct KnownThread {
    number: ThreadId,
    descriptor: OwnedFd,
    credentials: Option<CredentialsFile>,
}

/// The memory of the program that made a call.
#[derive(Debug)]
pub(crate) struct Memory(remote::Memory);

/// What a new descriptor in the program is for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Added {
    /// The call has returned its number.
    Installed,
    /// The call is gone: the thread was killed or interrupted.
    Gone,
    /// The call has failed.
    Failed,
}

impl Program {
    pub(crate) fn new(listener: Listener) -> Self {
        listener.prefer_same_processor();
        Self {
            listener,
            known: RefCell::new(None),
        }
    }

    /// Waits for a call, or for another event.
    pub(crate) fn wait(&self, others: impl AsFd, timeout: Option<Duration>) -> io::Result<Ready> {
        self.listener.wait(others, timeout)
    }

    /// Takes the call that [`wait`](Self::wait) has found; `None` if it has ended.
    pub(crate) fn receive_ready(&self) -> io::Result<Option<Notification>> {
        self.listener.receive_ready()
    }

    /// Whether threads whose call was received wait until it is answered or killed.
    pub(crate) fn waits_killable(&self) -> bool {
        self.listener.has_wait_killable()
    }

    /// Answers a call. One that is gone needs no answer.
    pub(crate) fn answer(&self, call: &Notification, result: Result<i64, Errno>) {
        self.try_answer(call, result);
    }

    /// Answers a call. Returns whether it was there to get the answer.
    pub(crate) fn try_answer(&self, call: &Notification, result: Result<i64, Errno>) -> bool {
        let response = match result {
            Ok(number) => Response::Return(number),
            Err(errno) => Response::Error(errno.number()),
        };
        self.listener.respond(call.id, response).unwrap_or(false)
    }

    /// Lets the kernel execute a call.
    pub(crate) fn native(&self, call: &Notification) {
        let _ = self.listener.respond(call.id, Response::Continue);
    }

    /// A signal interrupts the call, which starts again if the signal's handler wants.
    pub(crate) fn restart(&self, call: &Notification) {
        let _ = self.listener.respond(call.id, Response::Restart);
    }

    /// Whether the call still waits.
    pub(crate) fn is_valid(&self, call: &Notification) -> bool {
        self.listener.is_valid(call.id).unwrap_or(false)
    }

    /// Answers a call with a new descriptor of the program.
    pub(crate) fn add(
        &self,
        call: &Notification,
        descriptor: BorrowedFd<'_>,
        close_on_exec: bool,
    ) -> Added {
        let how = AddFd {
            close_on_exec,
            respond: true,
        };
        match self.listener.add_fd(call.id, descriptor, how) {
            Ok(Some(_)) => Added::Installed,
            Ok(None) => Added::Gone,
            Err(error) => {
                self.answer(call, Err(Errno::of(&error)));
                Added::Failed
            }
        }
    }

    /// Puts a descriptor in place of another one of the program, which keeps its number and close-on-exec.
    pub(crate) fn replace(
        &self,
        call: &Notification,
        number: i32,
        descriptor: BorrowedFd<'_>,
    ) -> Result<(), Errno> {
        let path = format!("/proc/{}/fdinfo/{number}", call.thread.number());
        let mut info = String::new();
        // The flags come first. What follows may be without end: another thread can have put any file there.
        let read =
            fs::File::open(path).and_then(|file| file.take(MAX_INFO).read_to_string(&mut info));
        read.map_err(|error| Errno::of(&error))?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
        let close_on_exec = flags.is_some_and(|flags| flags & libc::O_CLOEXEC != 0);
        let replaced = self
            .listener
            .replace_fd(call.id, descriptor, number, close_on_exec);
        match replaced {
            Ok(true) => Ok(()),
            Ok(false) => Err(Errno::EBADF),
            Err(error) => Err(Errno::of(&error)),
        }
    }

    /// Reads the program's memory. Nothing may be read twice for one decision.
    pub(crate) fn read(
        &self,
        call: &Notification,
        address: u64,
        len: usize,
    ) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; len];
        if len > 0 {
            let read = remote::read_memory(call.thread, address, &mut bytes);
            read.map_err(|error| Errno::of(&error))?;
        }
        // Another thread may have got the number of one that has ended.
        match self.is_valid(call) {
            true => Ok(bytes),
            false => Err(Errno::EFAULT),
        }
    }

    /// Reads a number.
    pub(crate) fn read_int(&self, call: &Notification, address: u64) -> Result<i32, Errno> {
        let bytes = self.read(call, address, 4)?;
        let bytes = bytes.try_into().map_err(|_| Errno::EFAULT)?;
        Ok(i32::from_ne_bytes(bytes))
    }

    /// The program's memory, for what a call returns there.
    ///
    /// It is opened before the call is seen to wait, so it is that of the call, whoever has the number of the thread later.
    /// A write by the number could reach another program.
    pub(crate) fn memory(&self, call: &Notification) -> Result<Memory, Errno> {
        let memory = remote::Memory::open(call.thread).map_err(|error| Errno::of(&error))?;
        match self.is_valid(call) {
            true => Ok(Memory(memory)),
            false => Err(Errno::EFAULT),
        }
    }

    /// Writes the program's memory.
    pub(crate) fn write(
        &self,
        call: &Notification,
        address: u64,
        bytes: &[u8],
    ) -> Result<(), Errno> {
        match bytes.is_empty() {
            true => Ok(()),
            false => self.memory(call)?.write(address, bytes),
        }
    }

    /// The inode of a socket of the program; `None` if the descriptor is none or cannot be looked at.
    pub(crate) fn socket_inode(&self, call: &Notification, fd: i32) -> Option<u64> {
        let target = self.target(call, fd).ok()?;
        let number = target.strip_prefix("socket:[")?.strip_suffix(']')?;
        number.parse().ok()
    }

    /// What a descriptor of the program is, as `/proc` shows it.
    pub(crate) fn target(&self, call: &Notification, fd: i32) -> io::Result<String> {
        let link = format!("/proc/{}/fd/{fd}", call.thread.number());
        let target = fs::read_link(link)?;
        Ok(target.to_string_lossy().into_owned())
    }

    /// Whether the supervisor may look at the process of a call. Not if it is not dumpable, and this process
    /// is not root.
    pub(crate) fn is_accessible(&self, call: &Notification) -> bool {
        // The right to look at the process is checked before the number, which no descriptor has.
        if self.duplicate_any(call, -1).err() == Some(Errno::EBADF) {
            return true;
        }
        let link = format!("/proc/{}/exe", call.thread.number());
        let error = fs::read_link(link).err().map(|error| error.kind());
        error != Some(io::ErrorKind::PermissionDenied)
    }

    /// A duplicate of the program's descriptor of a socket, which is the first argument of a call.
    ///
    /// # Errors
    ///
    /// `EBADF` if it is not the socket with this inode: another thread can have put any file there since the socket was
    /// looked up, and must not have it connected, or waited for.
    pub(crate) fn duplicate(&self, call: &Notification, inode: u64) -> Result<OwnedFd, Errno> {
        let socket = self.duplicate_any(call, call.args[0] as i32)?;
        match foreign_socket::inode(&socket) {
            Ok(found) if found == inode => Ok(socket),
            _ => Err(Errno::EBADF),
        }
    }

    /// A duplicate of a descriptor of the program, whatever it is.
    pub(crate) fn duplicate_any(&self, call: &Notification, fd: i32) -> Result<OwnedFd, Errno> {
        let done = self.with_thread(call, |thread| {
            remote::duplicate_fd(thread.descriptor.as_fd(), fd)
        });
        done.map_err(|error| Errno::of(&error))
    }

    /// The rights of the thread of a call.
    pub(crate) fn credentials(&self, call: &Notification) -> Result<Credentials, Errno> {
        let done = self.with_thread(call, |thread| match &thread.credentials {
            Some(file) => file.read(),
            None => {
                let file = CredentialsFile::open(call.thread)?;
                let credentials = file.read()?;
                // As in `with_thread`.
                if !self.is_valid(call) {
                    return Err(io::Error::from_raw_os_error(libc::EBADF));
                }
                thread.credentials = Some(file);
                Ok(credentials)
            }
        });
        done.map_err(|error| Errno::of(&error))
    }

    /// Looks at the thread of a call.
    fn with_thread<T>(
        &self,
        call: &Notification,
        mut look: impl FnMut(&mut KnownThread) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut known = self.known.borrow_mut();
        if let Some(thread) = known.as_mut().filter(|it| it.number == call.thread) {
            match look(thread) {
                // Another one has its number now.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                done => return done,
            }
        }
        let one = remote::open_one_thread(call.thread)?;
        let is_one = one.is_some();
        let descriptor = match one {
            Some(one) => one,
            None => remote::open_thread(call.thread)?,
        };
        // The thread is that of the call if the call still waits now.
        if !self.is_valid(call) {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        let mut thread = KnownThread {
            number: call.thread,
            descriptor,
            credentials: None,
        };
        let done = look(&mut thread);
        *known = is_one.then_some(thread);
        done
    }
}

impl Memory {
    /// Reads a number.
    pub(crate) fn read_int(&self, address: u64) -> Result<i32, Errno> {
        let mut bytes = [0; 4];
        let read = self.0.read(address, &mut bytes);
        read.map_err(|error| Errno::of(&error))?;
        Ok(i32::from_ne_bytes(bytes))
    }

    /// Writes bytes.
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        if bytes.is_empty() {
            return Ok(());
        }
        let written = self.0.write(address, bytes);
        written.map_err(|error| Errno::of(&error))
    }
}
