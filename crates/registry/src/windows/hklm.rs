//! Keys under `HKEY_LOCAL_MACHINE`.

use std::io;
use std::time::Duration;

use hvsock_sys::{process, registry, turn};
use windows_registry::{Key, LOCAL_MACHINE, Type};

use crate::keys::{
    self, Holder, KeyError, Keys, Life, MAX_SERVICES, MAX_TOTAL, MAX_VALUE, MAX_VALUES, Place,
    RawKey, RawValue, Snapshot, Step,
};

/// `KEY_WOW64_64KEY` (winnt.h): what a 64-bit program sees, whatever this one is.
const VIEW: u32 = 0x100;
/// `KEY_SET_VALUE` and `KEY_CREATE_SUB_KEY` (winnt.h). No more than what is needed is asked for: who
/// may register services need not own the key.
const SET_VALUE: u32 = 0x2;
const CREATE_SUB_KEY: u32 = 0x4;
/// `ERROR_FILE_NOT_FOUND` (winerror.h): there is no such key or value.
const NOT_FOUND: i32 = 2;
/// `ERROR_KEY_DELETED` (winerror.h): the key was removed while it was open.
const KEY_DELETED: i32 = 1018;

/// How long a write waits for another process's, in seconds.
const TURN_WAIT: u64 = 5;

/// How often both places are read anew because one of them changed meanwhile.
const TRIES: usize = 8;

/// Where services are: two keys under `HKEY_LOCAL_MACHINE`.
#[derive(Debug)]
pub struct Hklm {
    services: String,
    disabled: String,
    limit: usize,
}

impl Hklm {
    /// The services under these keys, which need not be there.
    pub fn new(services: &str, disabled: &str) -> Self {
        Self {
            services: services.to_owned(),
            disabled: disabled.to_owned(),
            limit: MAX_SERVICES,
        }
    }

    /// With another bound on the keys that are read in each place.
    pub fn with_limit(self, limit: usize) -> Self {
        Self { limit, ..self }
    }

    fn path(&self, place: Place) -> &str {
        match place {
            Place::Services => &self.services,
            Place::Disabled => &self.disabled,
        }
    }

    fn error(&self, doing: &'static str, place: Place, name: &str, error: io::Error) -> KeyError {
        let slash = if name.is_empty() { "" } else { "\\" };
        let key = format!("HKEY_LOCAL_MACHINE\\{}{slash}{name}", self.path(place));
        KeyError::from_system(doing, key, error)
    }

    /// The key of a place, if there is one.
    fn place(&self, place: Place) -> io::Result<Option<Key>> {
        let mut options = LOCAL_MACHINE.options();
        there(options.read().access(VIEW).open(self.path(place)))
    }

    fn read_once(&self) -> Result<Snapshot, KeyError> {
        let mut snapshot = Snapshot::default();
        let mut room = MAX_TOTAL;
        for place in [Place::Services, Place::Disabled] {
            let error = |error| self.error("read", place, "", error);
            let Some(parent) = self.place(place).map_err(error)? else {
                continue;
            };
            let names = registry::subkeys(&parent, self.limit).map_err(error)?;
            if names.more {
                snapshot.truncated = true;
                snapshot.problems.push(format!(
                    "HKEY_LOCAL_MACHINE\\{} holds more than {} keys; the others are left out",
                    self.path(place),
                    self.limit
                ));
            }
            let read = names.items.into_iter();
            let read = read.filter_map(|name| read_key(&parent, name, &mut room));
            match place {
                Place::Services => snapshot.services.extend(read),
                Place::Disabled => snapshot.disabled.extend(read),
            }
        }
        Ok(snapshot)
    }

    /// What changes when a key of either place comes or goes.
    fn stamps(&self) -> Result<[Option<registry::Stamp>; 2], KeyError> {
        let stamp = |place: Place| {
            let key = self.place(place);
            let stamp = key.and_then(|key| key.as_ref().map(registry::stamp).transpose());
            stamp.map_err(|error| self.error("read", place, "", error))
        };
        Ok([stamp(Place::Services)?, stamp(Place::Disabled)?])
    }

    /// The key of a place, in which keys can be made; it is made if there is none.
    fn make_place(&self, place: Place) -> io::Result<Key> {
        let mut options = LOCAL_MACHINE.options();
        let options = options.read().access(VIEW | CREATE_SUB_KEY).create();
        plain(options.open(self.path(place)))
    }

    /// A service's key, in which values can be set.
    fn open(&self, place: Place, name: &str) -> io::Result<Key> {
        let mut options = LOCAL_MACHINE.options();
        let options = options.access(VIEW | SET_VALUE);
        plain(options.open(format!("{}\\{name}", self.path(place))))
    }

    fn make(&self, place: Place, name: &str, volatile: bool) -> io::Result<()> {
        let parent = self.make_place(place)?;
        let mut options = parent.options();
        let options = options.read().access(VIEW).create();
        let options = if volatile {
            options.volatile()
        } else {
            options
        };
        plain(options.open(name)).map(drop)
    }

