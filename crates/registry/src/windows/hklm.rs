//! Keys under `HKEY_LOCAL_MACHINE`.

use std::io;

use windows_registry::{Key, LOCAL_MACHINE, Type};

use crate::keys::{
    Holder, KeyError, Keys, Life, MAX_SERVICES, MAX_TOTAL, MAX_VALUE, MAX_VALUES, Place, RawKey,
    RawValue, Snapshot, Step,
};

/// `KEY_WOW64_64KEY` (winnt.h): what a 64-bit program sees, whatever this one is.
const VIEW: u32 = 0x100;
/// `DELETE` (winnt.h): the right to rename or remove a key.
const DELETE: u32 = 0x1_0000;
/// `ERROR_FILE_NOT_FOUND` (winerror.h): there is no such key or value.
const NOT_FOUND: i32 = 2;

/// The two keys that services are under.
#[derive(Debug)]
pub struct Hklm {
    services: String,
    disabled: String,
}

impl Hklm {
    pub(super) fn new(services: &str, disabled: &str) -> Result<Self, KeyError> {
        Ok(Self {
            services: services.to_owned(),
            disabled: disabled.to_owned(),
        })
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

    fn read_place(&self, place: Place, room: &mut usize) -> Result<Vec<RawKey>, KeyError> {
        let error = |error| self.error("read", place, "", error);
        let open = LOCAL_MACHINE
            .options()
            .read()
            .access(VIEW)
            .open(self.path(place));
        let Some(parent) = there(open).map_err(error)? else {
            return Ok(Vec::new());
        };
        let names = plain(parent.keys()).map_err(error)?;
        let mut keys = Vec::new();
        for name in names.take(MAX_SERVICES) {
            let error = |error| self.error("read", place, &name, error);
            let open = parent.options().read().access(VIEW).open(&name);
            // Somebody may just have removed it.
            if let Some(key) = there(open).map_err(error)? {
                let read = read_key(&name, &key, room).map_err(error)?;
                keys.push(read);
            }
        }
        Ok(keys)
    }

    /// A key that is there, to be written to.
    fn open(&self, place: Place, name: &str) -> io::Result<Key> {
        let path = match name {
            "" => self.path(place).to_owned(),
            name => format!("{}\\{name}", self.path(place)),
        };
        let mut options = LOCAL_MACHINE.options();
        plain(options.read().write().access(VIEW | DELETE).open(path))
    }

    /// The key of a place, which is made if there is none.
    fn place(&self, place: Place) -> io::Result<Key> {
        let mut options = LOCAL_MACHINE.options();
        let options = options.read().write().access(VIEW | DELETE).create();
        plain(options.open(self.path(place)))
    }
}

impl Keys for Hklm {
    type Turn = ();

    fn turn(&mut self) -> Result<(), KeyError> {
        Ok(())
    }

    fn read(&self) -> Result<Snapshot, KeyError> {
        let mut room = MAX_TOTAL;
        Ok(Snapshot {
            services: self.read_place(Place::Services, &mut room)?,
            disabled: self.read_place(Place::Disabled, &mut room)?,
            problems: Vec::new(),
        })
    }

    fn apply(&mut self, step: &Step) -> Result<(), KeyError> {
        match step {
            Step::Create {
                place,
                name,
                volatile,
            } => {
                let make = || -> io::Result<()> {
                    let parent = self.place(*place)?;
                    let mut options = parent.options();
                    let options = options.read().write().create();
                    let options = if *volatile {
                        options.volatile()
                    } else {
                        options
                    };
                    plain(options.open(name)).map(drop)
                };
                make().map_err(|error| self.error("make", *place, name, error))
            }
            Step::Set { place, name, value } => {
                let set = || -> io::Result<()> {
                    let key = self.open(*place, name)?;
                    let kind = Type::from(value.kind);
                    plain(key.set_bytes(&value.name, kind, &value.data))
                };
                set().map_err(|error| self.error("write to", *place, name, error))
            }
            Step::Unset { place, name, value } => {
                let unset = || -> io::Result<()> {
                    let key = self.open(*place, name)?;
                    there(key.remove_value(value)).map(drop)
                };
                unset().map_err(|error| self.error("write to", *place, name, error))
            }
            Step::Rename { place, from, to } => {
                let rename = || plain(self.place(*place)?.rename(from, to));
                rename().map_err(|error| self.error("rename", *place, from, error))
            }
            Step::Delete { place, name } => {
                let delete = || there(self.place(*place)?.remove_tree(name)).map(drop);
                delete().map_err(|error| self.error("remove", *place, name, error))
            }
        }
    }

    fn life(&self, _process: u32) -> Life {
        Life::Unknown
    }

    fn myself(&self) -> Result<Holder, KeyError> {
        Ok(Holder {
            process: std::process::id(),
            started: 0,
        })
    }
}

fn read_key(name: &str, key: &Key, room: &mut usize) -> io::Result<RawKey> {
    let mut read = RawKey {
        name: name.to_owned(),
        ..RawKey::default()
    };
    for (name, value) in plain(key.values())?.take(MAX_VALUES) {
        if value.len() > MAX_VALUE || value.len() > *room {
            read.left_out.push(format!("the value {name} is too long"));
            continue;
        }
        *room -= value.len();
        read.values.push(RawValue {
            name,
            kind: value.ty().into(),
            data: value.to_vec(),
        });
    }
    Ok(read)
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
