//! The service registry of a partition: which services exist, and who may listen and connect.
//!
//! [`model`] holds registrations as plain values and makes access decisions from them. It does no I/O;
//! the fabric is built on it. [`reg_file`] converts registrations to and from `.reg` files, the text
//! format of the Windows registry editor.
//!
//! The feature `store` adds persistent storage for each operating system.
//!
//! `store::RegistrationStore` is what every store does.
//!
//! On Linux, `store::FolderStore` keeps a broker's registrations in a directory of TOML files. The
//! modules that it is built from also serve the broker's other files: `entry_folder` (a directory of
//! TOML files, one entry each, which others may edit), `folder` (directories that only their owner may
//! write), `atomic_file` (crash-safe replacement of a file), `lock` (an inter-process lock) and
//! `toml_problem` (TOML errors with line and column).
//!
//! On Windows, `key_store` keeps registrations in the system registry. [`keys`] defines the meaning of
//! its keys and plans changes to them. [`keys`] does no I/O and is also built on Linux.

#![forbid(unsafe_code)]

mod entry;
#[cfg(all(feature = "fuzzing", target_os = "linux"))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "store")]
pub mod keys;
#[cfg(all(feature = "store", target_os = "linux"))]
mod linux;
pub mod model;
pub mod reg_file;
#[cfg(feature = "store")]
pub mod store;
mod text;
#[cfg(all(feature = "store", windows))]
mod windows;

#[cfg(all(feature = "store", target_os = "linux"))]
pub use linux::{atomic_file, entry_folder, folder, lock, toml_problem};
#[cfg(all(feature = "store", windows))]
pub use windows::key_store;

pub use model::{
    AccessEdit, AccessRule, Action, Clash, Decision, Defaults, Edit, EditError, EffectiveAccess,
    EffectiveFlag, EffectiveRules, EffectiveTransport, Inherited, Override, PARENT,
    PartitionIdentity, Policy, Principal, Registration, Registry, Requester, Rule, RuleSource,
    Subject, TransportSetting, UnknownService,
};
