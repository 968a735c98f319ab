//! The functions that this library takes the names of, as the next library in the program's search order has
//! them: the C library, or another preloaded one.

use std::ffi::{CStr, c_int, c_long, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{sockaddr, socklen_t};

/// A function that is looked up once.
pub struct Function {
    name: &'static CStr,
    address: AtomicPtr<c_void>,
}

impl Function {
    const fn new(name: &'static CStr) -> Self {
        let address = AtomicPtr::new(std::ptr::null_mut());
        Self { name, address }
    }

    /// Its address. `None` if no library has it. The first call may allocate memory, so [`prepare`] makes it.
    fn address(&self) -> Option<*mut c_void> {
        let mut address = self.address.load(Ordering::Acquire);
        if address.is_null() {
            // SAFETY: the name is a C string, and RTLD_NEXT is valid in a shared library.
            address = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
            self.address.store(address, Ordering::Release);
        }
        (!address.is_null()).then_some(address)
    }
}

pub static SOCKET: Function = Function::new(c"socket");
pub static BIND: Function = Function::new(c"bind");
pub static LISTEN: Function = Function::new(c"listen");
pub static CONNECT: Function = Function::new(c"connect");
pub static ACCEPT: Function = Function::new(c"accept");
pub static ACCEPT4: Function = Function::new(c"accept4");
pub static GETSOCKNAME: Function = Function::new(c"getsockname");
pub static GETPEERNAME: Function = Function::new(c"getpeername");
pub static GETSOCKOPT: Function = Function::new(c"getsockopt");
pub static SETSOCKOPT: Function = Function::new(c"setsockopt");
pub static SHUTDOWN: Function = Function::new(c"shutdown");
pub static CLOSE: Function = Function::new(c"close");
pub static IOCTL: Function = Function::new(c"ioctl");
pub static OPEN: Function = Function::new(c"open");
pub static OPEN64: Function = Function::new(c"open64");
pub static OPENAT: Function = Function::new(c"openat");
pub static OPENAT64: Function = Function::new(c"openat64");
pub static OPEN_2: Function = Function::new(c"__open_2");
pub static OPEN64_2: Function = Function::new(c"__open64_2");
pub static OPENAT_2: Function = Function::new(c"__openat_2");
pub static OPENAT64_2: Function = Function::new(c"__openat64_2");
pub static SYSCALL: Function = Function::new(c"syscall");

/// Looks all functions up, before the program has threads or signal handlers.
pub fn prepare() {
    let all = [
        &SOCKET,
        &BIND,
        &LISTEN,
        &CONNECT,
        &ACCEPT,
        &ACCEPT4,
        &GETSOCKNAME,
        &GETPEERNAME,
        &GETSOCKOPT,
        &SETSOCKOPT,
        &SHUTDOWN,
        &CLOSE,
        &IOCTL,
        &OPEN,
        &OPEN64,
        &OPENAT,
        &OPENAT64,
        &OPEN_2,
        &OPEN64_2,
        &OPENAT_2,
        &OPENAT64_2,
        &SYSCALL,
    ];
    for function in all {
        function.address();
    }
}

/// The types of the functions.
pub type Socket = unsafe extern "C" fn(c_int, c_int, c_int) -> c_int;
pub type WithAddress = unsafe extern "C" fn(c_int, *const sockaddr, socklen_t) -> c_int;
pub type ForAddress = unsafe extern "C" fn(c_int, *mut sockaddr, *mut socklen_t) -> c_int;
pub type Accept4 = unsafe extern "C" fn(c_int, *mut sockaddr, *mut socklen_t, c_int) -> c_int;
pub type GetOption =
    unsafe extern "C" fn(c_int, c_int, c_int, *mut c_void, *mut socklen_t) -> c_int;
pub type SetOption = unsafe extern "C" fn(c_int, c_int, c_int, *const c_void, socklen_t) -> c_int;
pub type WithNumber = unsafe extern "C" fn(c_int, c_int) -> c_int;
pub type Close = unsafe extern "C" fn(c_int) -> c_int;
pub type Ioctl = unsafe extern "C" fn(c_int, libc::c_ulong, ...) -> c_int;
pub type Open = unsafe extern "C" fn(*const libc::c_char, c_int, ...) -> c_int;
pub type OpenAt = unsafe extern "C" fn(c_int, *const libc::c_char, c_int, ...) -> c_int;
pub type Open2 = unsafe extern "C" fn(*const libc::c_char, c_int) -> c_int;
pub type OpenAt2 = unsafe extern "C" fn(c_int, *const libc::c_char, c_int) -> c_int;
pub type Syscall = unsafe extern "C" fn(c_long, ...) -> c_long;

/// The function with its type, or the error that a system without it has.
///
/// # Safety
///
/// `F` must be the type of the function pointer that the function of this name has in C.
pub unsafe fn get<F: Copy>(function: &Function) -> Option<F> {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    let address = function.address()?;
    // SAFETY: the caller says that `F` is the type of this function, and both are one pointer.
    Some(unsafe { std::mem::transmute_copy::<*mut c_void, F>(&address) })
}
