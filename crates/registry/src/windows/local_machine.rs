//! The registry keys under `HKEY_LOCAL_MACHINE` as a [`KeyBackend`].

use std::io;
use std::time::Duration;

use hvsock_sys::{named_mutex, process, registry};
use windows_registry::{Key, LOCAL_MACHINE, Type};

use crate::keys::{
    self, KeyBackend, KeyError, KeyLocation, KeyStep, LeaseHolder, MAX_SERVICES, MAX_TOTAL,
    MAX_VALUE, MAX_VALUES, ProcessState, RawKey, RawValue, Snapshot,
};

/// `KEY_WOW64_64KEY` (winnt.h): selects the 64-bit view, for 32-bit programs too.
const VIEW: u32 = 0x100;
/// `KEY_SET_VALUE` and `KEY_CREATE_SUB_KEY` (winnt.h). Only the needed rights are requested: a user
/// who may register services need not own the key.
const SET_VALUE: u32 = 0x2;
const CREATE_SUB_KEY: u32 = 0x4;
/// `ERROR_FILE_NOT_FOUND` (winerror.h): the key or value does not exist.
const NOT_FOUND: i32 = 2;
/// `ERROR_KEY_DELETED` (winerror.h): the key was deleted while it was open.
const KEY_DELETED: i32 = 1018;

/// How long a write waits for the lock, in seconds.
const LOCK_WAIT: u64 = 5;

/// How often a snapshot is retried because a location changed while it was read.
const SNAPSHOT_ATTEMPTS: usize = 8;

/// Service keys at two locations under `HKEY_LOCAL_MACHINE`.
#[derive(Debug)]
pub struct LocalMachineBackend {
    services: String,
    disabled: String,
    limit: usize,
}

impl LocalMachineBackend {
    /// A backend over these two keys, which need not exist.
    pub fn new(services: &str, disabled: &str) -> Self {
        Self {
            services: services.to_owned(),
            disabled: disabled.to_owned(),
            limit: MAX_SERVICES,
        }
    }

    /// Sets the maximum number of keys that are read at each location.
    pub fn with_limit(self, limit: usize) -> Self {
        Self { limit, ..self }
    }

    fn path(&self, location: KeyLocation) -> &str {
        match location {
            KeyLocation::Services => &self.services,
            KeyLocation::Disabled => &self.disabled,
        }
    }

    fn error(
        &self,
        doing: &'static str,
        location: KeyLocation,
        name: &str,
        error: io::Error,
    ) -> KeyError {
        let slash = if name.is_empty() { "" } else { "\\" };
        let key = format!("HKEY_LOCAL_MACHINE\\{}{slash}{name}", self.path(location));
        KeyError::from_system(doing, key, error)
    }

    /// Opens the key of a location, if it exists.
    fn open_parent(&self, location: KeyLocation) -> io::Result<Option<Key>> {
        let mut options = LOCAL_MACHINE.options();
        if_exists(options.read().access(VIEW).open(self.path(location)))
    }

    fn read_once(&self) -> Result<Snapshot, KeyError> {
        let mut snapshot = Snapshot::default();
        let mut budget = MAX_TOTAL;
        for location in [KeyLocation::Services, KeyLocation::Disabled] {
            let error = |error| self.error("read", location, "", error);
            let Some(parent) = self.open_parent(location).map_err(error)? else {
                continue;
            };
            let names = registry::subkeys(&parent, self.limit).map_err(error)?;
            if names.more {
                snapshot.truncated = true;
                snapshot.problems.push(format!(
                    "HKEY_LOCAL_MACHINE\\{} holds more than {} keys; the others are left out",
                    self.path(location),
                    self.limit
                ));
            }
            let read = names.items.into_iter();
            let read = read.filter_map(|name| read_key(&parent, name, &mut budget));
            match location {
                KeyLocation::Services => snapshot.services.extend(read),
                KeyLocation::Disabled => snapshot.disabled.extend(read),
            }
        }
        Ok(snapshot)
    }

