//! The files that say which container of a runtime is bound to which partition, in the run folder.
//!
//! A number of a process means nothing without its start time, and that nothing after a restart of the
//! system, so a file has all three. What a file says is believed only after the process was looked at again.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use hvsock_address::{PartitionName, VmId};
use hvsock_endpoint::Dirs;
use hvsock_registry::atomic_file;
use hvsock_registry::folder::Folder;
use hvsock_sys::pidfd::{self, Process, ProcessId};
use serde::{Deserialize, Serialize};

/// Maximum bytes of a file: an id has at most 1 KiB.
const MAX_FILE: u64 = 16 << 10;
const EXTENSION: &str = "json";

/// The folder of these files.
#[derive(Debug)]
pub(crate) struct BindingFiles {
    folder: PathBuf,
}

/// What is kept of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// The container of a runtime that is bound to it.
    Bound {
        oci_id: String,
        process: ProcessId,
        /// Whether one may be started without being bound.
        optional: bool,
    },
    /// One was bound, and its runtime has removed it.
    Released,
}

/// What a file says about a container, after a look at the process.
#[derive(Debug)]
pub(crate) enum Found {
    /// Nothing that is true of this container.
    Nothing,
    /// A container that was bound before and is not there.
    Released,
    /// A container that runs.
    Runs { oci_id: String, process: Process },
    /// A container whose first process has ended.
    Ended { oci_id: String, process: ProcessId },
}

#[derive(Serialize, Deserialize)]
struct Record {
    /// The partition. Another one may have its name by now.
    partition: VmId,
    #[serde(default)]
    bound: Option<BoundRecord>,
}

#[derive(Serialize, Deserialize)]
struct BoundRecord {
    oci_id: String,
    pid: u32,
    started: u64,
    boot: String,
    #[serde(default)]
    optional: bool,
}

impl BindingFiles {
    /// The files of the broker with these folders.
    pub(crate) fn new(dirs: &Dirs) -> Self {
        Self {
            folder: dirs.bindings(),
        }
    }

    fn path(&self, name: &PartitionName) -> PathBuf {
        self.folder.join(file_name(name))
    }

    /// Keeps what is known of a container.
    ///
    /// # Errors
    ///
    /// If the folder cannot be used or the file cannot be written.
    pub(crate) fn keep(&self, name: &PartitionName, id: VmId, kept: &Kept) -> io::Result<()> {
        let bound = match kept {
            Kept::Released => None,
            Kept::Bound {
                oci_id,
                process,
                optional,
            } => Some(BoundRecord {
                oci_id: oci_id.clone(),
                pid: process.pid,
                started: process.started,
                boot: pidfd::boot_id()?,
                optional: *optional,
            }),
        };
        let record = Record {
            partition: id,
            bound,
        };
        let bytes = serde_json::to_vec(&record)?;
        let folder = Folder::open_or_create(&self.folder).map_err(io::Error::other)?;
        folder.set_mode(0o700)?;
        let name = file_name(name);
        let written = atomic_file::write(&folder, name.as_ref(), &bytes, 0o600);
        written.map(drop).map_err(io::Error::other)
    }

    /// Removes the file of a container, if it has one.
    pub(crate) fn forget(&self, name: &PartitionName) {
        let path = self.path(name);
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "cannot remove {}", path.display());
        }
    }

    /// What is true of a container of what its file says.
    pub(crate) fn find(&self, name: &PartitionName, id: VmId) -> Found {
        let path = self.path(name);
        let record = match read(&path) {
            Ok(Some(record)) if record.partition == id => record,
            Ok(_) => return Found::Nothing,
            Err(error) => {
                tracing::warn!(%error, "cannot read {}", path.display());
                return Found::Nothing;
            }
        };
        let Some(bound) = record.bound else {
            return Found::Released;
        };
        match bound.look() {
            Ok(Look::Runs(process)) => Found::Runs {
                oci_id: bound.oci_id,
                process,
            },
            // Another one may have been started meanwhile.
            Ok(Look::Ended | Look::OtherBoot) if bound.optional => Found::Nothing,
            Ok(Look::Ended) => Found::Ended {
                process: bound.process(),
                oci_id: bound.oci_id,
            },
            Ok(Look::OtherBoot) => Found::Released,
            Err(error) => {
                let pid = bound.pid;
                tracing::warn!(%error, "cannot look at the process {pid} of the container {name}");
                Found::Nothing
            }
        }
    }

    /// Removes the files of containers that are gone and that `is_known` does not know: a container that runs
    /// may be added again.
    pub(crate) fn remove_unknown(&self, is_known: impl Fn(&str) -> bool) {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            let is_ours = path
                .extension()
                .is_some_and(|extension| extension == EXTENSION);
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            if is_ours && !stem.is_some_and(&is_known) && !runs(&path) {
                let _ = fs::remove_file(&path);
            }
        }
    }

    /// Removes the file of a removed container that does not run. One that runs may be added again.
    pub(crate) fn leave(&self, name: &PartitionName) {
        let path = self.path(name);
        if path.exists() && !runs(&path) {
            self.forget(name);
        }
    }
}

