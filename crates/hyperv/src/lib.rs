//! What a Windows machine says of itself, and what that means for a connect or listen.
//!
//! On Windows the system is the broker: its kernel makes the connections, and answers a connect
//! that it turns down with one number. Everything else has to be asked for: which services are
//! registered, which virtual machines there are and whether they run, for which of them a service
//! is switched off. [`Facts`] is all of that as plain values; [`Facts::explain_connect`] and
//! [`Facts::explain_listen`] put it before the same judge as a broker on Linux does, so that the
//! verdict comes in the same words, and [`refusal`] reads the numbers of Windows backwards by it.
//!
//! This half is the same on every system and is tested on all of them. On Windows there are also
//! `facts`, which asks, `facts_at_hand` for those who cannot wait, `virtual_machines`, `machine` and
//! `set_policy`. All of that takes a bounded time, however long Windows takes.
//!
//! Asking WMI takes COM: where the process has not chosen its security for COM, it has the default
//! one from then on, so a program that wants another calls `CoInitializeSecurity` before.

#![forbid(unsafe_code)]

#[cfg(any(windows, test))]
mod embedded;
mod explanation;
mod facts;
mod hcs;
mod machine;
mod missing;
mod name;
mod policy;
mod refusal;
#[cfg(any(windows, test))]
mod rows;
mod view;
mod vm;
#[cfg(windows)]
mod windows;

pub use explanation::{Explanation, Outlook};
pub use facts::Facts;
pub use hcs::{ParseComputeSystemsError, compute_systems};
pub use machine::{Guest, Machine};
pub use missing::Missing;
pub use name::{AmbiguousVm, FindVmError, UnknownVm, find_vm, partition_names};
pub use policy::{ServicePolicy, Switch};
pub use refusal::refusal;
pub use vm::{Vm, VmKind, VmState};
#[cfg(windows)]
pub use windows::{PolicyError, facts, facts_at_hand, machine, set_policy, virtual_machines};
