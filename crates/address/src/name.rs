//! The two kinds of names, validated once on construction.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use crate::port::port_digits;
use crate::{ServiceId, VmId};

/// A service's friendly name: the `ElementName` of the Windows registry.
///
/// 1 to 255 bytes of UTF-8: visible characters of any script, and spaces that are not at either
/// end. Controls, bidirectional and zero-width characters, other white space, private-use
/// and unassigned characters are invalid, as in the PRECIS FreeformClass (RFC 8264), so a name looks
/// like what it is. Text that parses as a GUID or a port is invalid, too. Display keeps the case;
/// look-up ignores it, as in the Windows registry.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ElementName(String);

/// A partition's name: 1 to 63 of `a-z A-Z 0-9 . _ -`, starting with a letter or digit, and
/// neither a GUID nor one of the well-known words.
///
/// The narrow alphabet makes a name safe as a folder, a metrics label and a command-line argument.
/// It is a superset of the default names of podman, docker and libvirt.
///
/// A *nested* name is two such names with a `/` between them, the name of a virtual machine and that of
/// a container in it, as the host sees it: `web/box`. Only the broker in that virtual machine adds such
/// a container. What adds a partition itself, or makes a path from a name, parses it with
/// [`PartitionName::unnested`].
///
/// Two names that differ in case only are equal. So `[vm.Web]` in a rule matches the partition
/// `web`.
#[derive(Clone)]
pub struct PartitionName(String);

/// Why text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Empty, or white space only.
    #[error("a name must not be empty")]
    Empty,
    /// Longer than the limit, in bytes.
    #[error("a name has at most {limit} bytes; this one has {len}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A character that this kind of name does not allow.
    #[error("`{}` is not allowed in this name; {allowed}", character.escape_default())]
    Character {
        /// The first such character.
        character: char,
        /// The rule that it breaks, as a clause.
        allowed: &'static str,
    },
    /// Text that has another meaning where a name is expected.
    #[error("`{text}` already means {meaning}; choose another name")]
    Taken {
        /// The text.
        text: String,
        /// Its meaning.
        meaning: &'static str,
    },
    /// A nested name where only the name of a child is valid.
    #[error(
        "{name} names a container in a virtual machine; the broker in that virtual machine adds it, \
         under its own name"
    )]
    Nested {
        /// The name.
        name: PartitionName,
    },
}

impl ElementName {
    /// The maximum length of a friendly name in bytes.
    pub const MAX_LEN: usize = 255;

    /// Validates `text`.
    ///
    /// # Errors
    ///
    /// [`InvalidName`] if `text` is empty or too long, contains a character that is not allowed, or has
    /// another meaning.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
        let text = text.into();
        if text.trim().is_empty() {
            return Err(InvalidName::Empty);
        }
        check_len(&text, Self::MAX_LEN)?;
        if let Some(character) = hvsock_text::first_escaped(&text) {
            let allowed = "a name has visible characters and spaces only";
            return Err(InvalidName::Character { character, allowed });
        }
        if let Some(character) = [text.chars().next(), text.chars().next_back()]
            .into_iter()
            .flatten()
            .find(|c| *c == ' ')
        {
            let allowed = "a name cannot start or end with white space";
            return Err(InvalidName::Character { character, allowed });
        }
        if text.parse::<ServiceId>().is_ok() {
            return Err(InvalidName::Taken {
                text,
                meaning: "a service's GUID",
            });
        }
        let is_port = port_digits(&text).is_some_and(|digits| digits.parse::<u32>().is_ok());
        if is_port || text.parse::<u32>().is_ok() {
            return Err(InvalidName::Taken {
                text,
                meaning: "a vsock port",
            });
        }
        Ok(Self(text))
    }

    /// The look-up key, in lower case: two names with the same key are the same name.
    pub fn folded(&self) -> String {
        self.0.to_lowercase()
    }
}

impl PartitionName {
    /// The maximum length of a partition's name in bytes, and of each part of a nested one.
    pub const MAX_LEN: usize = 63;

    /// Between the parts of a nested name.
    const SEPARATOR: char = '/';

