//! Turns that the processes of a machine take: a mutex by name, which the system gives on when its
//! owner crashes.

use std::io;
use std::marker::PhantomData;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::ptr::null;
use std::time::Duration;

use windows_sys::Win32::Foundation::{WAIT_ABANDONED, WAIT_OBJECT_0, WAIT_TIMEOUT};
use windows_sys::Win32::System::Threading::{
    CreateMutexExW, INFINITE, ReleaseMutex, SYNCHRONIZATION_SYNCHRONIZE, WaitForSingleObject,
};

/// A turn, which ends when it is dropped. It belongs to the thread that took it.
#[derive(Debug)]
pub struct Turn {
    mutex: OwnedHandle,
    of_this_thread: PhantomData<*const ()>,
}

/// Takes a turn that is known by this name on the whole machine; none if others had it all the
/// while.
///
/// The thread that has a turn may take it again. A name is nobody's property: any process of the
/// machine may make a mutex of that name first, and so be denied to others or keep it.
pub fn take(name: &str, limit: Duration) -> io::Result<Option<Turn>> {
    let name: Vec<u16> = format!(r"Global\{name}")
        .encode_utf16()
        .chain([0])
        .collect();
    // SAFETY: the name ends in a zero and outlives the call; no attributes are the usual ones.
    // No more than to wait is asked for, so that it does not matter which administrator made it.
    let mutex = unsafe { CreateMutexExW(null(), name.as_ptr(), 0, SYNCHRONIZATION_SYNCHRONIZE) };
    if mutex.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: CreateMutexExW has just given this handle, and nobody else has it.
    let mutex = unsafe { OwnedHandle::from_raw_handle(mutex) };
    let limit = u32::try_from(limit.as_millis()).unwrap_or(INFINITE - 1);
    // SAFETY: the handle is open; no pointers are passed.
    match unsafe { WaitForSingleObject(mutex.as_raw_handle(), limit) } {
        // Abandoned: the one who had it has ended without giving it back.
        WAIT_OBJECT_0 | WAIT_ABANDONED => Ok(Some(Turn {
            mutex,
            of_this_thread: PhantomData,
        })),
        WAIT_TIMEOUT => Ok(None),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and this thread has the mutex: a Turn is not Send.
        unsafe { ReleaseMutex(self.mutex.as_raw_handle()) };
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_turn_is_one_threads_at_a_time_and_outlives_no_thread() {
        let name = format!("hvsock-test-turn-{}", std::process::id());
        let short = Duration::from_millis(20);
        let other = |name: &str| {
            let name = name.to_owned();
            thread::spawn(move || take(&name, short).unwrap().is_some())
                .join()
                .unwrap()
        };
        let mine = take(&name, short).unwrap().unwrap();
        assert!(!other(&name));
        drop(mine);
        assert!(other(&name));

        let leaving = name.clone();
        thread::spawn(move || std::mem::forget(take(&leaving, short).unwrap().unwrap()))
            .join()
            .unwrap();
        assert!(other(&name));
    }
}
