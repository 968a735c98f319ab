//! The code that depends on the operating system: a folder for each system, with one interface:
//!
//! - [`BrokerArgs`], the options that select a broker, and [`Client`], its client;
//! - [`Command`], the subcommands of this system only, [`Vm`], the subcommands of `vm`, and
//!   [`run_internal`], the internal commands with which this program starts itself;
//! - [`Partition`], a partition on the command line, and [`ExplainAs`], the option of `why` that
//!   selects the partition that connects;
//! - [`Rules`], the options of access rules, and constants for the supported data;
//! - [`Activation`], the option of `listen` for a command that takes its socket from a service manager;
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
