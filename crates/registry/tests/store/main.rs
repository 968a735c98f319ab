//! The folder store: loading, watching, writing, faults and scale.

#![cfg(target_os = "linux")]

mod built_in;
mod faults;
mod levels;
mod many;
mod random;
mod reading;
mod watching;
mod writing;

use std::fs;
use std::path::{Path, PathBuf};

use hvsock_address::{ElementName, PartitionName, ServiceId};
use hvsock_registry::Registration;
use hvsock_registry::store::{Change, Entry, FolderStore, LoadReport, Origin, RegistrationStore};

/// A temporary configuration directory.
struct Config {
    dir: tempfile::TempDir,
}

impl Config {
    fn new() -> Self {
        Self::new_in(&std::env::temp_dir())
    }

    fn new_in(folder: &Path) -> Self {
        // Handwritten files must not be writable by others, whatever the umask.
        rustix::process::umask(0o022.into());
        let mut builder = tempfile::Builder::new();
        let dir = builder.prefix("hv").tempdir_in(folder).unwrap();
        fs::create_dir(dir.path().join("services")).unwrap();
        Self { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn services(&self) -> PathBuf {
        self.path().join("services")
    }

    fn file(&self, id: ServiceId) -> PathBuf {
        self.services().join(format!("{id}.toml"))
    }

    /// Writes a file by hand.
    fn write(&self, id: ServiceId, text: &str) {
        fs::write(self.file(id), text).unwrap();
    }

    fn read(&self, id: ServiceId) -> String {
        fs::read_to_string(self.file(id)).unwrap()
    }

    fn open(&self) -> (FolderStore, LoadReport) {
        FolderStore::open(self.path()).unwrap()
    }

    /// Opens the store, which must have no problems.
    fn store(&self) -> FolderStore {
        let (store, report) = self.open();
        assert_eq!(report.problems, []);
        store
    }

    /// The file names in the folder, without the lock.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.services()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != ".lock")
            .collect();
        names.sort();
        names
    }
}

fn id(port: u32) -> ServiceId {
    ServiceId::from_port(port)
}

fn partition(name: &str) -> PartitionName {
    PartitionName::new(name).unwrap()
}

fn registration(port: u32, name: &str) -> Registration {
    Registration::new(id(port), ElementName::new(name).unwrap())
}

fn owned(port: u32, name: &str, owner: &str, creator: &str) -> Registration {
    Registration {
        owner: Some(owner.to_owned()),
        creator: Some(creator.to_owned()),
        ..registration(port, name)
    }
}

/// The names of the registrations in force.
fn names(store: &FolderStore) -> Vec<&str> {
    let all = store.registrations().into_iter();
    all.map(|r| r.name.as_str()).collect()
}

/// A registration that has a file.
fn stored(config: &Config, registration: Registration) -> Box<Entry> {
    let origin = Origin::Stored(config.file(registration.id));
    Box::new(Entry {
        registration,
        origin,
    })
}

fn added(config: &Config, registration: Registration) -> Change {
    Change::Added(stored(config, registration))
}

fn updated(config: &Config, registration: Registration) -> Change {
    Change::Updated(stored(config, registration))
}

/// A directory in memory if possible, to avoid load on a shared disk.
fn scratch() -> PathBuf {
    let in_memory = Some(PathBuf::from("/dev/shm")).filter(|folder| folder.is_dir());
    in_memory.unwrap_or_else(std::env::temp_dir)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
