//! The registry of a partition: which services its owner allows, and to whom.
//!
//! [`model`] holds the registrations as plain values with the decisions that follow from them, and
//! does no I/O; the fabric stands on it. [`reg_file`] carries registrations to and from Windows, as
//! text that its registry editor takes and gives.
//!
//! With the feature `store` there is also what keeps them, a folder per operating system.
//!
//! On Linux `store` is the folder of TOML files that a broker keeps its registrations in; and there is
//! what it is made of, for a broker's other files: `folder` (opening and reading what nobody else may
//! write), `atomic_file` (writing so that a crash leaves the old file or the new one), `lock` and
//! `toml_problem` (what is wrong with a file, and where).
//!
//! On Windows `key_store` is the registry of the system; what its keys mean and how they are changed is
//! in [`keys`], which does no I/O and is there on Linux, too.

#![forbid(unsafe_code)]

mod entry;
#[cfg(feature = "store")]
pub mod keys;
#[cfg(all(feature = "store", target_os = "linux"))]
mod linux;
pub mod model;
pub mod reg_file;
mod text;
#[cfg(all(feature = "store", windows))]
mod windows;

#[cfg(all(feature = "store", target_os = "linux"))]
pub use linux::{atomic_file, folder, lock, store, toml_problem};
#[cfg(all(feature = "store", windows))]
pub use windows::key_store;

pub use model::{
    AccessRule, Action, Asker, Clash, Decision, Defaults, Override, Policy, Principal,
    Registration, Registry, Rule, UnknownService,
};