    /// Stamps that change when a key at either location is created or deleted.
    fn stamps(&self) -> Result<[Option<registry::Stamp>; 2], KeyError> {
        let stamp = |location: KeyLocation| {
            let key = self.open_parent(location);
            let stamp = key.and_then(|key| key.as_ref().map(registry::stamp).transpose());
            stamp.map_err(|error| self.error("read", location, "", error))
        };
        Ok([stamp(KeyLocation::Services)?, stamp(KeyLocation::Disabled)?])
    }

    /// Opens the key of a location for creating subkeys. Creates it if it does not exist.
    fn create_parent(&self, location: KeyLocation) -> io::Result<Key> {
        let mut options = LOCAL_MACHINE.options();
        let options = options.read().access(VIEW | CREATE_SUB_KEY).create();
        io_result(options.open(self.path(location)))
    }

    /// Opens a service's key for setting values.
    fn open_service(&self, location: KeyLocation, name: &str) -> io::Result<Key> {
        let mut options = LOCAL_MACHINE.options();
        let options = options.access(VIEW | SET_VALUE);
        io_result(options.open(format!("{}\\{name}", self.path(location))))
    }

    fn create(&self, location: KeyLocation, name: &str, volatile: bool) -> io::Result<()> {
        let parent = self.create_parent(location)?;
        let mut options = parent.options();
        let options = options.read().access(VIEW).create();
        let options = if volatile {
            options.volatile()
        } else {
            options
        };
        io_result(options.open(name)).map(drop)
    }

    fn delete(&self, location: KeyLocation, name: &str) -> io::Result<()> {
        match self.open_parent(location)? {
            Some(parent) => if_exists(parent.remove_tree(name)).map(drop),
            None => Ok(()),
        }
    }

    fn set(&self, location: KeyLocation, name: &str, value: &RawValue) -> io::Result<()> {
        // The bytes are written as they are: Type::Other adds no terminating zero.
        let kind = Type::Other(value.kind);
        let data = match value.data.as_slice() {
            // The pointer of an empty Vec is dangling, and the system call may read from it.
            [] => &[0][..0],
            data => data,
        };
        io_result(
            self.open_service(location, name)?
                .set_bytes(&value.name, kind, data),
        )
    }

    fn rename(&self, location: KeyLocation, from: &str, to: &str) -> io::Result<()> {
        let parent = self.create_parent(location)?;
        match io_result(parent.rename(from, to)) {
            // The system reports "access denied" if a key with that name exists.
            Err(denied) if denied.kind() == io::ErrorKind::PermissionDenied => {
                let taken = if_exists(parent.options().read().access(VIEW).open(to));
                Err(match taken {
                    Ok(Some(_)) => io::ErrorKind::AlreadyExists.into(),
                    _ => denied,
                })
            }
            other => other,
        }
    }
}

impl KeyBackend for LocalMachineBackend {
    type Guard = named_mutex::NamedMutexGuard;

    fn lock(&mut self) -> Result<named_mutex::NamedMutexGuard, KeyError> {
        // A mutex name must not contain a backslash, and it is case-sensitive.
        let name = format!("hvsock {}", self.services.replace('\\', "/").to_lowercase());
        let guard = named_mutex::lock(&name, Duration::from_secs(LOCK_WAIT));
        let guard = guard.map_err(|error| {
            KeyError::from_system("wait for", format!("the mutex Global\\{name}"), error)
        })?;
        guard.ok_or(KeyError::Busy(LOCK_WAIT))
    }

    fn read(&self) -> Result<Snapshot, KeyError> {
        let mut before = self.stamps()?;
        for _ in 0..SNAPSHOT_ATTEMPTS {
            let snapshot = self.read_once()?;
            let after = self.stamps()?;
            if before == after {
                return Ok(snapshot);
            }
            before = after;
        }
        self.read_once()
    }

