//! Who asks, and from where.

use hvsock_address::{PartitionName, VmId};

/// The process that asks, as its kernel vouches for it; nothing in it comes from a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Principal {
    /// Its user id.
    pub uid: u32,
    /// Its user's name, where there is one.
    pub user: Option<String>,
    /// Its groups: the ids with their names, where there are any.
    pub groups: Vec<(u32, Option<String>)>,
}

/// Where the asker is, seen from the partition that owns the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side<'a> {
    /// In that partition itself: users and groups are known by the same names there.
    Own,
    /// In one of its children, whose users mean nothing here: the partition as a whole is judged.
    Child {
        /// The child's name.
        name: &'a PartitionName,
        /// The child's id.
        id: VmId,
        /// The sibling groups that the child is in.
        groups: &'a [String],
    },
}
