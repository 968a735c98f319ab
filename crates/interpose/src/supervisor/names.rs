//! `getsockname`, `getpeername`, `getsockopt`, `setsockopt` and `shutdown`.

use std::os::fd::AsFd as _;

use hvsock_sys::seccomp::Notification;

use super::core::Core;
use super::listens::connected_suspend;
use crate::model::{Address, Errno, OptionAnswer};

/// The longest value of an option that is read.
const MAX_OPTION: usize = 128;

impl Core {
    /// Answers `getsockname`.
    pub(crate) fn name(&mut self, call: &Notification, inode: u64) {
        let name = self.sockets.get(&inode).map(|entry| entry.socket.name());
        let done = name.unwrap_or(Err(Errno::EBADF));
        let done = done.and_then(|address| self.write_address(call, address));
        self.program.answer(call, done.map(|()| 0));
    }

    /// Answers `getpeername`.
    pub(crate) fn peer_name(&mut self, call: &Notification, inode: u64) {
        let peer = self.sockets.get(&inode).map(|entry| entry.socket.peer());
        let done = peer.unwrap_or(Err(Errno::EBADF));
        let done = done.and_then(|address| self.write_address(call, address));
        self.program.answer(call, done.map(|()| 0));
    }

    /// Writes an address where the second and third arguments of a call say.
    pub(crate) fn write_address(&self, call: &Notification, address: Address) -> Result<(), Errno> {
        let memory = self.program.memory(call)?;
        let space = memory.read_int(call.args[2])?;
        let space = usize::try_from(space).map_err(|_| Errno::EINVAL)?;
        let (bytes, len) = address.truncated(space);
        memory.write(call.args[1], &bytes)?;
        let len = i32::try_from(len).map_err(|_| Errno::EINVAL)?;
        memory.write(call.args[2], &len.to_ne_bytes())
    }

    /// Answers `getsockopt`.
    pub(crate) fn option(&mut self, call: &Notification, inode: u64) {
        match self.read_option(call, inode) {
            Ok(Some(done)) => {
                let written = self.write_option(call, &done);
                self.program.answer(call, written.map(|()| 0));
            }
            Ok(None) => self.program.native(call),
            Err(errno) => self.program.answer(call, Err(errno)),
        }
    }

    /// The value of an option; `None` if the kernel answers.
    fn read_option(&mut self, call: &Notification, inode: u64) -> Result<Option<Vec<u8>>, Errno> {
        let (level, name) = (call.args[1] as i32, call.args[2] as i32);
        let space = self.program.read_int(call, call.args[4])?;
        let space = usize::try_from(space).map_err(|_| Errno::EINVAL)?;
        let entry = self.sockets.get_mut(&inode).ok_or(Errno::EBADF)?;
        match entry.socket.option(level, name, space) {
            OptionAnswer::Native => Ok(None),
            OptionAnswer::Error(errno) => Err(errno),
            OptionAnswer::Value(value) => {
                if (level, name) == (libc::SOL_SOCKET, libc::SO_ERROR) {
                    self.take_native_error(call, inode);
                }
                Ok(Some(value))
            }
        }
    }

    /// Clears the error of the Unix socket, in place of which the emulated socket's is returned.
    fn take_native_error(&self, call: &Notification, inode: u64) {
        if let Ok(socket) = self.program.duplicate(call, inode) {
            let _ = hvsock_sys::take_error(socket.as_fd());
        }
    }

    fn write_option(&self, call: &Notification, value: &[u8]) -> Result<(), Errno> {
        let memory = self.program.memory(call)?;
        memory.write(call.args[3], value)?;
        let len = i32::try_from(value.len()).map_err(|_| Errno::EINVAL)?;
        memory.write(call.args[4], &len.to_ne_bytes())
    }

    /// Answers `shutdown`, which the kernel does on a connection.
    pub(crate) fn shutdown(&self, call: &Notification, inode: u64) {
        let how = call.args[1] as i32;
        let entry = self.sockets.get(&inode).ok_or(Errno::EBADF);
        match entry.and_then(|entry| entry.socket.shutdown(how)) {
            Ok(()) => self.program.native(call),
            Err(errno) => self.program.answer(call, Err(errno)),
        }
    }

    /// Answers `setsockopt`.
    pub(crate) fn set_option(&mut self, call: &Notification, inode: u64) {
        let answer = self.write_to_option(call, inode);
        match answer {
            Ok(OptionAnswer::Native) => self.program.native(call),
            Ok(OptionAnswer::Value(_)) => self.program.answer(call, Ok(0)),
            Ok(OptionAnswer::Error(errno)) | Err(errno) => self.program.answer(call, Err(errno)),
        }
    }

    fn write_to_option(&mut self, call: &Notification, inode: u64) -> Result<OptionAnswer, Errno> {
        let (level, name) = (call.args[1] as i32, call.args[2] as i32);
        let len = usize::try_from(call.args[4] as i32).map_err(|_| Errno::EINVAL)?;
        let value = self.program.read(call, call.args[3], len.min(MAX_OPTION))?;
        let entry = self.sockets.get_mut(&inode).ok_or(Errno::EBADF)?;
        let before = entry.socket.options().connected_suspend;
        let answer = entry.socket.set_option(level, name, &value);
        let now = entry.socket.options().connected_suspend;
        if let Some(listening) = entry.listening.as_ref().filter(|_| now != before) {
            listening.connection.send(&connected_suspend(now));
        }
        Ok(answer)
    }
}
