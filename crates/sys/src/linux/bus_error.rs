//! Mappings of memory that another process can take away: `SIGBUS` handled.
//!
//! An access to a page that has no memory behind it raises `SIGBUS`, which ends the process by default. It
//! happens if another process truncates the file of a mapping, if the system cannot allocate a page of it
//! (huge pages, a full tmpfs), or if the page's memory has failed. For a mapping that is registered here, a
//! signal handler replaces the whole mapping by zero pages of this process and marks it as lost. The access
//! then continues. The owner of the mapping looks at the mark, and gives the memory up.
//!
//! Every other `SIGBUS` goes to the handler that was there before. If the program installs a handler of its
//! own later, that one gets all of them, so `handle` fails from then on.
//!
//! The handler runs between any two instructions of a thread, and on all threads at once. So the registry is
//! a list of slots without locks, in memory that is never freed.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, OnceLock};

use crate::sync::lock;

/// `si_code` of an access to a page that does not exist, of a fault of the object behind it, and of a memory
/// error in a page that was accessed (`siginfo.h`).
const LOST: [c_int; 3] = [2, 3, 4];
/// Slots of one block of the registry.
const SLOTS: usize = 64;

/// One registered mapping.
#[derive(Debug)]
struct Slot {
    in_use: AtomicBool,
    /// Odd while `start` and `len` change.
    version: AtomicUsize,
    start: AtomicUsize,
    /// Bytes, in whole pages of the mapping's file.
    len: AtomicUsize,
    is_lost: AtomicBool,
}

/// Slots, and the block after them.
#[derive(Debug)]
struct Block {
    slots: [Slot; SLOTS],
    next: AtomicPtr<Block>,
}

static REGISTRY: Block = Block::new();

/// The registration of a mapping. Dropped before the mapping is removed.
#[derive(Debug)]
pub(super) struct Guard(&'static Slot);

impl Slot {
    const fn new() -> Self {
        Self {
            in_use: AtomicBool::new(false),
            version: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            is_lost: AtomicBool::new(false),
        }
    }

    /// Takes a free slot.
    fn take(&self) -> bool {
        let (free, taken) = (false, true);
        self.in_use
            .compare_exchange(free, taken, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    /// Sets the range. Only by the owner of the slot.
    fn set(&self, start: usize, len: usize) {
        let version = self.version.load(Ordering::Relaxed);
        self.version
            .store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.version
            .store(version.wrapping_add(2), Ordering::Release);
    }

    /// The range, if it contains an address. That of a slot which changes just now does not: its mapping is
    /// not in use.
    fn range_of(&self, address: usize) -> Option<(usize, usize)> {
        let before = self.version.load(Ordering::Acquire);
        let start = self.start.load(Ordering::Relaxed);
        let len = self.len.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let is_stable = before.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == before;
        let offset = address.checked_sub(start)?;
        (is_stable && offset < len).then_some((start, len))
    }
}

impl Block {
    const fn new() -> Self {
        Self {
            slots: [const { Slot::new() }; SLOTS],
            next: AtomicPtr::new(ptr::null_mut()),
        }
    }

    fn next(&self) -> Option<&'static Self> {
        let next = self.next.load(Ordering::Acquire);
        // SAFETY: null, or a block that is never freed.
        unsafe { next.as_ref() }
    }

    /// The next block, which is made if there is none.
    fn next_or_new(&self) -> &'static Self {
        if let Some(next) = self.next() {
            return next;
        }
        let new = Box::into_raw(Box::new(Self::new()));
        let none = ptr::null_mut();
        let set = self
            .next
            .compare_exchange(none, new, Ordering::AcqRel, Ordering::Acquire);
        match set {
            // SAFETY: the block was just made, and is never freed.
            Ok(_) => unsafe { &*new },
            Err(other) => {
                // SAFETY: no other thread has seen the new block; the other one is never freed.
                unsafe {
                    drop(Box::from_raw(new));
                    &*other
                }
            }
        }
    }
}

impl Guard {
    /// Registers a mapping of `len` bytes, in whole pages.
    pub(super) fn register(start: usize, len: usize) -> Self {
        let mut block: &'static Block = &REGISTRY;
        let slot = loop {
            match block.slots.iter().find(|slot| slot.take()) {
                Some(slot) => break slot,
                None => block = block.next_or_new(),
            }
        };
        slot.is_lost.store(false, Ordering::Relaxed);
        slot.set(start, len);
        Self(slot)
    }

    /// Whether the mapping was replaced by zero pages.
    #[inline]
    pub(super) fn is_lost(&self) -> bool {
        self.0.is_lost.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.set(0, 0);
        self.0.in_use.store(false, Ordering::Release);
    }
}

/// What handled the signal before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();
static INSTALLED: Mutex<bool> = Mutex::new(false);

/// Makes sure that the handler is installed.
///
/// # Errors
///
/// `ResourceBusy` if the program has installed another handler after it; those of `sigaction`.
pub(super) fn handle() -> io::Result<()> {
    let mut installed = lock(&INSTALLED);
    let now = disposition()?;
    if now.sa_sigaction == on_signal as *const () as usize {
        return Ok(());
    }
    if *installed {
        let text = "the program has a handler of its own for SIGBUS";
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
    }
    BEFORE.get_or_init(|| now);
    // SAFETY: all zero is a valid sigaction; its fields are set next.
    let mut new: libc::sigaction = unsafe { std::mem::zeroed() };
    new.sa_sigaction = on_signal as *const () as usize;
    new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: the set is valid, and the handler does only what a handler may do.
    let done = unsafe {
        libc::sigemptyset(&raw mut new.sa_mask);
        libc::sigaction(libc::SIGBUS, &raw const new, ptr::null_mut())
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    *installed = true;
    Ok(())
}

/// Lets the calling thread receive `SIGBUS`. A thread that blocks it is ended by the kernel with its process
/// at such a fault.
pub fn unblock() {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the set is initialized by the first call. The signal exists.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGBUS);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), ptr::null_mut());
    }
}

