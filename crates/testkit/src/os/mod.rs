//! What differs between operating systems: one folder for each, behind one contract.
//!
//! - `raise_descriptor_limit`: room for many connections in one process;
//! - `temp`: a new temporary folder.

#[cfg(target_os = "linux")]
pub mod linux;
#[cfg(windows)]
pub mod windows;

#[cfg(target_os = "linux")]
pub(crate) use linux::{raise_descriptor_limit, temp};
#[cfg(windows)]
pub(crate) use windows::{raise_descriptor_limit, temp};
