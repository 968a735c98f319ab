//! The implementation for each operating system: one folder for each, with the same contract.
//!
//! - `backend`: sockets and the transfer of their bytes, with the types of [`crate::backend`];
//! - `Socket`: a socket of the system;
//! - `Descriptor`: a borrowed descriptor to watch;
//! - `ready`: waits for a descriptor;
//! - `exports`: the public items that exist on this system only, or differ here;
//! - `stdio`: a connection as the standard input and output of a child process;
//! - `tokio`: how the runtime watches connections and listeners.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(windows)]
mod windows;

#[cfg(target_os = "linux")]
pub(crate) use linux::*;
#[cfg(windows)]
pub(crate) use windows::*;
