//! The state of a Hyper-V machine, and explanations of connects and listens derived from it.
//!
//! On Windows the kernel is the broker: it makes the connections, and a refused connect gets only a
//! Winsock error number. This crate collects the rest: the registered services, the virtual
//! machines and their states, and the policies that disable a service for one of them. [`Facts`]
//! holds all of it. [`Facts::explain_connect`] and [`Facts::explain_listen`] evaluate it with the
//! same fabric as a broker on Linux, so the verdicts have the same wording.
//! [`refusal`](fn@refusal) translates an error number to a refusal.
//!
//! This part is portable and tested on every system. On Windows there are also `facts`, which
//! queries the system; `registry_facts`, which does not wait; `virtual_machines`; `machine`; and
//! `set_policy`. All of them have a time limit, however long Windows takes.
//!
//! WMI needs COM. If the process has not chosen its COM security before the first query, it gets
//! the default. A program that needs another one calls `CoInitializeSecurity` first.

#![forbid(unsafe_code)]

#[cfg(any(windows, test))]
mod embedded;
mod explain;
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

pub use facts::Facts;
pub use hcs::{ParseComputeSystemsError, compute_systems};
pub use machine::{Guest, Machine};
pub use missing::Missing;
pub use name::{AmbiguousVm, FindVmError, UnknownVm, find_vm, partition_names};
pub use policy::{ServicePolicy, Switch};
pub use refusal::refusal;
pub use vm::{Vm, VmKind, VmState};
#[cfg(windows)]
pub use windows::{PolicyError, facts, machine, registry_facts, set_policy, virtual_machines};

/// Threads may share every public type.
const _: () = {
    const fn assert_send_sync<T: Send + Sync>() {}
    assert_send_sync::<Facts>();
    assert_send_sync::<FindVmError>();
    assert_send_sync::<Guest>();
    assert_send_sync::<Machine>();
    assert_send_sync::<Missing>();
    assert_send_sync::<ParseComputeSystemsError>();
    assert_send_sync::<ServicePolicy>();
    assert_send_sync::<Vm>();
};
