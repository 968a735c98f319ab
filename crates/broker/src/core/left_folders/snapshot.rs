//! The snapshot of the folders of removed containers. [`crate::handover::snapshot`] describes its format.

use std::collections::{HashSet, VecDeque};

use hvsock_address::{PartitionName, VmId};
use serde::{Deserialize, Serialize};

use super::{LeftFolders, MAX_FOLDERS};
use crate::handover::snapshot::{SnapshotError, check_limit, check_version, ensure, read_version};

/// The version of [`LeftFoldersSnapshot`] that this release writes.
const LEFT_FOLDERS_SNAPSHOT_VERSION: u32 = 1;

/// The folders, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::core) struct LeftFoldersSnapshot {
    #[serde(deserialize_with = "read_version::<_, LEFT_FOLDERS_SNAPSHOT_VERSION>")]
    version: u32,
    folders: Vec<FolderSnapshot>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FolderSnapshot {
    /// The name of the container.
    name: PartitionName,
    /// And its id.
    id: VmId,
}

impl LeftFolders {
    /// The folders as a value.
    pub(in crate::core) fn snapshot(&self) -> LeftFoldersSnapshot {
        let Self(folders) = self;
        let folders = folders.iter().filter_map(|(name, id)| {
            // Only a partition's name becomes the name of a folder.
            let name = PartitionName::new(name.as_str()).ok()?;
            Some(FolderSnapshot { name, id: *id })
        });
        LeftFoldersSnapshot {
            version: LEFT_FOLDERS_SNAPSHOT_VERSION,
            folders: folders.collect(),
        }
    }

    /// The folders of a snapshot.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] for another version, for too many folders, and for one that occurs twice.
    pub(in crate::core) fn of_snapshot(
        snapshot: LeftFoldersSnapshot,
    ) -> Result<Self, SnapshotError> {
        let LeftFoldersSnapshot { version, folders } = snapshot;
        check_version(version, LEFT_FOLDERS_SNAPSHOT_VERSION)?;
        check_limit("folders", folders.len(), MAX_FOLDERS)?;
        let mut seen = HashSet::new();
        let mut restored = VecDeque::new();
        for FolderSnapshot { name, id } in folders {
            let is_new = seen.insert(name.to_string());
            ensure(is_new, "a folder occurs twice")?;
            restored.push_back((name.to_string(), id));
        }
        Ok(Self(restored))
    }
}
