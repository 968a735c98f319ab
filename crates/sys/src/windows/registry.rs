//! Bounded reading of registry keys that others write.
//!
//! The crate windows-registry opens keys and writes to them. Its iterators end silently (or panic, in a
//! debug build) if a key changes during the iteration, skip entries that move when another is removed, and
//! allocate whatever length a value has. So lists are read here.

use std::io;
use std::ptr::{null, null_mut};

use windows_registry::Key;
use windows_sys::Win32::Foundation::{
    ERROR_MORE_DATA, ERROR_NO_MORE_ITEMS, ERROR_SUCCESS, FILETIME,
};
use windows_sys::Win32::System::Registry::{RegEnumKeyExW, RegEnumValueW, RegQueryInfoKeyW};

/// Maximum length in UTF-16 units of a key's name and of a value's name, from Microsoft's "Registry Element
/// Size Limits".
const MAX_KEY_NAME: usize = 255;
const MAX_VALUE_NAME: usize = 16_383;

/// Maximum number of reads of a list that changes meanwhile.
const TRIES: usize = 16;

/// The first entries of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List<T> {
    /// The entries.
    pub items: Vec<T>,
    /// Whether the limit excluded further entries.
    pub more: bool,
}

/// A value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Its name; `None` if that is not valid UTF-16.
    pub name: Option<String>,
    /// Its type, a `REG_*` number of winnt.h.
    pub kind: u32,
    /// Its length in bytes.
    pub len: usize,
    /// Its bytes; `None` if they exceed the limit.
    pub data: Option<Vec<u8>>,
}

/// A version of a key: it changes whenever a subkey or value is added or removed, or a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    subkeys: u32,
    values: u32,
    written: [u32; 2],
}

/// Reads the version of a key.
///
/// # Errors
///
/// Those of `RegQueryInfoKeyW`.
pub fn stamp(key: &Key) -> io::Result<Stamp> {
    let (mut subkeys, mut values) = (0, 0);
    let mut written = FILETIME::default();
    // SAFETY: the key is open; each pointer is null, which is allowed, or to a variable of the right
    // type.
    let status = unsafe {
        RegQueryInfoKeyW(
            key.as_raw(),
            null_mut(),
            null_mut(),
            null(),
            &mut subkeys,
            null_mut(),
            null_mut(),
            &mut values,
            null_mut(),
            null_mut(),
            null_mut(),
            &mut written,
        )
    };
    result(status)?;
    Ok(Stamp {
        subkeys,
        values,
        written: [written.dwHighDateTime, written.dwLowDateTime],
    })
}

/// Number of subkeys of a key.
///
/// # Errors
///
/// Those of `RegQueryInfoKeyW`.
pub fn count_subkeys(key: &Key) -> io::Result<usize> {
    Ok(stamp(key)?.subkeys as usize)
}

/// The names of the first `limit` subkeys, as a snapshot. Invalid UTF-16 is replaced by U+FFFD, which
/// occurs in no valid name.
///
/// # Errors
///
/// Those of `RegEnumKeyExW`.
pub fn subkeys(key: &Key, limit: usize) -> io::Result<List<String>> {
    steady(key, || {
        let mut names = list(limit, |index| subkey(key, index))?;
        // A rename does not change the stamp, but moves the entries behind the new name.
        names.items.dedup();
        Ok(names)
    })
}

/// The first `limit` values, as a snapshot: at most `max_len` bytes of each and `max_total` bytes of all
/// together.
///
/// # Errors
///
/// Those of `RegEnumValueW`.
pub fn values(
    key: &Key,
    limit: usize,
    max_len: usize,
    max_total: usize,
) -> io::Result<List<Value>> {
    let mut data = vec![0; max_len];
    let mut name = vec![0; MAX_VALUE_NAME + 1];
    steady(key, || {
        let mut left = max_total;
        list(limit, |index| {
            let len = max_len.min(left);
            let value = value(key, index, &mut name, &mut data[..len])?;
            left -= value
                .as_ref()
                .and_then(|value| value.data.as_ref())
                .map_or(0, Vec::len);
            Ok(value)
        })
    })
}

/// Reads until the key does not change meanwhile; after [`TRIES`] reads, returns the last one.
fn steady<T>(key: &Key, mut read: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut before = stamp(key)?;
    for _ in 0..TRIES {
        let got = read()?;
        let after = stamp(key)?;
        if before == after {
            return Ok(got);
        }
        before = after;
    }
    read()
}

fn list<T>(
    limit: usize,
    mut item: impl FnMut(u32) -> io::Result<Option<T>>,
) -> io::Result<List<T>> {
    let mut items = Vec::new();
    for index in 0.. {
        match item(index)? {
            Some(_) if items.len() == limit => return Ok(List { items, more: true }),
            Some(item) => items.push(item),
            None => break,
        }
    }
    Ok(List { items, more: false })
}

fn subkey(key: &Key, index: u32) -> io::Result<Option<String>> {
    let mut name = [0; MAX_KEY_NAME + 1];
    let mut len = name.len() as u32;
    // SAFETY: the key is open; the name has as many units as `len` states; the other pointers are
    // null, which is allowed.
    let status = unsafe {
        RegEnumKeyExW(
            key.as_raw(),
            index,
            name.as_mut_ptr(),
            &mut len,
            null(),
            null_mut(),
            null_mut(),
            null_mut(),
        )
    };
    if status == ERROR_NO_MORE_ITEMS {
        return Ok(None);
    }
    result(status)?;
    let name = name.get(..len as usize).unwrap_or_default();
    Ok(Some(String::from_utf16_lossy(name)))
}

