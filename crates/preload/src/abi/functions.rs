//! The functions by their C names.

use std::ffi::{c_char, c_int, c_long, c_ulong, c_void};
use std::os::fd::{IntoRawFd, OwnedFd};

use libc::{mode_t, sockaddr, socklen_t};
use rustix::io::Errno;

use super::entry::{emulated, guarded};
use super::errno::set_errno;
use super::{descriptor, memory, real};
use crate::name::Name;
use crate::{calls, device};

/// What a call of a missing function returns.
fn missing() -> c_int {
    set_errno(libc::ENOSYS);
    -1
}

/// The number of a new descriptor, which is the program's from now on.
fn give(fd: OwnedFd) -> c_int {
    fd.into_raw_fd()
}

/// An address that the program passes.
fn address(address: *const sockaddr, len: socklen_t) -> Result<Name, Errno> {
    let mut name = Name::with_len(len)?;
    memory::read(address.cast(), name.bytes_mut())?;
    Ok(name)
}

/// Stores an address and its length as the kernel does: what fits of it, and its whole length.
fn store_address(name: &Name, address: *mut sockaddr, len: *mut socklen_t) -> Result<(), Errno> {
    store(name.bytes(), address.cast(), len, name.bytes().len())
}

/// Stores what fits of `bytes`, and the number `length`.
fn store(bytes: &[u8], at: *mut c_void, len: *mut socklen_t, length: usize) -> Result<(), Errno> {
    let mut have = [0; size_of::<socklen_t>()];
    memory::read(len.cast_const().cast(), &mut have)?;
    let have = i32::from_ne_bytes(have);
    let have = usize::try_from(have).map_err(|_| Errno::INVAL)?;
    let fits = bytes.get(..have.min(bytes.len())).unwrap_or_default();
    memory::write(at, fits)?;
    let length = socklen_t::try_from(length).unwrap_or(0);
    memory::write(len.cast(), &length.to_ne_bytes())
}

/// # Safety
///
/// That of the C function.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    if let Some(result) =
        guarded(|| calls::socket(domain, kind, protocol).map(|made| made.map(give)))
    {
        return result;
    }
    // SAFETY: the type is that of `socket`; the arguments are the caller's.
    unsafe {
        match real::get::<real::Socket>(&real::SOCKET) {
            Some(real) => real(domain, kind, protocol),
            None => missing(),
        }
    }
}

/// # Safety
///
/// That of the C function.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn bind(fd: c_int, name: *const sockaddr, len: socklen_t) -> c_int {
    let ours = emulated(fd, |socket| {
        Some(
            address(name, len)
                .and_then(|name| calls::bind(&socket, &name))
                .map(|()| 0),
        )
    });
    if let Some(result) = ours {
        return result;
    }
    // SAFETY: the type is that of `bind`; the arguments are the caller's.
    unsafe {
        match real::get::<real::WithAddress>(&real::BIND) {
            Some(real) => real(fd, name, len),
            None => missing(),
        }
    }
}

/// # Safety
///
/// That of the C function.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn connect(fd: c_int, name: *const sockaddr, len: socklen_t) -> c_int {
    let ours = emulated(fd, |socket| {
        Some(
            address(name, len)
                .and_then(|name| crate::connect::connect(&socket, &name))
                .map(|()| 0),
        )
    });
    if let Some(result) = ours {
        return result;
    }
    // SAFETY: the type is that of `connect`; the arguments are the caller's.
    unsafe {
        match real::get::<real::WithAddress>(&real::CONNECT) {
            Some(real) => real(fd, name, len),
            None => missing(),
        }
    }
}

/// # Safety
///
/// That of the C function.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn listen(fd: c_int, backlog: c_int) -> c_int {
    if let Some(result) = emulated(fd, |socket| {
        Some(calls::listen(&socket, backlog).map(|()| 0))
    }) {
        return result;
    }
    // SAFETY: the type is that of `listen`; the arguments are the caller's.
    unsafe {
        match real::get::<real::WithNumber>(&real::LISTEN) {
            Some(real) => real(fd, backlog),
            None => missing(),
        }
    }
}

