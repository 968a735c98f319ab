//! What differs from one operating system to another, one folder for each, behind one contract:
//!
//! - [`BrokerArgs`], the options that select a broker, and [`Client`], which talks to it;
//! - [`Command`], the subcommands of one system only, [`Vm`], which differs, and [`run_internal`],
//!   commands that this program runs by itself;
//! - [`Partition`], a partition on the command line, and [`ExplainAs`], the option of `why` that
//!   selects the partition that connects;
//! - [`Rules`], the options of access rules, and the constants that say what a service records;
//! - [`stdio`], [`Termination`] and [`clipboard`]: standard streams, signals and the clipboard;
//! - [`help`], texts and examples, [`complete`], names for shell completion, and [`advice`], the
//!   next step after an error.
//!
//! No code outside this folder depends on the system.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(windows)]
mod windows;

#[cfg(target_os = "linux")]
pub use linux::*;
#[cfg(windows)]
pub use windows::*;
