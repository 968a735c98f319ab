//! A file name that cannot lead out of its folder.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

/// One path component. It names an entry of the folder that it is looked up in, and nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name(OsString);

/// Bytes that are not a valid [`Name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a name within a folder")]
pub struct BadName;

impl Name {
    /// The longest name, in bytes (`NAME_MAX` on Linux).
    const MAX_LENGTH: usize = 255;

    /// Validates a name: 1 to 255 bytes without `/` and NUL, and neither `.` nor `..`.
    ///
    /// # Errors
    ///
    /// [`BadName`] if the bytes are not such a name.
    pub fn new(bytes: &[u8]) -> Result<Self, BadName> {
        let dots = bytes == b"." || bytes == b"..";
        let length = (1..=Self::MAX_LENGTH).contains(&bytes.len());
        if dots || !length || bytes.iter().any(|byte| matches!(byte, b'/' | 0)) {
            return Err(BadName);
        }
        Ok(Self(OsString::from_vec(bytes.to_vec())))
    }

    /// The name.
    pub fn as_os_str(&self) -> &OsStr {
        &self.0
    }

    /// The bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The temporary name of content that a later copy can resume. It depends only on the name, so an
    /// interrupted copy finds its partial file again and leaves at most one.
    pub(super) fn part(&self) -> Self {
        self.temporary("")
    }

    /// Another temporary name each time, which nobody can guess.
    pub(super) fn random_part(&self) -> Self {
        use std::hash::{BuildHasher as _, RandomState};

        // The keys of `RandomState` come from the system's random numbers, and are new each time.
        let random = RandomState::new().hash_one(());
        self.temporary(&format!("~{random:016x}"))
    }

    fn temporary(&self, suffix: &str) -> Self {
        const END: &str = ".hvsock.part";
        let mut part = OsString::from(".");
        let free = Self::MAX_LENGTH - part.len() - suffix.len() - END.len();
        if self.0.len() <= free {
            part.push(&self.0);
        } else {
            let hash = twox_hash::XxHash3_128::oneshot(self.as_bytes());
            let hash = format!("~{hash:032x}");
            part.push(OsStr::from_bytes(&self.as_bytes()[..free - hash.len()]));
            part.push(hash);
        }
        part.push(suffix);
        part.push(END);
        Self(part)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_that_leads_elsewhere_is_not_a_name() {
        let long = [b'x'; 256];
        for bad in [
            &b""[..],
            b".",
            b"..",
            b"/",
            b"a/b",
            b"../x",
            b"/etc",
            b"a/",
            b"a\0b",
            &long,
        ] {
            assert_eq!(Name::new(bad), Err(BadName), "{bad:?}");
        }
        for good in [
            &b"a"[..],
            b"...",
            b"..a",
            b".a",
            b" ",
            b"\xff\n",
            &long[..255],
        ] {
            assert_eq!(Name::new(good).unwrap().as_bytes(), good);
        }
    }

    proptest! {
        #[test]
        fn a_name_and_its_temporary_name_are_one_component(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(name) = Name::new(&bytes) {
                let path = std::path::Path::new(name.as_os_str());
                prop_assert_eq!(path.file_name(), Some(name.as_os_str()));
                prop_assert_eq!(path.components().count(), 1);
                for part in [name.part(), name.random_part()] {
                    prop_assert_eq!(Name::new(part.as_bytes()), Ok(part.clone()));
                    prop_assert_ne!(&part, &name);
                }
                prop_assert_ne!(name.random_part(), name.random_part());
            }
        }
    }

    #[test]
    fn long_names_have_different_temporary_names() {
        let mut bytes = [b'x'; 255];
        let one = Name::new(&bytes).unwrap().part();
        bytes[254] = b'y';
        assert_ne!(Name::new(&bytes).unwrap().part(), one);
    }
}