/// Accepts on an emulated listener. `None` if it is another kind of socket.
fn accept_emulated(
    fd: c_int,
    name: *mut sockaddr,
    len: *mut socklen_t,
    flags: c_int,
) -> Option<c_int> {
    emulated(fd, |socket| {
        let accept = || {
            let accepted = calls::accept(&socket, flags)?;
            if !name.is_null() {
                store_address(&accepted.peer()?, name, len)?;
            }
            Ok(give(accepted.into_socket()))
        };
        Some(accept())
    })
}

/// # Safety
///
/// That of the C function.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn accept(fd: c_int, name: *mut sockaddr, len: *mut socklen_t) -> c_int {
    if let Some(result) = accept_emulated(fd, name, len, 0) {
        return result;
    }
    // SAFETY: the type is that of `accept`; the arguments are the caller's.
    unsafe {
        match real::get::<real::ForAddress>(&real::ACCEPT) {
            Some(real) => real(fd, name, len),
            None => missing(),
        }
    }
}

/// # Safety
///
/// That of the C function.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn accept4(
    fd: c_int,
    name: *mut sockaddr,
    len: *mut socklen_t,
    flags: c_int,
) -> c_int {
    if let Some(result) = accept_emulated(fd, name, len, flags) {
        return result;
    }
    // SAFETY: the type is that of `accept4`; the arguments are the caller's.
    unsafe {
        match real::get::<real::Accept4>(&real::ACCEPT4) {
            Some(real) => real(fd, name, len, flags),
            None => missing(),
        }
    }
}

/// # Safety
///
/// That of the C function.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn getsockname(fd: c_int, name: *mut sockaddr, len: *mut socklen_t) -> c_int {
    let ours = emulated(fd, |socket| {
        let local = calls::local(&socket);
        Some(
            local
                .and_then(|local| store_address(&local, name, len))
                .map(|()| 0),
        )
    });
    if let Some(result) = ours {
        return result;
    }
    // SAFETY: the type is that of `getsockname`; the arguments are the caller's.
    unsafe {
        match real::get::<real::ForAddress>(&real::GETSOCKNAME) {
            Some(real) => real(fd, name, len),
            None => missing(),
        }
    }
}

/// # Safety
///
/// That of the C function.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn getpeername(fd: c_int, name: *mut sockaddr, len: *mut socklen_t) -> c_int {
    let ours = emulated(fd, |socket| {
        let peer = calls::peer(&socket);
        Some(
            peer.and_then(|peer| store_address(&peer, name, len))
                .map(|()| 0),
        )
    });
    if let Some(result) = ours {
        return result;
    }
    // SAFETY: the type is that of `getpeername`; the arguments are the caller's.
    unsafe {
        match real::get::<real::ForAddress>(&real::GETPEERNAME) {
            Some(real) => real(fd, name, len),
            None => missing(),
        }
    }
}

/// # Safety
///
/// That of the C function.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn getsockopt(
    fd: c_int,
    level: c_int,
    option: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    let ours = emulated(fd, |socket| {
        let mut have = [0; size_of::<socklen_t>()];
        if let Err(error) = memory::read(len.cast_const().cast(), &mut have) {
            return Some(Err(error));
        }
        let have = u32::from_ne_bytes(have);
        let read = calls::option(&socket, level, option, have)?;
        Some(
            read.and_then(|read| store(read.bytes(), value, len, read.bytes().len()))
                .map(|()| 0),
        )
    });
    if let Some(result) = ours {
        return result;
    }
    // SAFETY: the type is that of `getsockopt`; the arguments are the caller's.
    unsafe {
        match real::get::<real::GetOption>(&real::GETSOCKOPT) {
            Some(real) => real(fd, level, option, value, len),
            None => missing(),
        }
    }
}

