//! Snapshots: a [`Fabric`](crate::Fabric) as a value that another process, of this release or another,
//! makes it again from.
//!
//! For a live upgrade the old broker sends its snapshots and descriptors to the new one. For crash
//! recovery a broker stores them and the next one reads them.
//!
//! # What is in it
//!
//! The partition tree with keys, states and groups; the registry of each partition, leases included;
//! all listeners and connections; the numbers of the next ids, so that no key or id is used twice; and
//! the effects that were not polled. All tables are sorted, so equal fabrics have equal snapshots. Not
//! in it: the [`Limits`](crate::Limits) and [`Operators`](crate::Operators), which are passed in again,
//! and indexes and bindings, which follow from the rest. It has no times.
//!
//! # Reading it
//!
//! A snapshot may come from another release, or be damaged. `restore` checks everything that the fabric
//! relies on, never panics, and never exceeds the limits. Then it checks all listeners and connections
//! against the registries, as after a change: what the rules of this release do not allow is closed,
//! with an effect. Nobody but the owner of the process may write a snapshot: one that passes all checks
//! still decides who is connected. The memory for reading one is proportional to its length, which the
//! reader limits.
//!
//! # Compatibility
//!
//! - The data types of the snapshot are separate from those of the fabric. A change of the fabric's state
//!   does not compile until it is in the snapshot, or left out on purpose.
//! - The version is the first field. One that a release does not know is refused, with both versions in
//!   the error, before any other field is read.
//! - Unknown fields are ignored (no `deny_unknown_fields`). So a release may add a field without a new
//!   version if older releases may ignore it and `#[serde(default)]` is right for snapshots without it.
//!   Such a snapshot is read by older releases as well: a downgrade works.
//! - Any other change makes a new version. The release that makes it reads the version before, too
//!   (`#[serde(default)]`, or a type of its own and a conversion), and can write it, for a downgrade.
//! - `tests/snapshots/` has an example of each version, which a test restores.

mod error;
mod records;
mod registry;
mod restore;

pub use error::SnapshotError;
pub use records::{FABRIC_SNAPSHOT_VERSION, FabricSnapshot, PartitionKeySnapshot};
