//! The folders of removed containers.
//!
//! The folder of a container's endpoint is mounted into it. If the container still runs when it is added
//! again, its mount leads to the old folder, so that one is kept and gets the new endpoint. Under another
//! id the container is another one, and must not be reachable through the mount of the old one.
//!
//! Whose a folder is must be known after a restart of the broker, too. So the id of each is kept in a record
//! beside the folders ([`folders::records`](crate::folders::records)).

pub(super) mod snapshot;

use std::collections::VecDeque;

use hvsock_address::VmId;

/// The most folders that are kept. The oldest one is removed when there is one more.
const MAX_FOLDERS: usize = 1024;

/// The folders of removed containers by name, oldest first.
#[derive(Debug, Default)]
pub(super) struct LeftFolders(VecDeque<(String, VmId)>);

/// What to do with an existing folder of a container that is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExistingFolder {
    /// It is this container's.
    Keep,
    /// It was another container's of this name.
    Replace,
}

impl LeftFolders {
    /// The folders that there are when the broker starts, oldest first. Returns also the names of those to
    /// remove, because there are too many.
    pub(super) fn restore(records: Vec<(String, VmId)>) -> (Self, Vec<String>) {
        let mut folders = VecDeque::from(records);
        let surplus = folders.len().saturating_sub(MAX_FOLDERS);
        let removed = folders.drain(..surplus).map(|(name, _)| name).collect();
        (Self(folders), removed)
    }

    /// Records the folder of a removed container. Returns the name of the one to remove instead, if
    /// there are too many.
    pub(super) fn leave(&mut self, name: String, id: VmId) -> Option<String> {
        self.0.retain(|(known, _)| *known != name);
        self.0.push_back((name, id));
        match self.0.len() > MAX_FOLDERS {
            true => self.0.pop_front().map(|(oldest, _)| oldest),
            false => None,
        }
    }

    /// What to do with the folder of a container that is added.
    pub(super) fn find(&self, name: &str, id: VmId) -> ExistingFolder {
        let known = self.0.iter().find(|(known, _)| known == name);
        match known {
            Some((_, known)) if *known != id => ExistingFolder::Replace,
            _ => ExistingFolder::Keep,
        }
    }

    /// Records that the folder of this name is in use.
    pub(super) fn take(&mut self, name: &str) {
        self.0.retain(|(known, _)| known != name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_kept_for_the_container_with_the_same_name_and_id_only() {
        let (one, other) = (VmId::of_container("one"), VmId::of_container("other"));
        let (mut left, _) = LeftFolders::restore(vec![("db".into(), other)]);
        assert_eq!(left.find("db", one), ExistingFolder::Replace);
        assert_eq!(left.find("web", one), ExistingFolder::Keep);
        assert_eq!(left.leave("web".into(), one), None);
        assert_eq!(left.find("web", one), ExistingFolder::Keep);
        assert_eq!(left.find("web", other), ExistingFolder::Replace);
        left.take("web");
        assert_eq!(left.find("web", other), ExistingFolder::Keep);
    }

    #[test]
    fn the_oldest_of_too_many_folders_is_removed() {
        let mut left = LeftFolders::default();
        let id = VmId::of_container("web");
        for number in 0..MAX_FOLDERS {
            assert_eq!(left.leave(number.to_string(), id), None);
        }
        // The folder of a name that was left before is the newest again.
        assert_eq!(left.leave("0".into(), id), None);
        assert_eq!(left.leave("more".into(), id).as_deref(), Some("1"));
        let records = (0..MAX_FOLDERS + 2).map(|number| (number.to_string(), id));
        let (left, removed) = LeftFolders::restore(records.collect());
        assert_eq!(
            (left.0.len(), removed),
            (MAX_FOLDERS, vec!["0".into(), "1".into()])
        );
    }
}
