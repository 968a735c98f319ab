//! What this process keeps between calls: the table of sockets, and which descriptors may be emulated ones.

use std::ffi::c_int;
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use hvsock_interpose::preload::TABLE_VARIABLE;
use rustix::fs::{Mode, OFlags};

use crate::abi::memory;
use crate::endpoint;
use crate::table::{self, Table};

static TABLE: OnceLock<Option<Table>> = OnceLock::new();

/// The descriptors from 0 on that may be emulated sockets. `close` of others, which may be any file, costs nothing.
static HINTS: [AtomicU64; HINT_WORDS] = [const { AtomicU64::new(0) }; HINT_WORDS];
const HINT_WORDS: usize = 1024;

/// Maps the table and reads the environment. Called before the program's own code.
pub fn prepare() {
    endpoint::prepare();
    TABLE.get_or_init(|| named().or_else(own));
}

/// The table. `None` before [`prepare`], and if there is no memory for it.
pub fn table() -> Option<Table> {
    TABLE.get().copied().flatten()
}

/// The table in the file that the environment names. `None` if this process may not have it, or it is another file.
fn named() -> Option<Table> {
    let path = std::env::var_os(TABLE_VARIABLE)?;
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    // Memory that cannot shrink: an access raises no SIGBUS.
    let seals = rustix::fs::fcntl_get_seals(&file).ok()?;
    let len = rustix::fs::fstat(&file).ok()?.st_size;
    let is_table =
        seals.contains(rustix::fs::SealFlags::SHRINK) && len == i64::try_from(table::LEN).ok()?;
    is_table
        .then(|| memory::share(Some(file.as_fd()), table::LEN).ok())
        .flatten()
        .and_then(Table::new)
}

/// A table for this process and those that it forks.
fn own() -> Option<Table> {
    memory::share(None, table::LEN).ok().and_then(Table::new)
}

/// Notes that a descriptor is an emulated socket.
pub fn note(fd: c_int) {
    if let Some((word, bit)) = hint(fd) {
        word.fetch_or(bit, Ordering::Relaxed);
    }
}

/// Notes that a descriptor is closed.
pub fn forget(fd: c_int) {
    if let Some((word, bit)) = hint(fd) {
        word.fetch_and(!bit, Ordering::Relaxed);
    }
}

/// Whether a descriptor may be an emulated socket. One that the program duplicated may be one without this.
pub fn may_be_emulated(fd: c_int) -> bool {
    hint(fd).is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
}

fn hint(fd: c_int) -> Option<(&'static AtomicU64, u64)> {
    let fd = usize::try_from(fd).ok()?;
    Some((HINTS.get(fd / 64)?, 1 << (fd % 64)))
}
