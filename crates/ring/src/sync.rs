//! Atomics and what threads wait for: the processor's and the system's, or those with which loom
//! tries every interleaving.

#[cfg(loom)]
pub(crate) use crate::loom_tests::event::Event;
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
