//! User input that names a partition or a service.

use std::fmt;
use std::str::FromStr;

use crate::port::port_digits;
use crate::{ElementName, InvalidName, PartitionName, ServiceId, VmId};

/// A partition in user input: a well-known word, a GUID, or a name to look up. `web/box` is the container
/// `box` in the virtual machine `web`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PartitionRef {
    /// A word such as `parent`, or a GUID.
    Id(VmId),
    /// A name, which only a broker can resolve.
    Name(PartitionName),
}

/// A service in user input: a GUID, a vsock port (`2761` or `port:2761`), or a friendly name to look up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ServiceRef {
    /// A GUID, or a vsock port by the template.
    Id(ServiceId),
    /// A friendly name, which only a registry can resolve.
    Name(ElementName),
}

/// Text that is neither an id nor a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseRefError {
    /// Not a partition.
    #[error("not a partition: {0}")]
    Partition(InvalidName),
    /// Not a service.
    #[error("not a service: {0}")]
    Service(InvalidName),
    /// A number above 32 bits.
    #[error("a vsock port is a number up to 4294967295; `{0}` is larger")]
    PortTooLarge(String),
}

impl FromStr for PartitionRef {
    type Err = ParseRefError;

    fn from_str(text: &str) -> Result<Self, ParseRefError> {
        let folded = text.to_ascii_lowercase();
        let word = if folded == "any" {
            "wildcard"
        } else {
            folded.as_str()
        };
        if let Some((_, id)) = VmId::WELL_KNOWN.iter().find(|(known, _)| *known == word) {
            return Ok(Self::Id(*id));
        }
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        PartitionName::new(text)
            .map(Self::Name)
            .map_err(ParseRefError::Partition)
    }
}

impl FromStr for ServiceRef {
    type Err = ParseRefError;

    fn from_str(text: &str) -> Result<Self, ParseRefError> {
        if let Some(digits) = port_digits(text) {
            let port = digits
                .parse()
                .map_err(|_| ParseRefError::PortTooLarge(digits.to_owned()))?;
            return Ok(Self::Id(ServiceId::from_port(port)));
        }
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        ElementName::new(text)
            .map(Self::Name)
            .map_err(ParseRefError::Service)
    }
}

impl fmt::Display for PartitionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => match id.well_known_name() {
                Some(word) => f.pad(word),
                None => f.pad(&id.to_string()),
            },
            Self::Name(name) => fmt::Display::fmt(name, f),
        }
    }
}

impl fmt::Display for ServiceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => match id.port() {
                Some(port) => f.pad(&port.to_string()),
                None => f.pad(&id.to_string()),
            },
            Self::Name(name) => fmt::Display::fmt(name, f),
        }
    }
}

impl From<VmId> for PartitionRef {
    fn from(id: VmId) -> Self {
        Self::Id(id)
    }
}

impl From<ServiceId> for ServiceRef {
    fn from(id: ServiceId) -> Self {
        Self::Id(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_a_number_with_or_without_the_word_port() {
        let port = |number| Ok(ServiceRef::Id(ServiceId::from_port(number)));
        for (text, number) in [
            ("7", 7),
            ("port:7", 7),
            ("port:007", 7),
            ("port:4294967295", u32::MAX),
        ] {
            assert_eq!(text.parse(), port(number), "{text}");
            assert!(ElementName::new(text).is_err(), "{text}");
        }
        for large in [
            "4294967296",
            "port:4294967296",
            "port:12345678901234567890123456789012",
        ] {
            let error = large.parse::<ServiceRef>().unwrap_err();
            assert!(matches!(error, ParseRefError::PortTooLarge(_)), "{error}");
        }
        for name in [
            "port:", "port:x", "port:7 b", "Port:7", "port: 7", "port:-7", "port:+7",
        ] {
            assert_eq!(
                name.parse(),
                Ok(ServiceRef::Name(ElementName::new(name).unwrap()))
            );
        }
    }

    #[test]
    fn words_ids_and_names_are_distinguished() {
        assert_eq!("Parent".parse(), Ok(PartitionRef::Id(VmId::PARENT)));
        assert_eq!("any".parse(), Ok(PartitionRef::Id(VmId::WILDCARD)));
        assert_eq!(
            "web".parse(),
            Ok(PartitionRef::Name(PartitionName::new("web").unwrap()))
        );
        let id = VmId::random();
        assert_eq!(format!("{{{id}}}").parse(), Ok(PartitionRef::Id(id)));
        assert_eq!(
            "web/box".parse(),
            Ok(PartitionRef::Name(PartitionName::new("web/box").unwrap()))
        );
        for bad in ["a/b/c", "parent/box", "web/", "/box"] {
            assert!(bad.parse::<PartitionRef>().is_err(), "{bad}");
        }
    }

    #[test]
    fn digits_are_a_port_and_anything_else_is_a_friendly_name() {
        assert_eq!(
            "2761".parse(),
            Ok(ServiceRef::Id(ServiceId::from_port(2761)))
        );
        assert!(matches!(
            "4294967296".parse::<ServiceRef>(),
            Err(ParseRefError::PortTooLarge(_))
        ));
        let name = ElementName::new("HV Socket Demo").unwrap();
        assert_eq!("HV Socket Demo".parse(), Ok(ServiceRef::Name(name)));
        assert!("".parse::<ServiceRef>().is_err());
    }

    #[test]
    fn printed_text_parses_to_the_same_value() {
        for text in [
            "parent",
            "web",
            "web/box",
            "wildcard",
            "0b2f1f0e-0000-4000-8000-000000000001",
        ] {
            assert_eq!(text.parse::<PartitionRef>().unwrap().to_string(), text);
        }
        for text in [
            "2761",
            "HV Socket Demo",
            "0b2f1f0e-0000-4000-8000-000000000001",
        ] {
            assert_eq!(text.parse::<ServiceRef>().unwrap().to_string(), text);
        }
    }
}
