//! System calls of one program that another process answers (seccomp user notifications).
//!
//! A [`Filter`] names the calls. [`spawn`] starts a program under it and returns the [`Listener`]: each such
//! call of the program, its threads and its descendants waits for an answer. The loop of a supervisor is:
//! [`Listener::wait`], [`Listener::receive`], read the call's arguments by [`remote`](super::remote), check
//! with [`Listener::is_valid`] that they are still those of this call, and [`Listener::respond`] or
//! [`Listener::add_fd`].
//!
//! The program is not trusted. It can change its memory while the call waits, so what a supervisor has read
//! once it must not read again. A supervisor that ends leaves its programs running: their calls then fail with
//! `ENOSYS`.
//!
//! [`confine_thread`] puts the calling thread alone under an allow list ([`Filter::allow_only`]), for good.
//!
//! Linux 5.9 is the oldest that serves. See seccomp_unotify(2).

mod bpf;
pub mod denials;
mod install;
mod listener;
pub mod names;
mod spawn;
mod thread;

pub use bpf::{Action, ArgEq, Filter, FilterError, Rule, Unlisted};
pub use install::no_new_privileges;
pub use listener::{AddFd, Listener, Notification, NotificationId, Ready, Response};
pub use spawn::{SpawnError, Spawned, restrict, spawn};
pub use thread::confine_thread;

#[cfg(test)]
mod tests;