/// # Safety
///
/// That of the C function.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn setsockopt(
    fd: c_int,
    level: c_int,
    option: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    let ours = emulated(fd, |socket| {
        let read = |bytes: &mut [u8]| memory::read(value, bytes);
        Some(calls::set_option(&socket, level, option, len, read)?.map(|()| 0))
    });
    if let Some(result) = ours {
        return result;
    }
    // SAFETY: the type is that of `setsockopt`; the arguments are the caller's.
    unsafe {
        match real::get::<real::SetOption>(&real::SETSOCKOPT) {
            Some(real) => real(fd, level, option, value, len),
            None => missing(),
        }
    }
}

/// # Safety
///
/// That of the C function.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn shutdown(fd: c_int, how: c_int) -> c_int {
    if let Some(result) = emulated(fd, |socket| {
        Some(calls::shutdown(&socket, how)?.map(|()| 0))
    }) {
        return result;
    }
    // SAFETY: the type is that of `shutdown`; the arguments are the caller's.
    unsafe {
        match real::get::<real::WithNumber>(&real::SHUTDOWN) {
            Some(real) => real(fd, how),
            None => missing(),
        }
    }
}

/// # Safety
///
/// That of the C function.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn close(fd: c_int) -> c_int {
    if crate::state::may_be_emulated(fd) {
        guarded(|| {
            let table = crate::state::table()?;
            descriptor::with(fd, |open| calls::closing(table, open))
        });
        crate::state::forget(fd);
    }
    // SAFETY: the type is that of `close`; the argument is the caller's.
    unsafe {
        match real::get::<real::Close>(&real::CLOSE) {
            Some(real) => real(fd),
            None => missing(),
        }
    }
}

/// # Safety
///
/// That of the C function.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    if request == device::GET_LOCAL_CID {
        let ours = guarded(|| {
            let cid = descriptor::with(fd, device::local_cid)?;
            Some(
                cid.and_then(|cid| memory::write(argument, &cid.to_ne_bytes()))
                    .map(|()| 0),
            )
        });
        if let Some(result) = ours {
            return result;
        }
    }
    // SAFETY: the type is that of `ioctl`; the arguments are the caller's.
    unsafe {
        match real::get::<real::Ioctl>(&real::IOCTL) {
            Some(real) => real(fd, request, argument),
            None => missing(),
        }
    }
}

/// Opens the stand-in of the device, if the path is that of it.
fn open_device(path: *const c_char, flags: c_int) -> Option<c_int> {
    if !memory::is_path(path, device::PATH) {
        return None;
    }
    guarded(|| device::open(flags).map(|opened| opened.map(give)))
}

/// # Safety
///
/// That of the C function.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    if let Some(result) = open_device(path, flags) {
        return result;
    }
    // SAFETY: the type is that of `open`; the arguments are the caller's.
    unsafe {
        match real::get::<real::Open>(&real::OPEN) {
            Some(real) => real(path, flags, mode),
            None => missing(),
        }
    }
}

/// # Safety
///
/// That of the C function.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    if let Some(result) = open_device(path, flags) {
        return result;
    }
    // SAFETY: the type is that of `open64`; the arguments are the caller's.
    unsafe {
        match real::get::<real::Open>(&real::OPEN64) {
            Some(real) => real(path, flags, mode),
            None => missing(),
        }
    }
}

/// # Safety
///
/// That of the C function.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn openat(
    at: c_int,
    path: *const c_char,
    flags: c_int,
    mode: mode_t,
) -> c_int {
    if let Some(result) = open_device(path, flags) {
        return result;
    }
    // SAFETY: the type is that of `openat`; the arguments are the caller's.
    unsafe {
        match real::get::<real::OpenAt>(&real::OPENAT) {
            Some(real) => real(at, path, flags, mode),
            None => missing(),
        }
    }
}

/// # Safety
///
/// That of the C function.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn openat64(
    at: c_int,
    path: *const c_char,
    flags: c_int,
    mode: mode_t,
) -> c_int {
    if let Some(result) = open_device(path, flags) {
        return result;
    }
    // SAFETY: the type is that of `openat64`; the arguments are the caller's.
    unsafe {
        match real::get::<real::OpenAt>(&real::OPENAT64) {
            Some(real) => real(at, path, flags, mode),
            None => missing(),
        }
    }
}