fn disposition() -> io::Result<libc::sigaction> {
    let mut now = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: reads the disposition and changes nothing.
    let done = unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), now.as_mut_ptr()) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has initialized it.
    Ok(unsafe { now.assume_init() })
}

/// The signal handler. It makes no call that may not be made in one, and keeps `errno`.
extern "C" fn on_signal(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo. `errno` is the thread's own.
    let (code, address, errno) = unsafe {
        let address = (*info).si_addr().addr();
        ((*info).si_code, address, libc::__errno_location())
    };
    // SAFETY: as above.
    let before = unsafe { *errno };
    if !LOST.contains(&code) || !replace(address) {
        pass_on(signal, code, info, context);
    }
    // SAFETY: as above.
    unsafe { *errno = before };
}

/// Replaces the registered mapping that an address is in. Returns whether there is one.
fn replace(address: usize) -> bool {
    let mut block = Some(&REGISTRY);
    while let Some(now) = block {
        for slot in &now.slots {
            let Some((start, len)) = slot.range_of(address) else {
                continue;
            };
            // SAFETY: the range is a mapping of a `Mapping`, which its owner is just accessing, by copies
            // and atomic words only. It stays readable and writable.
            let mapped = unsafe {
                libc::mmap(
                    ptr::with_exposed_provenance_mut(start),
                    len,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                    -1,
                    0,
                )
            };
            let is_replaced = mapped != libc::MAP_FAILED;
            if is_replaced {
                slot.is_lost.store(true, Ordering::Release);
            }
            return is_replaced;
        }
        block = now.next();
    }
    false
}

