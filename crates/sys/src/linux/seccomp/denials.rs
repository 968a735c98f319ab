//! The calls that allow lists have denied in this process.
//!
//! The kernel raises `SIGSYS` on the thread instead of executing the call. The handler counts it, makes it return
//! `EPERM` and sets an event, so a thread outside the lists can tell. It runs between any two instructions, so the
//! table is made of atomics.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use super::super::event::Event;
use crate::sync::lock;

/// Whether denied calls are counted on this architecture.
pub(super) const ARE_COUNTED: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));

/// Rows of the table. There are as many as kinds of denied calls, and few are expected.
const ROWS: usize = 64;
/// `si_code` of a signal that a filter raised (`siginfo.h`).
const SYS_SECCOMP: c_int = 1;
/// The exit status of a process that [`end_at_first`] ends.
const STATUS: c_int = 159;

/// A kind of denied call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denial {
    /// The number of the filter ([`Unlisted::Deny`](super::Unlisted::Deny)).
    pub filter: u16,
    /// The system call (`SYS_*` of this architecture).
    pub syscall: u32,
    /// How often it was denied.
    pub count: u64,
}

struct Row {
    /// 0 if the row is free. Otherwise the filter above 32 bits of the call's number, and bit 63.
    key: AtomicU64,
    count: AtomicU64,
}

static TABLE: [Row; ROWS] = [const {
    Row {
        key: AtomicU64::new(0),
        count: AtomicU64::new(0),
    }
}; ROWS];
/// Denied calls for which no row was free.
static OTHERS: AtomicU64 = AtomicU64::new(0);
static IS_STRICT: AtomicBool = AtomicBool::new(false);
static EVENT: OnceLock<Event> = OnceLock::new();
static EVENT_FD: AtomicI32 = AtomicI32::new(-1);
static INSTALLED: Mutex<bool> = Mutex::new(false);

/// The denied calls so far, and the number of those that did not fit into the table.
#[must_use]
pub fn list() -> (Vec<Denial>, u64) {
    let row = |row: &Row| {
        let key = row.key.load(Ordering::Acquire);
        let [_, filter @ .., a, b, c, d] = key.to_be_bytes();
        (key != 0).then(|| Denial {
            filter: u16::from_be_bytes([filter[1], filter[2]]),
            syscall: u32::from_be_bytes([a, b, c, d]),
            count: row.count.load(Ordering::Relaxed),
        })
    };
    let rows = TABLE.iter().filter_map(row).collect();
    (rows, OTHERS.load(Ordering::Relaxed))
}

/// An event that each denied call sets, from the first call of this function on.
///
/// # Errors
///
/// Those of `eventfd`.
pub fn event() -> io::Result<&'static Event> {
    if EVENT.get().is_none() {
        let event = Event::new()?;
        let _ = EVENT.set(event);
    }
    let event = EVENT
        .get()
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EAGAIN))?;
    let fd = std::os::fd::AsFd::as_fd(event).as_raw_fd();
    EVENT_FD.store(fd, Ordering::Release);
    Ok(event)
}

/// Makes the next denied call end the process with a message, for tests: what a list lacks is an error of the list.
pub fn end_at_first() {
    IS_STRICT.store(true, Ordering::Relaxed);
}

/// Installs the handler, once, and lets the calling thread receive the signal: a blocked one would end the process.
pub(super) fn catch() -> io::Result<()> {
    let mut installed = lock(&INSTALLED);
    // SAFETY: all zero is a valid sigaction and a valid set; both are initialised next, and valid for the calls. The
    // handler does only what a handler may do.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGSYS);
        let blocked = libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut());
        if blocked != 0 {
            return Err(io::Error::from_raw_os_error(blocked));
        }
        if *installed {
            return Ok(());
        }
        let mut new: libc::sigaction = std::mem::zeroed();
        new.sa_sigaction = on_signal as *const () as usize;
        new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut new.sa_mask);
        if libc::sigaction(libc::SIGSYS, &raw const new, ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    *installed = true;
    Ok(())
}

fn count(key: u64) {
    for row in &TABLE {
        let taken = row
            .key
            .compare_exchange(0, key, Ordering::AcqRel, Ordering::Acquire);
        if taken.is_ok() || taken == Err(key) {
            row.count.fetch_add(1, Ordering::Relaxed);
            return;
        }
    }
    OTHERS.fetch_add(1, Ordering::Relaxed);
}

extern "C" fn on_signal(_: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes valid pointers to a handler with SA_SIGINFO.
    let info = unsafe { &*info };
    if info.si_code != SYS_SECCOMP {
        // Another process of the same user has sent it.
        return;
    }
    // SAFETY: `struct siginfo` of this signal has the address, then the number and the architecture, after three
    // numbers and padding.
    let number = unsafe { *ptr::from_ref(info).cast::<u32>().add(6) };
    #[expect(
        clippy::cast_sign_loss,
        reason = "the kernel stores 16 bits without a sign"
    )]
    let filter = info.si_errno as u16;
    count(1 << 63 | u64::from(filter) << 32 | u64::from(number));
    if IS_STRICT.load(Ordering::Relaxed) {
        end(filter, number);
    }
    // SAFETY: as above.
    unsafe { fail(context.cast::<libc::ucontext_t>()) };
    if let fd @ 0.. = EVENT_FD.load(Ordering::Acquire) {
        // SAFETY: the event is never closed.
        let event = unsafe { BorrowedFd::borrow_raw(fd) };
        // The program continues with the error that the call has set, and sees no other.
        let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
    }
}

/// Makes the call return `EPERM`.
///
/// # Safety
///
/// The context is that of a handler.
unsafe fn fail(context: *mut libc::ucontext_t) {
    // SAFETY: the caller's.
    let machine = unsafe { &mut (*context).uc_mcontext };
    #[cfg(target_arch = "x86_64")]
    {
        machine.gregs[libc::REG_RAX as usize] = -i64::from(libc::EPERM);
    }
    #[cfg(target_arch = "aarch64")]
    {
        machine.regs[0] = (-i64::from(libc::EPERM)).cast_unsigned();
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = machine;
}

/// Ends the process with a message, without memory from the heap.
fn end(filter: u16, number: u32) -> ! {
    let mut text = *b"hvsock: the allow list       lacks system call      \n";
    for (value, end) in [(u32::from(filter), 27), (number, 51)] {
        let mut rest = value;
        for digit in text[end - 4..=end].iter_mut().rev() {
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            rest /= 10;
        }
    }
    // SAFETY: no memory but the text, which is valid for the call. The second call does not return.
    unsafe {
        libc::write(2, text.as_ptr().cast(), text.len());
        libc::_exit(STATUS)
    }
}
