//! The parts that differ between operating systems: one folder each, with the same interface.
//!
//! - `raise_descriptor_limit` allows many connections in one process.
//! - `temp` creates temporary folders.

#[cfg(target_os = "linux")]
pub mod linux;
#[cfg(windows)]
pub mod windows;

#[cfg(target_os = "linux")]
pub(crate) use linux::{raise_descriptor_limit, temp};
#[cfg(windows)]
pub(crate) use windows::{raise_descriptor_limit, temp};