    fn apply(&mut self, step: &KeyStep) -> Result<(), KeyError> {
        let (doing, location, name, result) = match step {
            KeyStep::Create {
                location,
                name,
                volatile,
            } => (
                "create",
                location,
                name,
                self.create(*location, name, *volatile),
            ),
            KeyStep::Set {
                location,
                name,
                value,
            } => ("write to", location, name, self.set(*location, name, value)),
            KeyStep::Unset {
                location,
                name,
                value,
            } => {
                let key = self.open_service(*location, name);
                let unset = key.and_then(|key| if_exists(key.remove_value(value)));
                ("write to", location, name, unset.map(drop))
            }
            KeyStep::Rename { location, from, to } => {
                ("create", location, to, self.rename(*location, from, to))
            }
            KeyStep::Delete { location, name } => {
                ("remove", location, name, self.delete(*location, name))
            }
        };
        result.map_err(|error| self.error(doing, *location, name, error))
    }

    fn process_state(&self, process: u32) -> ProcessState {
        match process::state(process) {
            process::ProcessState::Gone => ProcessState::Gone,
            process::ProcessState::Since(started) => ProcessState::StartedAt(started),
            process::ProcessState::Unknown => ProcessState::Unknown,
        }
    }

    fn current_process(&self) -> Result<LeaseHolder, KeyError> {
        let started = process::own_start_time();
        let started = started.map_err(|error| {
            KeyError::from_system("read the start time of", "this process", error)
        })?;
        Ok(LeaseHolder {
            process: std::process::id(),
            started,
        })
    }
}

/// Reads a service's key as far as possible. `None` if the key has just been deleted.
fn read_key(parent: &Key, name: String, budget: &mut usize) -> Option<RawKey> {
    let mut read = RawKey {
        name,
        ..RawKey::default()
    };
    if !keys::is_service(&read.name) {
        return Some(read);
    }
    if let Err(error) = read_values(parent, &mut read, budget) {
        if [NOT_FOUND, KEY_DELETED]
            .map(Some)
            .contains(&error.raw_os_error())
        {
            return None;
        }
        read.left_out.push(format!("cannot be read: {error}"));
    }
    Some(read)
}

fn read_values(parent: &Key, read: &mut RawKey, budget: &mut usize) -> io::Result<()> {
    let key = io_result(parent.options().read().access(VIEW).open(&read.name))?;
    let values = registry::values(&key, MAX_VALUES, MAX_VALUE, *budget)?;
    for value in values.items {
        let (Some(name), Some(data)) = (&value.name, value.data) else {
            let name = value
                .name
                .as_deref()
                .unwrap_or("of a name that is not UTF-16");
            read.left_out.push(keys::skipped_value(name, value.len));
            continue;
        };
        *budget -= data.len();
        read.values.push(RawValue {
            name: name.clone(),
            kind: value.kind,
            data,
        });
    }
    if values.more {
        let what = format!("holds more than {MAX_VALUES} values; the others are left out");
        read.left_out.push(what);
    }
    read.subkeys = registry::count_subkeys(&key)?;
    Ok(())
}

/// The result of a call, or `None` if the key or value does not exist.
fn if_exists<T>(result: windows_registry::Result<T>) -> io::Result<Option<T>> {
    match io_result(result) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.raw_os_error() == Some(NOT_FOUND) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Converts an error of windows-registry to the Win32 error that it wraps (`HRESULT_FROM_WIN32`).
fn io_result<T>(result: windows_registry::Result<T>) -> io::Result<T> {
    const FACILITY_WIN32: i32 = 7;
    result.map_err(|error| {
        let code = error.code().0;
        match (code >> 16) & 0x1fff {
            FACILITY_WIN32 => io::Error::from_raw_os_error(code & 0xffff),
            _ => io::Error::from_raw_os_error(code),
        }
    })
}