fn value(key: &Key, index: u32, name: &mut [u16], data: &mut [u8]) -> io::Result<Option<Value>> {
    let mut read = |data: Option<&mut [u8]>| {
        let mut name_len = name.len() as u32;
        let mut kind = 0;
        let (pointer, mut len) = match data {
            Some(data) => (data.as_mut_ptr(), data.len() as u32),
            None => (null_mut(), 0),
        };
        // SAFETY: the key is open; the name and the data have the lengths that are passed, or the data
        // is null, which is allowed.
        let status = unsafe {
            RegEnumValueW(
                key.as_raw(),
                index,
                name.as_mut_ptr(),
                &mut name_len,
                null(),
                &mut kind,
                pointer,
                &mut len,
            )
        };
        let name = name.get(..name_len as usize).unwrap_or_default();
        (status, String::from_utf16(name).ok(), kind, len as usize)
    };
    let (status, name, kind, len) = read(Some(&mut *data));
    if status == ERROR_NO_MORE_ITEMS {
        return Ok(None);
    }
    if status == ERROR_MORE_DATA {
        // The value is too long. The outputs of this call are unspecified, so it is repeated.
        let (status, name, kind, len) = read(None);
        result(status)?;
        let data = None;
        return Ok(Some(Value {
            name,
            kind,
            len,
            data,
        }));
    }
    result(status)?;
    let data = data.get(..len).map(<[u8]>::to_vec);
    Ok(Some(Value {
        name,
        kind,
        len,
        data,
    }))
}

fn result(status: u32) -> io::Result<()> {
    match status {
        ERROR_SUCCESS => Ok(()),
        code => Err(io::Error::from_raw_os_error(code as i32)),
    }
}

#[cfg(test)]
mod tests {
    use windows_registry::{CURRENT_USER, Type};

    use super::*;

    /// A key of its own, removed with the test.
    struct Scratch(String, Key);

    impl Scratch {
        fn new(what: &str) -> Self {
            let path = format!("Software\\hvsock-test-{what}-{}", std::process::id());
            let mut options = CURRENT_USER.options();
            let key = options.read().write().create().volatile().open(&path);
            Self(path, key.unwrap())
        }

        fn subkey(&self, name: &str) {
            let mut options = self.1.options();
            options.write().create().volatile().open(name).unwrap();
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let removed = CURRENT_USER.remove_tree(&self.0);
            assert!(removed.is_ok() || std::thread::panicking(), "{removed:?}");
        }
    }

    #[test]
    fn a_list_ends_at_its_limit_and_reports_more() {
        let scratch = Scratch::new("list");
        for name in ["é", "B", "a"] {
            scratch.subkey(name);
        }
        let all = subkeys(&scratch.1, 3).unwrap();
        assert_eq!(all.items.len(), 3);
        assert!(!all.more && all.items.contains(&"é".to_owned()), "{all:?}");
        let some = subkeys(&scratch.1, 2).unwrap();
        assert!(some.more && some.items == all.items[..2], "{some:?}");
        assert_eq!(count_subkeys(&scratch.1).unwrap(), 3);
    }

    #[test]
    fn values_are_unchanged_and_long_ones_have_only_their_length() {
        let scratch = Scratch::new("values");
        let set = |name: &str, kind: u32, data: &[u8]| {
            scratch.1.set_bytes(name, Type::from(kind), data).unwrap();
        };
        set("text", 1, b"a\0\0\0");
        set("unusual", 77, b"xyz");
        // Wine rejects a dangling pointer, even with length 0.
        set("none", 3, &[0][..0]);
        set("long", 3, &[7; 1000]);
        let value = |name: &str, list: &List<Value>| {
            let mut named = list.items.iter();
            let found = named.find(|value| value.name.as_deref() == Some(name));
            found.map(|value| (value.kind, value.len, value.data.clone()))
        };
        let read = values(&scratch.1, 10, 100, 1000).unwrap();
        assert!(!read.more);
        assert_eq!(value("text", &read), Some((1, 4, Some(b"a\0\0\0".into()))));
        assert_eq!(value("unusual", &read), Some((77, 3, Some(b"xyz".into()))));
        assert_eq!(value("none", &read), Some((3, 0, Some(vec![]))));
        assert_eq!(value("long", &read), Some((3, 1000, None)));
        let cramped = values(&scratch.1, 10, 100, 5).unwrap();
        let whole = cramped.items.iter().filter_map(|value| value.data.as_ref());
        assert!(whole.map(Vec::len).sum::<usize>() <= 5, "{cramped:?}");
        assert!(values(&scratch.1, 2, 100, 1000).unwrap().more);
    }

    #[test]
    fn a_stamp_changes_with_the_contents_of_the_key() {
        let scratch = Scratch::new("stamp");
        let first = stamp(&scratch.1).unwrap();
        assert_eq!(stamp(&scratch.1).unwrap(), first);
        scratch.subkey("a");
        assert_ne!(stamp(&scratch.1).unwrap(), first);
    }
}
