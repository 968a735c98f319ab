//! The process or other partition that makes a request, as the owner of the registry sees it.

use hvsock_address::{PartitionName, VmId};

/// The entry of a `partitions` list for the parent of the owner, which no child can have as its name.
pub const PARENT: &str = "parent";

/// The credentials of a process. The kernel reports them; nothing comes from a message.
#[doc(alias = "credentials")]
#[doc(alias = "SO_PEERCRED")]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Principal {
    /// The effective user id.
    pub uid: u32,
    /// The user's name, if the user database has one.
    pub user: Option<String>,
    /// The ids of all groups, each with its name if the group database has one.
    pub groups: Vec<(u32, Option<String>)>,
    /// The user id inside the process's own partition, as the user namespace of that partition maps
    /// it. `None` if it has none there, or if that is unknown.
    pub partition_uid: Option<u32>,
}

/// The subject of an access decision, relative to the partition that owns the registry.
#[doc(alias = "subject")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requester<'a> {
    /// A process in that partition, where users and groups are known.
    Process(&'a Principal),
    /// A process in another partition: a child, a container in a child, or the parent of the owner. User
    /// ids of another partition have no meaning in this one, so rules apply to the partition as a whole.
    Partition {
        /// The partition.
        own: PartitionIdentity<'a>,
        /// The child of the owner that the partition is a container in. What a registry says about a
        /// virtual machine is also said about the containers in it.
        vm: Option<PartitionIdentity<'a>>,
        /// Whether the process is root in its partition. It matters to a listener only.
        is_root: bool,
    },
}

/// A partition as the entries of a list name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionIdentity<'a> {
    /// The name.
    pub name: &'a PartitionName,
    /// The id.
    pub id: VmId,
    /// The sibling groups.
    pub groups: &'a [String],
    /// Whether it is the parent of the partition that owns the registry: the host of a virtual machine.
    pub is_parent: bool,
}

impl Principal {
    /// Whether the process is root in its own partition.
    pub fn is_partition_root(&self) -> bool {
        self.partition_uid == Some(0)
    }

    /// Whether an entry of a `users` list matches this process's user.
    ///
    /// Digits are always an id, never a name: a numeric user name gives no access.
    pub(super) fn is_user(&self, entry: &str) -> bool {
        entry == "*"
            || match entry.parse::<u32>() {
                Ok(uid) => uid == self.uid,
                Err(_) => self.user.as_deref() == Some(entry),
            }
    }

    /// Whether an entry of a `groups` list matches one of this process's groups.
    pub(super) fn is_in_group(&self, entry: &str) -> bool {
        let id = entry.parse::<u32>();
        entry == "*"
            || self.groups.iter().any(|(gid, name)| match id {
                Ok(id) => id == *gid,
                Err(_) => name.as_deref() == Some(entry),
            })
    }
}

impl PartitionIdentity<'_> {
    /// Whether an entry of a `partitions` list matches this partition.
    pub(super) fn is(&self, entry: &str) -> bool {
        /// The number of hexadecimal digits of a GUID in its shortest spelling.
        const GUID_DIGITS: usize = 32;
        match entry.strip_prefix('@') {
            Some(group) => self.groups.iter().any(|g| g == group),
            None => {
                entry == "*"
                    || self.is_parent && entry.eq_ignore_ascii_case(PARENT)
                    || entry.eq_ignore_ascii_case(self.name.as_str())
                    || entry.len() >= GUID_DIGITS && entry.parse() == Ok(self.id)
            }
        }
    }
}