    fn delete(&self, place: Place, name: &str) -> io::Result<()> {
        match self.place(place)? {
            Some(parent) => there(parent.remove_tree(name)).map(drop),
            None => Ok(()),
        }
    }

    fn set(&self, place: Place, name: &str, value: &RawValue) -> io::Result<()> {
        // Whatever the type is, the bytes are what they are: no terminating zero is asked for.
        let kind = Type::Other(value.kind);
        let data = match value.data.as_slice() {
            // An empty Vec has no address that the system could look at.
            [] => &[0][..0],
            data => data,
        };
        plain(self.open(place, name)?.set_bytes(&value.name, kind, data))
    }

    fn rename(&self, place: Place, from: &str, to: &str) -> io::Result<()> {
        let parent = self.make_place(place)?;
        match plain(parent.rename(from, to)) {
            // What the system answers where there is a key of that name.
            Err(denied) if denied.kind() == io::ErrorKind::PermissionDenied => {
                let taken = there(parent.options().read().access(VIEW).open(to));
                Err(match taken {
                    Ok(Some(_)) => io::ErrorKind::AlreadyExists.into(),
                    _ => denied,
                })
            }
            other => other,
        }
    }
}

impl Keys for Hklm {
    type Turn = turn::Turn;

    fn turn(&mut self) -> Result<turn::Turn, KeyError> {
        // No name of a mutex may hold a backslash, and its case counts.
        let name = format!("hvsock {}", self.services.replace('\\', "/").to_lowercase());
        let taken = turn::take(&name, Duration::from_secs(TURN_WAIT));
        let taken = taken.map_err(|error| {
            KeyError::from_system("wait for", format!("the mutex Global\\{name}"), error)
        })?;
        taken.ok_or(KeyError::Busy(TURN_WAIT))
    }

    fn read(&self) -> Result<Snapshot, KeyError> {
        let mut before = self.stamps()?;
        for _ in 0..TRIES {
            let snapshot = self.read_once()?;
            let after = self.stamps()?;
            if before == after {
                return Ok(snapshot);
            }
            before = after;
        }
        self.read_once()
    }

    fn apply(&mut self, step: &Step) -> Result<(), KeyError> {
        let (doing, place, name, result) = match step {
            Step::Create {
                place,
                name,
                volatile,
            } => ("make", place, name, self.make(*place, name, *volatile)),
            Step::Set { place, name, value } => {
                ("write to", place, name, self.set(*place, name, value))
            }
            Step::Unset { place, name, value } => {
                let key = self.open(*place, name);
                let unset = key.and_then(|key| there(key.remove_value(value)));
                ("write to", place, name, unset.map(drop))
            }
            Step::Rename { place, from, to } => ("make", place, to, self.rename(*place, from, to)),
            Step::Delete { place, name } => ("remove", place, name, self.delete(*place, name)),
        };
        result.map_err(|error| self.error(doing, *place, name, error))
    }

    fn life(&self, process: u32) -> Life {
        match process::life(process) {
            process::Life::Gone => Life::Gone,
            process::Life::Since(started) => Life::Since(started),
            process::Life::Unknown => Life::Unknown,
        }
    }

    fn myself(&self) -> Result<Holder, KeyError> {
        let started = process::began_myself();
        let started =
            started.map_err(|error| KeyError::from_system("ask about", "this process", error))?;
        Ok(Holder {
            process: std::process::id(),
            started,
        })
    }
}

/// A service's key as far as it can be read; none if it is just being removed.
fn read_key(parent: &Key, name: String, room: &mut usize) -> Option<RawKey> {
    let mut read = RawKey {
        name,
        ..RawKey::default()
    };
    if !keys::is_service(&read.name) {
        return Some(read);
    }
    if let Err(error) = read_values(parent, &mut read, room) {
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

fn read_values(parent: &Key, read: &mut RawKey, room: &mut usize) -> io::Result<()> {
    let key = plain(parent.options().read().access(VIEW).open(&read.name))?;
    let values = registry::values(&key, MAX_VALUES, MAX_VALUE, *room)?;
    for value in values.items {
        let (Some(name), Some(data)) = (&value.name, value.data) else {
            let name = value
                .name
                .as_deref()
                .unwrap_or("of a name that is not UTF-16");
            read.left_out.push(keys::unread(name, value.len));
            continue;
        };
        *room -= data.len();
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

/// What a call gave, or none where there is no such key or value.
fn there<T>(result: windows_registry::Result<T>) -> io::Result<Option<T>> {
    match plain(result) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.raw_os_error() == Some(NOT_FOUND) => Ok(None),
        Err(error) => Err(error),
    }
}

/// With the system's own error, which windows-registry wraps (`HRESULT_FROM_WIN32`).
fn plain<T>(result: windows_registry::Result<T>) -> io::Result<T> {
    const FACILITY_WIN32: i32 = 7;
    result.map_err(|error| {
        let code = error.code().0;
        match (code >> 16) & 0x1fff {
            FACILITY_WIN32 => io::Error::from_raw_os_error(code & 0xffff),
            _ => io::Error::from_raw_os_error(code),
        }
    })
}
