//! Freeze and thaw, the guest's half.
//!
//! [`mounts`] is which filesystems there are to freeze, [`course`] what happens when.

pub mod course;
pub mod mounts;
