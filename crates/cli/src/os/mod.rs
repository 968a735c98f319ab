//! What differs from one operating system to another, one folder for each, behind one contract:
//!
//! - [`Place`], options that say which broker is meant, and who answers there: a [`Client`];
//! - [`Command`], the subcommands of one system only, and [`Vm`], which each has in its own way;
//! - [`Partition`], as people name one, and [`Asker`], an option that says who asks why;
//! - [`Rules`], options of access rules, and what is kept and counted of a service;
//! - [`stdio`], [`Termination`] and [`clipboard`]: what a shell's command needs of its system;
//! - [`help`], texts with examples, and [`advice`], what helps against a failure.
//!
//! Nothing outside of this folder asks which system it is.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(windows)]
mod windows;

#[cfg(target_os = "linux")]
pub use linux::*;
#[cfg(windows)]
pub use windows::*;
