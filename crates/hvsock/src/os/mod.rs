//! What differs between operating systems: one folder for each, behind one contract.
//!
//! - `backend`: how sockets are made and how their bytes move; [`crate::backend`] has the words;
//! - `Descriptor`: a borrowed descriptor to watch, as the system has them;
//! - `ready`: waiting for one;
//! - `exports`: what the library has on this system only, or in this system's form;
//! - `stdio`: a connection as a child process's standard input and output;
//! - `tokio`: how the runtime watches connections and listeners.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(windows)]
mod windows;

#[cfg(target_os = "linux")]
pub(crate) use linux::*;
#[cfg(windows)]
pub(crate) use windows::*;
