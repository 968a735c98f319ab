//! Which descriptors of the program are sockets of this library.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
};

use hvsock_sys::sync::lock;
use rustix::fs::{FileType, fstat};

use super::calls::{Call, Slot};
use crate::abi::system::lend;

/// A socket of the kernel: the device of its file system, and its inode.
pub(crate) type Key = (u64, u64);

/// The sockets of this library by what the kernel calls them.
pub(crate) struct Table<T> {
    sockets: RwLock<Sockets<T>>,
    /// What is known of each number, in chunks that are made when they are needed.
    slots: Box<[OnceLock<Box<[Slot]>>]>,
    /// Held while a number is closed.
    closing: Mutex<()>,
}

struct Sockets<T> {
    by_key: HashMap<Key, (RawFd, Arc<T>)>,
    /// The number of sockets at which those are removed that the program has closed by `close`.
    sweep_at: usize,
}

/// The number of sockets at which a sweep is worth it.
const FIRST_SWEEP: usize = 64;

/// The numbers with a slot: as many as Linux lets a process have by default. Others are always special, and `closesocket`
/// ends no call with them.
const KNOWN_NUMBERS: usize = 1 << 20;

/// The numbers of one chunk.
const CHUNK: usize = 1 << 10;

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            sockets: RwLock::new(Sockets {
                by_key: HashMap::new(),
                sweep_at: FIRST_SWEEP,
            }),
            slots: (0..KNOWN_NUMBERS / CHUNK)
                .map(|_| OnceLock::new())
                .collect(),
            closing: Mutex::default(),
        }
    }
}

/// The socket that a descriptor is. `None` for one that is closed or no socket.
pub(crate) fn key(fd: BorrowedFd<'_>) -> Option<Key> {
    let status = fstat(fd).ok()?;
    let is_socket = FileType::from_raw_mode(status.st_mode) == FileType::Socket;
    is_socket.then_some((status.st_dev, status.st_ino))
}

fn key_of_number(number: RawFd) -> Option<Key> {
    lend(number, key).ok().flatten()
}

impl<T> Table<T> {
    fn read(&self) -> RwLockReadGuard<'_, Sockets<T>> {
        self.sockets.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Sockets<T>> {
        self.sockets.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The socket of this library that a number is, if it is one.
    pub(crate) fn find(&self, number: RawFd) -> Option<Arc<T>> {
        // Most programs with other sockets only pay for this.
        if self.read().by_key.is_empty() {
            return None;
        }
        let key = key_of_number(number)?;
        let sockets = self.read();
        let (_, socket) = sockets.by_key.get(&key)?;
        Some(Arc::clone(socket))
    }

    fn slot(&self, number: RawFd) -> Option<&Slot> {
        let number = usize::try_from(number).ok()?;
        let chunk = self.slots.get(number / CHUNK)?;
        let chunk = chunk.get_or_init(|| (0..CHUNK).map(|_| Slot::default()).collect());
        chunk.get(number % CHUNK)
    }

    /// The same, where only a socket that sends and receives by more than a system call is wanted.
    pub(crate) fn find_special(&self, number: RawFd) -> Option<Arc<T>> {
        match self.slot(number) {
            Some(slot) if slot.special.load(Ordering::Relaxed) == 0 => None,
            _ => self.find(number),
        }
    }

    /// Says whether sending to and receiving from a number takes more than a system call.
    pub(crate) fn set_special(&self, number: RawFd, special: bool) {
        if let Some(slot) = self.slot(number) {
            slot.special.store(special.into(), Ordering::Relaxed);
        }
    }

    /// A call that may block begins.
    pub(crate) fn begin_call(&self, number: RawFd) -> Option<Call<'_>> {
        let slot = self.slot(number)?;
        loop {
            if let Some(call) = slot.begin() {
                return Some(call);
            }
            // The number is closed, or another file's, when the close is over.
            drop(lock(&self.closing));
        }
    }

    /// Removes a descriptor and closes it. `wake` ends calls of other threads, which are there. Returns the socket, too.
    pub(crate) fn close<R>(
        &self,
        number: RawFd,
        wake: impl FnOnce(),
        close: impl FnOnce() -> R,
    ) -> (Option<Arc<T>>, R) {
        if self.read().by_key.is_empty() {
            return (None, close());
        }
        let _closing = lock(&self.closing);
        let Some(socket) = self.remove(number) else {
            return (None, close());
        };
        let result = match self.slot(number) {
            Some(slot) => slot.close(wake, close),
            None => close(),
        };
        (Some(socket), result)
    }