    /// Validates `text`, which may be a nested name.
    ///
    /// # Errors
    ///
    /// [`InvalidName`] if `text` or a part of it is empty or too long, contains a character that is not
    /// allowed, or has another meaning.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
        let text = text.into();
        match text.split_once(Self::SEPARATOR) {
            // Errors about the name as a whole are clearer where there is no second part.
            Some((vm, container)) if !vm.is_empty() && !container.is_empty() => {
                Self::check_part(vm)?;
                Self::check_part(container)?;
            }
            _ => Self::check_part(&text)?,
        }
        Ok(Self(text))
    }

    /// Validates `text`, which must not be a nested name.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), and [`InvalidName::Nested`] for a nested name.
    pub fn unnested(text: impl Into<String>) -> Result<Self, InvalidName> {
        let name = Self::new(text)?;
        name.check_unnested()?;
        Ok(name)
    }

    /// The name that the host uses for the container `child` in the virtual machine `vm`.
    ///
    /// # Errors
    ///
    /// [`InvalidName::Nested`] if one of them is a nested name itself.
    pub fn nested(vm: &PartitionName, child: &PartitionName) -> Result<Self, InvalidName> {
        vm.check_unnested()?;
        child.check_unnested()?;
        Ok(Self(format!("{vm}{}{child}", Self::SEPARATOR)))
    }

    /// Checks that this is not a nested name, where a partition is added or a path is made from it.
    ///
    /// # Errors
    ///
    /// [`InvalidName::Nested`] for a nested name.
    pub fn check_unnested(&self) -> Result<(), InvalidName> {
        match self.is_nested() {
            false => Ok(()),
            true => Err(InvalidName::Nested { name: self.clone() }),
        }
    }

    /// Whether it names a container in a virtual machine, as `web/box` does.
    pub fn is_nested(&self) -> bool {
        self.0.contains(Self::SEPARATOR)
    }

    /// The virtual machine and the container of a nested name. `None` for any other name.
    pub fn parts(&self) -> Option<(PartitionName, PartitionName)> {
        let (vm, child) = self.0.split_once(Self::SEPARATOR)?;
        Some((Self(vm.to_owned()), Self(child.to_owned())))
    }

    /// The virtual machine of a nested name. `None` for any other name.
    pub fn vm(&self) -> Option<PartitionName> {
        self.parts().map(|(vm, _)| vm)
    }

    fn check_part(text: &str) -> Result<(), InvalidName> {
        const ALLOWED: &str = "letters, digits, `.`, `_` and `-` are, after a letter or digit";
        const SEPARATED: &str = "at most one is, between a virtual machine and a container in it";
        if text.is_empty() {
            return Err(InvalidName::Empty);
        }
        check_len(text, Self::MAX_LEN)?;
        let first = text.chars().next().filter(|c| !c.is_ascii_alphanumeric());
        let other = text
            .chars()
            .find(|c| !(c.is_ascii_alphanumeric() || "._-".contains(*c)));
        if let Some(character) = first.or(other) {
            let allowed = match character {
                Self::SEPARATOR => SEPARATED,
                _ => ALLOWED,
            };
            return Err(InvalidName::Character { character, allowed });
        }
        let folded = text.to_ascii_lowercase();
        if VmId::WELL_KNOWN.iter().any(|(word, _)| *word == folded)
            || ["host", "any", "self"].contains(&folded.as_str())
        {
            return Err(InvalidName::Taken {
                text: text.to_owned(),
                meaning: "a partition seen from the caller",
            });
        }
        if text.parse::<VmId>().is_ok() {
            return Err(InvalidName::Taken {
                text: text.to_owned(),
                meaning: "a partition's GUID",
            });
        }
        Ok(())
    }

    fn folded(&self) -> impl Iterator<Item = u8> + '_ {
        self.0.bytes().map(|byte| byte.to_ascii_lowercase())
    }
}

impl PartialEq for PartitionName {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for PartitionName {}

impl PartialOrd for PartitionName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PartitionName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.folded().cmp(other.folded())
    }
}

impl Hash for PartitionName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The alphabet has no byte 0xff, so it terminates a name, as `str` does.
        self.folded().for_each(|byte| state.write_u8(byte));
        state.write_u8(0xff);
    }
}

fn check_len(text: &str, limit: usize) -> Result<(), InvalidName> {
    if text.len() > limit {
        return Err(InvalidName::TooLong {
            len: text.len(),
            limit,
        });
    }
    Ok(())
}

