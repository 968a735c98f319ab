//! A name that leads nowhere else.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

/// One component of a path, which names an entry of the folder that it is looked up in and
/// nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(OsString);

/// Bytes that are no [`Name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a name within a folder")]
pub struct BadName;

impl Name {
    /// The most bytes, as on Linux.
    const MOST: usize = 255;

    /// Takes 1 to 255 bytes without `/` and NUL that are neither `.` nor `..`.
    pub fn new(bytes: &[u8]) -> Result<Self, BadName> {
        let dots = bytes == b"." || bytes == b"..";
        let length = (1..=Self::MOST).contains(&bytes.len());
        if dots || !length || bytes.iter().any(|byte| matches!(byte, b'/' | 0)) {
            return Err(BadName);
        }
        Ok(Self(OsString::from_vec(bytes.to_vec())))
    }

    /// The name.
    pub fn as_os_str(&self) -> &OsStr {
        &self.0
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Where its content is until it is complete. It is the same each time, so that a copy that
    /// was broken finds what it left, and leaves one at the most.
    pub(super) fn part(&self) -> Self {
        const END: &str = ".hvsock.part";
        let mut part = OsString::from(".");
        let room = Self::MOST - part.len() - END.len();
        if self.0.len() <= room {
            part.push(&self.0);
        } else {
            let hash = twox_hash::XxHash3_128::oneshot(self.as_bytes());
            let hash = format!("~{hash:032x}");
            part.push(OsStr::from_bytes(&self.as_bytes()[..room - hash.len()]));
            part.push(hash);
        }
        part.push(END);
        Self(part)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_leads_elsewhere_is_no_name() {
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
        fn a_name_is_one_component_and_so_is_its_part(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(name) = Name::new(&bytes) {
                let path = std::path::Path::new(name.as_os_str());
                prop_assert_eq!(path.file_name(), Some(name.as_os_str()));
                prop_assert_eq!(path.components().count(), 1);
                let part = name.part();
                prop_assert_eq!(Name::new(part.as_bytes()), Ok(part.clone()));
                prop_assert_ne!(part, name);
            }
        }
    }

    #[test]
    fn long_names_have_different_parts() {
        let mut bytes = [b'x'; 255];
        let one = Name::new(&bytes).unwrap().part();
        bytes[254] = b'y';
        assert_ne!(Name::new(&bytes).unwrap().part(), one);
    }
}