/// Does what would have happened without this handler.
fn pass_on(signal: c_int, code: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let before = BEFORE.get().map(|before| (before.sa_sigaction, before));
    match before {
        Some((libc::SIG_IGN, _)) if code <= 0 => {}
        None | Some((libc::SIG_DFL | libc::SIG_IGN, _)) => {
            // A fault raises the signal again on return. One that was sent is sent again.
            // SAFETY: both calls may be made in a handler.
            unsafe {
                libc::signal(signal, libc::SIG_DFL);
                if code <= 0 {
                    libc::raise(signal);
                }
            }
        }
        Some((handler, before)) if before.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: the program installed a function of this type, as the flag says.
            let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        Some((handler, _)) => {
            // SAFETY: the program installed a function of this type, as the flag says.
            let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use rustix::fs::MemfdFlags;

    use super::*;
    use crate::shared_memory::{Mapping, recv, send};
    use crate::stream;

    const PAGE: usize = 4096;

    fn unsealed(pages: usize) -> std::os::fd::OwnedFd {
        let memory = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&memory, (pages * PAGE) as u64).unwrap();
        memory
    }

    fn byte(mapping: &Mapping, at: usize) -> u8 {
        let mut byte = [0xEE];
        assert_eq!(mapping.bytes(at..at + 1).get(0, &mut byte), 1);
        byte[0]
    }

    #[test]
    fn a_mapping_whose_file_was_truncated_reads_zero_and_is_lost_alone() {
        let (memory, other) = (unsealed(8), unsealed(8));
        let mapping = Mapping::part(&memory, 0, 8 * PAGE, false).unwrap();
        let kept = Mapping::part(&other, PAGE as u64, 7 * PAGE, false).unwrap();
        for one in [&mapping, &kept] {
            one.bytes(0..7 * PAGE).put(0, &[7; 7 * PAGE]);
        }
        rustix::fs::ftruncate(&memory, PAGE as u64).unwrap();
        assert!(!mapping.is_lost());
        // Before the end of the file there is memory.
        assert_eq!(byte(&mapping, PAGE - 1), 7);
        assert!(!mapping.is_lost());
        assert_eq!(byte(&mapping, PAGE), 0);
        assert!(mapping.is_lost());
        assert_eq!(byte(&mapping, 0), 0);
        mapping.bytes(0..8 * PAGE).put(5 * PAGE, b"written");
        assert_eq!(byte(&mapping, 5 * PAGE), b'w');
        assert_eq!(mapping.bytes(0..2).store_u16(0, 9), Some(()));
        // The file does not get what was written, and the other mapping is as before.
        rustix::fs::ftruncate(&memory, 8 * PAGE as u64).unwrap();
        let mut back = [1; 7];
        assert_eq!(
            rustix::io::pread(&memory, &mut back, 5 * PAGE as u64),
            Ok(7)
        );
        assert_eq!(back, [0; 7]);
        assert_eq!((byte(&kept, 0), kept.is_lost()), (7, false));
    }

    #[test]
    fn a_write_to_lost_memory_is_handled_as_a_read_is() {
        let memory = unsealed(4);
        let mapping = Mapping::part(&memory, 0, 4 * PAGE, false).unwrap();
        rustix::fs::ftruncate(&memory, 0).unwrap();
        assert_eq!(mapping.bytes(0..4 * PAGE).put(PAGE - 2, b"abcd"), 4);
        assert!(mapping.is_lost());
        assert_eq!(byte(&mapping, PAGE + 1), b'd');
    }

    #[test]
    fn a_system_call_on_lost_memory_fails_and_marks_it() {
        for writes in [true, false] {
            let memory = unsealed(2);
            let mapping = Mapping::part(&memory, 0, 2 * PAGE, false).unwrap();
            let (near, far) = stream::pair().unwrap();
            rustix::fs::ftruncate(&memory, 0).unwrap();
            let bytes = [mapping.bytes(100..2 * PAGE)];
            let failed = match writes {
                true => send(&near, &bytes),
                false => {
                    assert_eq!(stream::send(&far, b"x").unwrap(), 1);
                    recv(&near, &bytes)
                }
            };
            let error = failed.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EFAULT), "{error}");
            assert!(mapping.is_lost());
        }
    }

    #[test]
    fn many_mappings_come_and_go_on_all_threads_while_some_are_lost() {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    unblock();
                    for round in 0..60 {
                        let memories: Vec<_> = (0..40).map(|_| unsealed(2)).collect();
                        let map = |memory| Mapping::part(memory, 0, 2 * PAGE, false).unwrap();
                        let mappings: Vec<_> = memories.iter().map(map).collect();
                        let lost = round % 40;
                        rustix::fs::ftruncate(&memories[lost], 0).unwrap();
                        for (at, mapping) in mappings.iter().enumerate() {
                            mapping.bytes(0..2 * PAGE).put(PAGE, b"x");
                            assert_eq!(mapping.is_lost(), at == lost);
                            assert_eq!(byte(mapping, PAGE), b'x');
                        }
                    }
                });
            }
        });
    }

    /// Runs one of the tests below in a process of its own, in which it goes on.
    fn in_a_child(name: &str, body: impl FnOnce()) -> Option<std::process::ExitStatus> {
        const CHILD: &str = "HVSOCK_TEST_BUS_ERROR_CHILD";
        if std::env::var(CHILD).is_ok_and(|child| child == name) {
            body();
            return None;
        }
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args([&format!("linux::bus_error::tests::{name}"), "--exact"]);
        Some(child.env(CHILD, name).output().unwrap().status)
    }

    #[test]
    fn a_fault_elsewhere_ends_the_process_as_without_the_handler() {
        let name = "a_fault_elsewhere_ends_the_process_as_without_the_handler";
        let status = in_a_child(name, || {
            handle().unwrap();
            let memory = unsealed(1);
            // Not registered, unlike a part.
            // SAFETY: no address is given, so no existing mapping is replaced.
            let start = unsafe {
                let flags = rustix::mm::MapFlags::SHARED;
                let protection = rustix::mm::ProtFlags::READ;
                rustix::mm::mmap(ptr::null_mut(), PAGE, protection, flags, &memory, 0).unwrap()
            };
            rustix::fs::ftruncate(&memory, 0).unwrap();
            // SAFETY: mapped; the fault is what is tested.
            unsafe { start.cast::<u8>().read_volatile() };
        });
        if let Some(status) = status {
            assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
        }
    }

    static SEEN: AtomicUsize = AtomicUsize::new(0);

    extern "C" fn other(_: c_int) {
        SEEN.fetch_add(1, Ordering::Relaxed);
    }

    #[test]
    fn a_handler_from_before_gets_other_signals_and_one_from_after_is_an_error() {
        let name = "a_handler_from_before_gets_other_signals_and_one_from_after_is_an_error";
        let status = in_a_child(name, || {
            let own = other as *const () as usize;
            // SAFETY: the handler only adds to an atomic number.
            unsafe { libc::signal(libc::SIGBUS, own) };
            let memory = unsealed(2);
            let mapping = Mapping::part(&memory, 0, 2 * PAGE, false).unwrap();
            rustix::fs::ftruncate(&memory, 0).unwrap();
            assert_eq!((byte(&mapping, 0), mapping.is_lost()), (0, true));
            assert_eq!(SEEN.load(Ordering::Relaxed), 0);
            // SAFETY: the signal exists, and is handled.
            unsafe { libc::raise(libc::SIGBUS) };
            assert_eq!(SEEN.load(Ordering::Relaxed), 1);
            // SAFETY: as above.
            unsafe { libc::signal(libc::SIGBUS, own) };
            let memory = unsealed(2);
            let error = Mapping::part(&memory, 0, 2 * PAGE, false).unwrap_err();
            let text = "the memory is not sealed against shrinking, and the program has a handler of \
                        its own for SIGBUS";
            assert_eq!(error.to_string(), text);
            // Sealed memory, and memory whose owner is trusted, need no handler.
            let sealed = crate::shared_memory::create(4096).unwrap();
            Mapping::part(&sealed, 0, PAGE, false).unwrap();
            let trusted = Mapping::part(&memory, 0, 2 * PAGE, true).unwrap();
            assert!(!trusted.is_lost());
        });
        if let Some(status) = status {
            assert!(status.success(), "{status}");
        }
    }
}
