//! Persistent state: the registrations, and the partitions that the broker keeps on disk.
//!
//! A store's lock serialises every change to its storage and to the core's copy of it. The holder
//! updates both before it unlocks, so they differ only during a change.

mod partition_entry;
mod partitions;
mod services;
mod vm;

#[cfg(feature = "fuzzing")]
pub(crate) use partition_entry::PartitionKinds;
pub(crate) use partition_entry::{PartitionClash, PartitionEntry};
pub(crate) use partitions::{PartitionFiles, PartitionStep, PartitionStore, PutResult};
pub(crate) use services::{ServiceStore, ServiceStoreGuard};
pub(crate) use vm::{CidKey, CidSpace, VmEntry, VmmUser, check_spec, hybrid_path};
