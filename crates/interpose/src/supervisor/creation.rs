//! `socket`, and the device `/dev/vsock`.

use std::fs::OpenOptions;
use std::os::fd::{AsFd as _, OwnedFd};

use hvsock_sys::foreign_socket::{self, Place};
use hvsock_sys::seccomp::Notification;

use super::core::Core;
use super::program::Added;
use super::table::Entry;
use crate::model::{Creation, DescriptorFlags, Errno, Family, Socket, create};

/// The path of the device.
const DEVICE: &[u8] = b"/dev/vsock\0";

impl Core {
    /// Answers `socket`.
    pub(crate) fn socket(&mut self, call: &Notification) {
        let [domain, kind, protocol, ..] = call.args.map(|arg| arg as i32);
        match create(domain, kind, protocol) {
            Creation::Native => self.program.native(call),
            Creation::Error(errno) => self.program.answer(call, Err(errno)),
            Creation::Socket(family, flags) => {
                if let Err(errno) = self.create_socket(call, family, flags) {
                    self.program.answer(call, Err(errno));
                }
            }
        }
    }

    fn create_socket(
        &mut self,
        call: &Notification,
        family: Family,
        flags: DescriptorFlags,
    ) -> Result<(), Errno> {
        // One without a number here is of a process outside of this one's PID namespace.
        if call.thread.number() == 0 || !self.program.is_accessible(call) {
            self.report_no_access(call);
            return Err(Errno::EACCES);
        }
        self.check_space()?;
        let socket = foreign_socket::create(flags.nonblocking);
        let socket = socket.map_err(|error| Errno::of(&error))?;
        let Place { device, inode } =
            foreign_socket::place(&socket).map_err(|error| Errno::of(&error))?;
        self.device = Some(device);
        if self.program.add(call, socket.as_fd(), flags.close_on_exec) == Added::Installed {
            self.insert(inode, Entry::new(Socket::new(family), true))?;
        }
        Ok(())
    }

    /// Answers `open` and `openat`: the device is opened although it does not exist. All else is the kernel's,
    /// which reads the path itself.
    pub(crate) fn open_file(&mut self, call: &Notification, path: u64, flags: u64) {
        let is_device = self
            .program
            .read(call, path, DEVICE.len())
            .is_ok_and(|path| path == DEVICE);
        if !is_device {
            return self.program.native(call);
        }
        // What the device cannot do but answer the ioctl, this one does not do either.
        match OpenOptions::new().read(true).write(true).open("/dev/null") {
            Ok(device) => {
                let close_on_exec = flags & libc::O_CLOEXEC as u64 != 0;
                self.program.add(call, device.as_fd(), close_on_exec);
            }
            Err(error) => self.program.answer(call, Err(Errno::of(&error))),
        }
    }

    /// Answers the ioctl for the own context id, of the device or of what stands for it.
    pub(crate) fn local_cid(&mut self, call: &Notification) {
        let target = self.program.target(call, call.args[0] as i32);
        let is_device = match &target {
            Ok(target) => {
                matches!(target.as_str(), "/dev/vsock" | "/dev/null")
                    || self.socket_of(call).is_some()
            }
            Err(_) => false,
        };
        if !is_device {
            return self.program.native(call);
        }
        let bytes = self.own.0.to_ne_bytes();
        let written = self.program.write(call, call.args[2], &bytes);
        self.program.answer(call, written.map(|()| 0));
    }

    /// The emulated socket that is the first argument of a call, with a duplicate of its descriptor if there may be one.
    pub(crate) fn duplicate_of(&self, call: &Notification) -> Option<(u64, Option<OwnedFd>)> {
        let Ok(data) = self.program.duplicate_any(call, call.args[0] as i32) else {
            return self.socket_of(call).map(|inode| (inode, None));
        };
        let Place { device, inode } = foreign_socket::place(&data).ok()?;
        let is_emulated = self.device == Some(device) && self.sockets.contains_key(&inode);
        is_emulated.then_some((inode, Some(data)))
    }

    /// The inode of the emulated socket that is the first argument of a call.
    pub(crate) fn socket_of(&self, call: &Notification) -> Option<u64> {
        let inode = self.program.socket_inode(call, call.args[0] as i32)?;
        self.sockets.contains_key(&inode).then_some(inode)
    }
}