/// The conversions from and to text that both types share.
macro_rules! name_type {
    ($name:ident) => {
        impl $name {
            /// The name as written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    };
}

name_type!(ElementName);
name_type!(PartitionName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_friendly_name_may_have_spaces_inside_but_not_around() {
        assert!(ElementName::new("HV Socket Demo").is_ok());
        assert!(ElementName::new("Sauvegarde à chaud").is_ok());
        for bad in [
            "",
            "  ",
            " x",
            "x ",
            "\u{a0}x",
            "a\nb",
            "2761",
            "a42e7cda-d03f-480c-9cc2-a4de20abb878",
        ] {
            assert!(ElementName::new(bad).is_err(), "{bad:?}");
        }
        assert!(ElementName::new("x".repeat(255)).is_ok());
        assert!(ElementName::new("x".repeat(256)).is_err());
    }

    #[test]
    fn a_friendly_name_looks_like_what_it_is() {
        for hidden in [
            "web\u{200b}",
            "\u{202e}bew",
            "w\u{2066}eb",
            "w\u{61c}eb",
            "web\u{2028}help: reboot",
            "w\u{feff}eb",
            "web\u{e0041}",
            "web\u{fe0f}",
            "web\u{ad}site",
            "web\u{a0}site",
            "web\u{3164}",
            "web\u{e000}",
            "web\u{9b}2J",
            "\u{301}web",
            "w\u{301}\u{301}\u{301}\u{301}eb",
        ] {
            let error = ElementName::new(hidden).unwrap_err();
            assert!(matches!(error, InvalidName::Character { .. }), "{error}");
            assert!(error.to_string().is_ascii(), "{error}");
        }
        for visible in [
            "Präsenz",
            "данные",
            "サービス",
            "שירות",
            "e\u{301}t\u{e9}",
            "web \u{1f600}",
        ] {
            assert!(ElementName::new(visible).is_ok(), "{visible}");
        }
    }

    #[test]
    fn a_partition_name_is_safe_as_a_folder_and_a_label() {
        for good in ["web", "db-1", "A.b_c", "9lives"] {
            assert!(PartitionName::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "..",
            ".hidden",
            "-x",
            "a b",
            "é",
            "parent",
            "Loopback",
            "host",
            "any",
            "a42e7cdad03f480c9cc2a4de20abb878",
        ] {
            assert!(PartitionName::new(bad).is_err(), "{bad:?}");
        }
        assert!(PartitionName::new("x".repeat(64)).is_err());
    }

    #[test]
    fn partition_names_that_differ_in_case_only_are_one_name() {
        let names = ["Web", "web", "web-2"].map(|text| PartitionName::new(text).unwrap());
        assert_eq!(names[0], names[1]);
        assert!(names[1] < names[2]);
        let set: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(set.len(), 2);
    }

    #[test]
    fn a_nested_name_is_two_valid_names_with_a_slash_between_them() {
        let name = |text: &str| PartitionName::new(text).unwrap();
        let nested = name("Web.1/box-2");
        assert!(nested.is_nested() && !name("web").is_nested());
        assert_eq!(nested.parts(), Some((name("web.1"), name("BOX-2"))));
        assert_eq!((nested.vm(), name("web").vm()), (Some(name("web.1")), None));
        assert_eq!(nested, name("web.1/Box-2"));
        let longest = format!("{}/{}", "v".repeat(63), "c".repeat(63));
        assert!(PartitionName::new(longest).is_ok());
        for bad in [
            "/",
            "a/",
            "/a",
            "a//b",
            "a/b/c",
            "a/..",
            "../a",
            "a/.b",
            "a/-b",
            "a/parent",
            "parent/a",
            "host/a",
            "a/any",
            "a/ b",
            "a\\b",
            "a/b/",
            "a42e7cda-d03f-480c-9cc2-a4de20abb878/a",
            "a/a42e7cdad03f480c9cc2a4de20abb878",
        ] {
            assert!(PartitionName::new(bad).is_err(), "{bad:?}");
        }
        assert!(PartitionName::new(format!("a/{}", "x".repeat(64))).is_err());
        assert!(PartitionName::new(format!("{}/a", "x".repeat(64))).is_err());
    }

    #[test]
    fn a_nested_name_is_refused_where_a_partition_is_added() {
        let [vm, child] = ["web", "box"].map(|text| PartitionName::new(text).unwrap());
        let nested = PartitionName::nested(&vm, &child).unwrap();
        assert_eq!(nested.as_str(), "web/box");
        let refused = Err(InvalidName::Nested {
            name: nested.clone(),
        });
        assert_eq!(PartitionName::unnested("web/box"), refused);
        assert_eq!(PartitionName::nested(&nested, &child), refused);
        assert_eq!(PartitionName::nested(&vm, &nested), refused);
        assert_eq!(PartitionName::unnested("box"), Ok(child));
        let want = "web/box names a container in a virtual machine; the broker in that virtual \
                    machine adds it, under its own name";
        assert_eq!(nested.check_unnested().unwrap_err().to_string(), want);
    }

    #[test]
    fn each_invalid_name_has_its_error() {
        assert_eq!(
            PartitionName::new("a b").unwrap_err().to_string(),
            "` ` is not allowed in this name; letters, digits, `.`, `_` and `-` are, after a \
             letter or digit"
        );
        for text in ["a/b/c", "/", "a/", "/b"] {
            assert_eq!(
                PartitionName::new(text).unwrap_err().to_string(),
                "`/` is not allowed in this name; at most one is, between a virtual machine and a \
                 container in it",
                "{text}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_name_or_is_refused_without_a_panic(text in "[a-c/._ ]{0,9}|\\PC*") {
            if let Ok(name) = PartitionName::new(text) {
                let parts = name.as_str().split('/').count();
                assert_eq!(name.is_nested(), parts == 2);
                assert!(parts <= 2);
            }
        }
    }
}
