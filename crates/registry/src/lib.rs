//! The registry of a partition: which services its owner allows, and to whom.
//!
//! [`model`] holds the registrations as plain values with the decisions that follow from them, and
//! does no I/O; the fabric stands on it. [`reg_file`] carries registrations to and from Windows, as
//! text that its registry editor takes and gives.
//!
//! With the feature `store` there is also `store`: the folder of TOML files that a broker keeps
//! its registrations in, and what it is made of, for a broker's other files: `folder` (opening and
//! reading what nobody else may write), `atomic_file` (writing so that a crash leaves the old file
//! or the new one), `lock` and `toml_problem` (what is wrong with a file, and where).

#![forbid(unsafe_code)]

#[cfg(feature = "store")]
pub mod atomic_file;
#[cfg(feature = "store")]
pub mod folder;
#[cfg(feature = "store")]
pub mod lock;
pub mod model;
pub mod reg_file;
#[cfg(feature = "store")]
pub mod store;
mod text;
#[cfg(feature = "store")]
pub mod toml_problem;

pub use model::{
    AccessRule, Action, Asker, Clash, Decision, Defaults, Override, Policy, Principal,
    Registration, Registry, Rule, UnknownService,
};
