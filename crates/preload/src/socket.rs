//! One emulated socket in one call.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hvsock_interpose::model::{self, DescriptorFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::abi::descriptor;
use crate::record::Record;
use crate::state;
use crate::table::Table;

/// An emulated socket, and its record when the call began.
pub struct Socket<'a> {
    /// The program's descriptor.
    pub fd: BorrowedFd<'a>,
    /// Its record when the call began.
    pub record: Record,
    cookie: u64,
    table: Table,
}

impl<'a> Socket<'a> {
    /// The emulated socket behind a descriptor, if it is one.
    pub fn find(table: Table, fd: BorrowedFd<'a>) -> Option<Self> {
        let cookie = cookie(fd)?;
        let record = table.find(cookie)?;
        Some(Self {
            fd,
            record,
            cookie,
            table,
        })
    }

    /// Changes the record in one step, unless another thread or process made the socket another one
    /// meanwhile, which is `EBADF`.
    pub fn update<T>(&self, change: impl FnOnce(&mut Record) -> T) -> Result<T, Errno> {
        self.table.update(self.cookie, change).ok_or(Errno::BADF)
    }

    /// The table that it is in.
    pub fn table(&self) -> Table {
        self.table
    }
}

/// The cookie of a socket: a number that no other socket has, or will have. `None` if it is no socket.
pub fn cookie(fd: impl AsFd) -> Option<u64> {
    sockopt::socket_cookie(fd).ok()
}

/// An error of the model as one of a call.
pub fn errno(error: model::Errno) -> Errno {
    Errno::from_raw_os_error(error.number())
}

/// An unconnected socket, as programs get it.
pub fn unix_socket(flags: DescriptorFlags) -> Result<OwnedFd, Errno> {
    let mut made = SocketFlags::empty();
    made.set(SocketFlags::NONBLOCK, flags.nonblocking);
    made.set(SocketFlags::CLOEXEC, flags.close_on_exec);
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, made, None)
}

/// Notes a new descriptor of an emulated socket.
pub fn note(fd: impl AsFd) {
    state::note(descriptor::number(fd));
}
