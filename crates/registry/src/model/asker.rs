//! Who asks, seen from the partition that owns the registry.

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

/// Who asks, seen from the partition that owns the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker<'a> {
    /// A process in that partition, where users and groups are known.
    Process(&'a Principal),
    /// A process in one of its children. Users mean nothing across that border, so the child as a
    /// whole is judged.
    Child {
        /// The child's name.
        name: &'a PartitionName,
        /// The child's id.
        id: VmId,
        /// The sibling groups that the child is in.
        groups: &'a [String],
    },
}

impl Principal {
    /// Whether an entry of a `users` list means this process's user.
    ///
    /// Digits are an id and never a name, so that nobody gets access by the name that he took.
    pub(super) fn is_user(&self, entry: &str) -> bool {
        entry == "*"
            || match entry.parse::<u32>() {
                Ok(uid) => uid == self.uid,
                Err(_) => self.user.as_deref() == Some(entry),
            }
    }

    /// Whether an entry of a `groups` list means one of this process's groups.
    pub(super) fn is_in_group(&self, entry: &str) -> bool {
        let id = entry.parse::<u32>();
        entry == "*"
            || self.groups.iter().any(|(gid, name)| match id {
                Ok(id) => id == *gid,
                Err(_) => name.as_deref() == Some(entry),
            })
    }
}

/// Whether an entry of a `partitions` list means this child.
pub(super) fn is_child(entry: &str, name: &PartitionName, id: VmId, groups: &[String]) -> bool {
    /// The digits of a GUID in its shortest spelling.
    const GUID_DIGITS: usize = 32;
    match entry.strip_prefix('@') {
        Some(group) => groups.iter().any(|g| g == group),
        None => {
            entry == "*"
                || entry.eq_ignore_ascii_case(name.as_str())
                || entry.len() >= GUID_DIGITS && entry.parse() == Ok(id)
        }
    }
}