/// What became of the process of a binding.
enum Look {
    Runs(Process),
    Ended,
    /// The system was restarted.
    OtherBoot,
}

impl BoundRecord {
    fn process(&self) -> ProcessId {
        ProcessId {
            pid: self.pid,
            started: self.started,
        }
    }

    fn look(&self) -> io::Result<Look> {
        if pidfd::boot_id()? != self.boot {
            return Ok(Look::OtherBoot);
        }
        Ok(match Process::find(self.process())? {
            Some(process) => Look::Runs(process),
            None => Look::Ended,
        })
    }
}

/// Names of partitions differ in more than case.
fn file_name(name: &PartitionName) -> String {
    format!("{}.{EXTENSION}", name.as_str().to_ascii_lowercase())
}

/// Whether the container of a file runs.
fn runs(path: &Path) -> bool {
    let bound = read(path).ok().flatten().and_then(|record| record.bound);
    bound.is_some_and(|bound| matches!(bound.look(), Ok(Look::Runs(_))))
}

/// The record in a file; `None` if there is no file.
fn read(path: &Path) -> io::Result<Option<Record>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(Some(serde_json::from_slice(&bytes)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture() -> (tempfile::TempDir, BindingFiles, PartitionName, VmId) {
        let folder = tempfile::tempdir().unwrap();
        let files = BindingFiles {
            folder: folder.path().join("bindings"),
        };
        let name = PartitionName::new("Web").unwrap();
        (folder, files, name, VmId::of_container("web"))
    }

    fn own() -> ProcessId {
        let own = Process::open(std::process::id()).unwrap();
        own.id().unwrap().unwrap()
    }

    fn bound(process: ProcessId, optional: bool) -> Kept {
        Kept::Bound {
            oci_id: "a1".to_owned(),
            process,
            optional,
        }
    }

    #[test]
    fn a_binding_is_believed_only_while_its_very_process_runs() {
        let (_folder, files, name, id) = fixture();
        assert!(matches!(files.find(&name, id), Found::Nothing));
        files.keep(&name, id, &bound(own(), false)).unwrap();
        let Found::Runs { oci_id, process } = files.find(&name, id) else {
            panic!("it runs");
        };
        assert_eq!(
            (oci_id.as_str(), process.id().unwrap()),
            ("a1", Some(own()))
        );
        // The partition of another container with the same name.
        assert!(matches!(
            files.find(&name, VmId::of_container("other")),
            Found::Nothing
        ));
        // Another process has the number by now.
        let recycled = ProcessId {
            started: own().started + 1,
            ..own()
        };
        files.keep(&name, id, &bound(recycled, false)).unwrap();
        assert!(matches!(files.find(&name, id), Found::Ended { .. }));
        files.keep(&name, id, &bound(recycled, true)).unwrap();
        assert!(matches!(files.find(&name, id), Found::Nothing));
        // The system was restarted: number and start may be those of any process.
        let path = files.path(&name);
        files.keep(&name, id, &bound(own(), false)).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let boot = pidfd::boot_id().unwrap();
        fs::write(&path, text.replace(&boot, "another")).unwrap();
        assert!(matches!(files.find(&name, id), Found::Released));
        files.keep(&name, id, &Kept::Released).unwrap();
        assert!(matches!(files.find(&name, id), Found::Released));
        files.forget(&name);
        files.forget(&name);
        assert!(matches!(files.find(&name, id), Found::Nothing));
    }

    #[test]
    fn a_file_with_anything_else_in_it_says_nothing() {
        let (_folder, files, name, id) = fixture();
        files.keep(&name, id, &Kept::Released).unwrap();
        let path = files.path(&name);
        let good = format!("{{\"partition\":\"{id}\",\"bound\":");
        let long = "x".repeat(1 << 20);
        for odd in ["", "{", "[]", "null", &long, &format!("{good}7}}")] {
            fs::write(&path, odd).unwrap();
            assert!(matches!(files.find(&name, id), Found::Nothing), "{odd:.20}");
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(files.find(&name, id), Found::Nothing));
    }

    #[test]
    fn only_the_file_of_a_removed_container_that_runs_is_left() {
        let (_folder, files, name, id) = fixture();
        let gone = ProcessId {
            started: own().started + 1,
            ..own()
        };
        let db = PartitionName::new("db").unwrap();
        files.keep(&name, id, &bound(own(), false)).unwrap();
        files.keep(&db, id, &bound(gone, false)).unwrap();
        files.leave(&name);
        files.leave(&db);
        assert!(files.path(&name).exists() && !files.path(&db).exists());
        files.keep(&db, id, &Kept::Released).unwrap();
        files.remove_unknown(|stem| stem == "db");
        assert!(files.path(&name).exists() && files.path(&db).exists());
        files.remove_unknown(|_| false);
        assert!(files.path(&name).exists() && !files.path(&db).exists());
    }
}
