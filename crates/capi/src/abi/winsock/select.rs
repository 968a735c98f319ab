//! Waiting for several sockets.

use std::ffi::{c_int, c_uint};
use std::time::{Duration, Instant};

use libc::{fd_set, pollfd, timeval};

use super::{call, checked};
use crate::last_error::Result;
use crate::winsock::socket::SOCKETS;

/// `WSAPoll`: `poll`, and a connect that failed is an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_ws_WSAPoll(
    fds: *mut pollfd,
    count: c_uint,
    timeout: c_int,
) -> c_int {
    call(|| {
        // SAFETY: the program passes that many.
        let ready = checked(unsafe { libc::poll(fds, count.into(), timeout) })?;
        if ready > 0 && !fds.is_null() {
            // SAFETY: as above.
            let fds = unsafe { std::slice::from_raw_parts_mut(fds, count as usize) };
            for one in fds
                .iter_mut()
                .filter(|one| one.revents & libc::POLLHUP != 0)
            {
                let failed = SOCKETS
                    .find_special(one.fd)
                    .is_some_and(|it| it.has_failed(one.fd));
                if failed {
                    one.revents |= libc::POLLERR;
                }
            }
        }
        Ok(ready)
    })
}

/// The descriptors of a set.
const SET_SIZE: c_int = libc::FD_SETSIZE as c_int;

/// `select`: every descriptor of the sets counts, whatever the first argument is, and the timeout is not changed. A
/// connect that failed is in the set of exceptions, as on Windows, and not in that of writable sockets.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvsock_ws_select(
    _count: c_int,
    readable: *mut fd_set,
    writable: *mut fd_set,
    exceptional: *mut fd_set,
    timeout: *const timeval,
) -> c_int {
    call(|| {
        // SAFETY: the program passes NULL or a set, for each.
        let connecting = unsafe { connecting(writable, exceptional) };
        if connecting.is_empty() {
            // SAFETY: as above.
            let highest = unsafe { highest(&[readable, writable, exceptional]) };
            // SAFETY: as above. The kernel stores the time that is left, in a copy.
            let mut left = unsafe { timeout.as_ref() }.copied();
            let left = left
                .as_mut()
                .map_or(std::ptr::null_mut(), |left| &raw mut *left);
            // SAFETY: as above.
            return checked(unsafe {
                libc::select(highest, readable, writable, exceptional, left)
            });
        }
        // SAFETY: as above.
        unsafe { select_connecting(readable, writable, exceptional, timeout, &connecting) }
    })
}

/// One more than the highest descriptor of the sets.
///
/// # Safety
///
/// Each is NULL or a set.
unsafe fn highest(sets: &[*mut fd_set]) -> c_int {
    let is_in = |number: c_int| {
        // SAFETY: as the caller promises.
        sets.iter()
            .any(|set| !set.is_null() && unsafe { libc::FD_ISSET(number, *set) })
    };
    (0..SET_SIZE)
        .rev()
        .find(|number| is_in(*number))
        .map_or(0, |number| number + 1)
}

/// The descriptors of the sets that are connecting or have failed to.
///
/// # Safety
///
/// Each is NULL or a set.
unsafe fn connecting(writable: *mut fd_set, exceptional: *mut fd_set) -> Vec<c_int> {
    let mut found = Vec::new();
    for number in 0..SET_SIZE {
        let is_in = [writable, exceptional]
            .iter()
            // SAFETY: as the caller promises.
            .any(|set| !set.is_null() && unsafe { libc::FD_ISSET(number, *set) });
        if is_in
            && SOCKETS
                .find_special(number)
                .is_some_and(|socket| socket.is_connecting())
        {
            found.push(number);
        }
    }
    found
}

/// `select` with sockets that are connecting: each is watched for its result, whichever set it is in.
///
/// # Safety
///
/// As for `select`.
unsafe fn select_connecting(
    readable: *mut fd_set,
    writable: *mut fd_set,
    exceptional: *mut fd_set,
    timeout: *const timeval,
    connecting: &[c_int],
) -> Result<c_int> {
    // SAFETY: as the caller promises.
    let limit = unsafe { timeout.as_ref() }.map(|limit| {
        let seconds = u64::try_from(limit.tv_sec).unwrap_or(0);
        Duration::from_secs(seconds) + Duration::from_micros(limit.tv_usec.unsigned_abs())
    });
    let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
    // SAFETY: as the caller promises. A set of zeros is empty.
    let copy =
        |set: *mut fd_set| unsafe { set.as_ref().copied().unwrap_or_else(|| std::mem::zeroed()) };
    let asked = [readable, writable, exceptional].map(copy);
    loop {
        let [mut r, mut w, mut e] = asked;
        for &number in connecting {
            // SAFETY: a number below the size of a set.
            unsafe { libc::FD_SET(number, &mut w) };
        }
        let mut left = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            timeval {
                tv_sec: left.as_secs() as libc::time_t,
                tv_usec: left.subsec_micros().into(),
            }
        });
        let left = left
            .as_mut()
            .map_or(std::ptr::null_mut(), |left| &raw mut *left);
        // SAFETY: sets of this function.
        let found = checked(unsafe { libc::select(SET_SIZE, &mut r, &mut w, &mut e, left) })?;
        for &number in connecting {
            // SAFETY: as above.
            unsafe {
                let is_ready = libc::FD_ISSET(number, &w);
                let failed = is_ready
                    && SOCKETS
                        .find(number)
                        .is_some_and(|socket| socket.has_failed(number));
                if failed || !libc::FD_ISSET(number, &asked[1]) {
                    libc::FD_CLR(number, &mut w);
                }
                if failed && libc::FD_ISSET(number, &asked[2]) {
                    libc::FD_SET(number, &mut e);
                }
                // A program that has no set of exceptions must not wait for ever.
                if failed && exceptional.is_null() && libc::FD_ISSET(number, &asked[1]) {
                    libc::FD_SET(number, &mut w);
                }
            }
        }
        // SAFETY: as above.
        let is_in = |number: &c_int, set: &fd_set| unsafe { libc::FD_ISSET(*number, set) };
        let in_set = |set| (0..SET_SIZE).filter(|number| is_in(number, set)).count();
        let count = in_set(&r) + in_set(&w) + in_set(&e);
        let is_over = found == 0 || deadline.is_some_and(|deadline| deadline <= Instant::now());
        if count > 0 || is_over {
            for (to, set) in [(readable, r), (writable, w), (exceptional, e)] {
                if !to.is_null() {
                    // SAFETY: as the caller promises.
                    unsafe { to.write(set) };
                }
            }
            return Ok(c_int::try_from(count).unwrap_or(c_int::MAX));
        }
    }
}