/// What a program that was compiled with `_FORTIFY_SOURCE` calls.
///
/// # Safety
///
/// That of the C function.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn __open_2(path: *const c_char, flags: c_int) -> c_int {
    if let Some(result) = open_device(path, flags) {
        return result;
    }
    // SAFETY: the type is that of `__open_2`; the arguments are the caller's.
    unsafe {
        match real::get::<real::Open2>(&real::OPEN_2) {
            Some(real) => real(path, flags),
            None => missing(),
        }
    }
}

/// What a program that was compiled with `_FORTIFY_SOURCE` calls.
///
/// # Safety
///
/// That of the C function.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn __open64_2(path: *const c_char, flags: c_int) -> c_int {
    if let Some(result) = open_device(path, flags) {
        return result;
    }
    // SAFETY: the type is that of `__open64_2`; the arguments are the caller's.
    unsafe {
        match real::get::<real::Open2>(&real::OPEN64_2) {
            Some(real) => real(path, flags),
            None => missing(),
        }
    }
}

/// What a program that was compiled with `_FORTIFY_SOURCE` calls.
///
/// # Safety
///
/// That of the C function.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn __openat_2(at: c_int, path: *const c_char, flags: c_int) -> c_int {
    if let Some(result) = open_device(path, flags) {
        return result;
    }
    // SAFETY: the type is that of `__openat_2`; the arguments are the caller's.
    unsafe {
        match real::get::<real::OpenAt2>(&real::OPENAT_2) {
            Some(real) => real(at, path, flags),
            None => missing(),
        }
    }
}

/// What a program that was compiled with `_FORTIFY_SOURCE` calls.
///
/// # Safety
///
/// That of the C function.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn __openat64_2(at: c_int, path: *const c_char, flags: c_int) -> c_int {
    if let Some(result) = open_device(path, flags) {
        return result;
    }
    // SAFETY: the type is that of `__openat64_2`; the arguments are the caller's.
    unsafe {
        match real::get::<real::OpenAt2>(&real::OPENAT64_2) {
            Some(real) => real(at, path, flags),
            None => missing(),
        }
    }
}

/// The system calls that programs make by number, as some runtimes do. Those that have a function here are
/// made by it.
///
/// # Safety
///
/// That of the C function: the arguments are those of the system call.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    // Registers have the low bits of what the kernel takes as an int.
    let int = |value: c_long| value as c_int;
    let length = |value: c_long| value as socklen_t;
    // SAFETY: each function takes the arguments of its system call.
    let done = unsafe {
        match number {
            libc::SYS_socket => socket(int(a), int(b), int(c)),
            libc::SYS_bind => bind(int(a), b as *const sockaddr, length(c)),
            libc::SYS_connect => connect(int(a), b as *const sockaddr, length(c)),
            libc::SYS_listen => listen(int(a), int(b)),
            libc::SYS_accept => accept(int(a), b as *mut sockaddr, c as *mut socklen_t),
            libc::SYS_accept4 => accept4(int(a), b as *mut sockaddr, c as *mut socklen_t, int(d)),
            libc::SYS_getsockname => getsockname(int(a), b as *mut sockaddr, c as *mut socklen_t),
            libc::SYS_getpeername => getpeername(int(a), b as *mut sockaddr, c as *mut socklen_t),
            libc::SYS_getsockopt => getsockopt(
                int(a),
                int(b),
                int(c),
                d as *mut c_void,
                e as *mut socklen_t,
            ),
            libc::SYS_setsockopt => {
                setsockopt(int(a), int(b), int(c), d as *const c_void, length(e))
            }
            libc::SYS_shutdown => shutdown(int(a), int(b)),
            libc::SYS_ioctl => ioctl(int(a), b as c_ulong, c as *mut c_void),
            libc::SYS_openat => openat(int(a), b as *const c_char, int(c), d as mode_t),
            libc::SYS_close => close(int(a)),
            _ => {
                return match real::get::<real::Syscall>(&real::SYSCALL) {
                    Some(real) => real(number, a, b, c, d, e, f),
                    None => missing().into(),
                };
            }
        }
    };
    done.into()
}