    /// Adds a descriptor. Returns sockets that the program has closed by `close`.
    pub(crate) fn insert(&self, number: RawFd, socket: Arc<T>) -> Vec<Arc<T>> {
        let mut stale = Vec::new();
        let is_due = {
            let sockets = self.read();
            sockets.by_key.len() >= sockets.sweep_at
        };
        if is_due {
            stale = self.sweep();
            let mut sockets = self.write();
            sockets.sweep_at = FIRST_SWEEP.max(sockets.by_key.len() * 2);
        }
        if let Some(key) = key_of_number(number) {
            let replaced = self.write().by_key.insert(key, (number, socket));
            stale.extend(replaced.map(|(_, socket)| socket));
        }
        stale
    }

    /// Moves a socket to what its number is now, after a `dup3` there.
    pub(crate) fn rekey(&self, old: Option<Key>, number: RawFd, socket: &Arc<T>) {
        let new = key_of_number(number);
        let mut sockets = self.write();
        if let Some(old) = old {
            sockets.by_key.remove(&old);
        }
        if let Some(new) = new {
            sockets.by_key.insert(new, (number, Arc::clone(socket)));
        }
    }

    /// Removes a descriptor, and returns its socket.
    fn remove(&self, number: RawFd) -> Option<Arc<T>> {
        let key = key_of_number(number)?;
        let (_, socket) = self.write().by_key.remove(&key)?;
        Some(socket)
    }

    /// Removes the sockets that the program has closed by `close`, and returns them.
    pub(crate) fn sweep(&self) -> Vec<Arc<T>> {
        let all: Vec<(Key, RawFd)> = {
            let sockets = self.read();
            let numbers = sockets.by_key.iter();
            numbers.map(|(key, (number, _))| (*key, *number)).collect()
        };
        let is_stale = |(key, number): &(Key, RawFd)| key_of_number(*number) != Some(*key);
        let stale: Vec<_> = all.into_iter().filter(is_stale).collect();
        let mut sockets = self.write();
        let removed = stale
            .iter()
            .filter_map(|(key, _)| sockets.by_key.remove(key));
        removed.map(|(_, socket)| socket).collect()
    }
}

/// The locks of the table.
type Held<T> = (
    MutexGuard<'static, ()>,
    RwLockWriteGuard<'static, Sockets<T>>,
);

impl<T: 'static> Table<T> {
    /// Holds the locks of the table until the result is dropped.
    pub(super) fn hold(&'static self) -> Box<dyn std::any::Any> {
        let held: Held<T> = (lock(&self.closing), self.write());
        Box::new(held)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, IntoRawFd};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_number_that_is_another_file_by_now_is_not_found_and_is_swept() {
        let table = Table::default();
        let (a, b) = UnixStream::pair().unwrap();
        let number = a.as_raw_fd();
        assert!(table.insert(number, Arc::new(1)).is_empty());
        assert!(table.insert(b.as_raw_fd(), Arc::new(2)).is_empty());
        assert_eq!(table.find(number).as_deref(), Some(&1));
        // A duplicate is the same socket.
        let again = a.try_clone().unwrap();
        assert_eq!(table.find(again.as_raw_fd()).as_deref(), Some(&1));
        drop((a, again));
        assert_eq!(table.find(number), None);
        let swept = table.sweep();
        assert_eq!(swept.iter().map(|it| **it).collect::<Vec<_>>(), [1]);
        let (removed, ()) = table.close(b.as_raw_fd(), || panic!("no call"), || ());
        assert_eq!(removed.as_deref(), Some(&2));
        assert_eq!(table.find(b.as_raw_fd()), None);
        assert_eq!(table.find(-1), None);
    }

    #[test]
    fn sockets_that_are_never_closed_by_closesocket_do_not_pile_up() {
        let table = Table::default();
        for at in 0..1000 {
            let (a, _b) = UnixStream::pair().unwrap();
            table.insert(a.as_raw_fd(), Arc::new(at));
        }
        assert!(table.read().by_key.len() <= FIRST_SWEEP);
    }

    #[test]
    fn only_a_special_number_is_looked_up_for_data() {
        let table = Table::default();
        let number = UnixStream::pair().unwrap().0.into_raw_fd();
        table.insert(number, Arc::new(()));
        assert!(table.find_special(number).is_none());
        table.set_special(number, true);
        assert!(table.find_special(number).is_some());
        let (removed, ()) = table.close(number, || (), || ());
        assert!(removed.is_some() && table.find_special(number).is_none());
    }

    #[test]
    fn a_close_wakes_the_calls_of_other_threads_and_only_if_there_are_any() {
        let table = Table::default();
        let (a, _b) = UnixStream::pair().unwrap();
        let number = a.as_raw_fd();
        table.insert(number, Arc::new(()));
        drop(table.begin_call(number).unwrap());
        let call = table.begin_call(number).unwrap();
        let mut woken = false;
        table.close(number, || woken = true, || ());
        assert!(woken && call.was_closed());
        drop(call);
        // A number may be used again, and other files have no calls that are woken.
        assert!(!table.begin_call(number).unwrap().was_closed());
        table.close(number, || panic!("no socket"), || ());
    }
}
