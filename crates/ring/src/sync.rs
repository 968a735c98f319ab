//! Atomics, locks, events and futexes: the real ones, or loom's, which explore every interleaving.

#[cfg(not(loom))]
pub(crate) use crate::futex_word::FutexWord;
#[cfg(loom)]
pub(crate) use crate::loom_doorbell::Event;
#[cfg(loom)]
pub(crate) use crate::loom_futex::FutexWord;
#[cfg(not(loom))]
pub(crate) use hvsock_sys::event::Event;
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(loom)]
pub(crate) use loom::{
    sync::{Mutex, MutexGuard},
    thread_local,
};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::{
    sync::{Mutex, MutexGuard},
    thread_local,
};
