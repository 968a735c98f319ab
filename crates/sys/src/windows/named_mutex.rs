//! Named mutexes between the processes of a machine. The system releases a mutex whose owner crashes.

use std::io;
use std::marker::PhantomData;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::ptr::null;
use std::time::Duration;

use windows_sys::Win32::Foundation::{WAIT_ABANDONED, WAIT_OBJECT_0, WAIT_TIMEOUT};
use windows_sys::Win32::System::Threading::{
    CreateMutexExW, INFINITE, ReleaseMutex, SYNCHRONIZATION_SYNCHRONIZE, WaitForSingleObject,
};

/// A locked mutex, released on drop. Owned by the thread that locked it, so it is not `Send`.
#[derive(Debug)]
pub struct NamedMutexGuard {
    mutex: OwnedHandle,
    of_this_thread: PhantomData<*const ()>,
}

/// Locks the machine-wide mutex `Global\name`. `None` if it stays locked for `limit`.
///
/// Recursive: the owning thread may lock it again. Names are not protected: any process may create a mutex
/// of the name first and deny others access, or keep it locked.
///
/// # Errors
///
/// Those of `CreateMutexExW` and `WaitForSingleObject`.
#[doc(alias = "mutex")]
pub fn lock(name: &str, limit: Duration) -> io::Result<Option<NamedMutexGuard>> {
    let name: Vec<u16> = format!(r"Global\{name}")
        .encode_utf16()
        .chain([0])
        .collect();
    // SAFETY: the name is NUL-terminated and outlives the call; null attributes are the default.
    // Only SYNCHRONIZE is requested, so it does not matter which administrator created it.
    let mutex = unsafe { CreateMutexExW(null(), name.as_ptr(), 0, SYNCHRONIZATION_SYNCHRONIZE) };
    if mutex.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: CreateMutexExW has just returned this handle, and nothing else owns it.
    let mutex = unsafe { OwnedHandle::from_raw_handle(mutex) };
    let limit = u32::try_from(limit.as_millis()).unwrap_or(INFINITE - 1);
    // SAFETY: the handle is open; no pointers are passed.
    match unsafe { WaitForSingleObject(mutex.as_raw_handle(), limit) } {
        // Abandoned: the owning thread ended without releasing it.
        WAIT_OBJECT_0 | WAIT_ABANDONED => Ok(Some(NamedMutexGuard {
            mutex,
            of_this_thread: PhantomData,
        })),
        WAIT_TIMEOUT => Ok(None),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Drop for NamedMutexGuard {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and this thread owns the mutex: a NamedMutexGuard is not Send.
        unsafe { ReleaseMutex(self.mutex.as_raw_handle()) };
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn one_thread_owns_the_mutex_and_its_end_releases_it() {
        let name = format!("hvsock-test-mutex-{}", std::process::id());
        let short = Duration::from_millis(20);
        let other = |name: &str| {
            let name = name.to_owned();
            thread::spawn(move || lock(&name, short).unwrap().is_some())
                .join()
                .unwrap()
        };
        let mine = lock(&name, short).unwrap().unwrap();
        assert!(!other(&name));
        drop(mine);
        assert!(other(&name));

        let leaving = name.clone();
        thread::spawn(move || std::mem::forget(lock(&leaving, short).unwrap().unwrap()))
            .join()
            .unwrap();
        assert!(other(&name));
    }
}
