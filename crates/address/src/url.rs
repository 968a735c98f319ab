//! `hvsock://VM/SERVICE`: an address as a URL, for configuration files and command lines.

use std::fmt;
use std::str::FromStr;

use crate::{ParseRefError, PartitionRef, ServiceRef};

/// An address as a URL. Its names are not resolved yet.
///
/// The service is percent-encoded, because friendly names may have spaces:
/// `hvsock://parent/HV%20Socket%20Demo`, `hvsock://web/2761`. The last `/` is between partition and
/// service: `hvsock://web/box/2761` is a service of the container `box` in the virtual machine `web`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HvUrl {
    /// The partition.
    pub partition: PartitionRef,
    /// The service.
    pub service: ServiceRef,
}

/// Text that is not an `hvsock://` URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseUrlError {
    /// Another scheme, or none.
    #[error("an address starts with hvsock://, as in hvsock://parent/2761")]
    Scheme,
    /// No `/` between partition and service.
    #[error("an address names a partition and a service, as in hvsock://parent/2761")]
    NoService,
    /// A `%` without two hexadecimal digits after it, or bytes that are not UTF-8.
    #[error("the service's name is not percent-encoded UTF-8")]
    Encoding,
    /// An invalid partition or service.
    #[error(transparent)]
    Part(#[from] ParseRefError),
}

const SCHEME: &str = "hvsock://";

impl FromStr for HvUrl {
    type Err = ParseUrlError;

    fn from_str(text: &str) -> Result<Self, ParseUrlError> {
        let has_scheme = text
            .get(..SCHEME.len())
            .is_some_and(|head| head.eq_ignore_ascii_case(SCHEME));
        let rest = if has_scheme {
            &text[SCHEME.len()..]
        } else {
            return Err(ParseUrlError::Scheme);
        };
        let (partition, service) = split(rest).ok_or(ParseUrlError::NoService)?;
        if partition.is_empty() || service.is_empty() {
            return Err(ParseUrlError::NoService);
        }
        Ok(Self {
            partition: partition.parse()?,
            service: decode(service)?.parse()?,
        })
    }
}

impl fmt::Display for HvUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/", self.partition)?;
        for byte in self.service.to_string().bytes() {
            // The unreserved characters of RFC 3986 §2.3.
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                write!(f, "{}", char::from(byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

/// The partition and the service. The partition's name may be nested, so the last `/` is between them.
fn split(rest: &str) -> Option<(&str, &str)> {
    let (first, others) = rest.split_once('/')?;
    match first.parse() {
        // No container has such a name. So the `/` is one of a service's name that was not encoded.
        Ok(PartitionRef::Id(_)) => Some((first, others)),
        _ => rest.rsplit_once('/'),
    }
}

fn decode(text: &str) -> Result<String, ParseUrlError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16));
            let (high, low) = digit().zip(digit()).ok_or(ParseUrlError::Encoding)?;
            bytes.push((high << 4 | low) as u8);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).map_err(|_| ParseUrlError::Encoding)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{ElementName, PartitionName, VmId};

    #[test]
    fn a_url_names_partition_and_service() {
        let url: HvUrl = "hvsock://parent/HV%20Socket%20Demo".parse().unwrap();
        assert_eq!(url.partition, PartitionRef::Id(VmId::PARENT));
        assert_eq!(
            url.service,
            ServiceRef::Name(ElementName::new("HV Socket Demo").unwrap())
        );
        assert_eq!(url.to_string(), "hvsock://parent/HV%20Socket%20Demo");
        assert_eq!(
            "HVSOCK://web/2761".parse::<HvUrl>().unwrap().to_string(),
            "hvsock://web/2761"
        );
    }

    #[test]
    fn a_url_names_a_container_in_a_vm_with_one_more_slash() {
        let nested = PartitionRef::Name(PartitionName::new("web/box").unwrap());
        let named = |text: &str| ServiceRef::Name(ElementName::new(text).unwrap());
        for (text, service) in [
            ("hvsock://web/box/2761", "2761".parse().unwrap()),
            ("hvsock://web/box/a%2Fb", named("a/b")),
            ("hvsock://web/box/a%20b", named("a b")),
        ] {
            let url: HvUrl = text.parse().unwrap();
            assert_eq!(
                (&url.partition, &url.service),
                (&nested, &service),
                "{text}"
            );
            assert_eq!(url.to_string(), text);
        }
        // After a word or an id nothing but a service can follow.
        let url: HvUrl = "hvsock://parent/a/b".parse().unwrap();
        assert_eq!(url.service, named("a/b"));
        assert_eq!(url.to_string(), "hvsock://parent/a%2Fb");
        for bad in [
            "hvsock://a/b/c/d",
            "hvsock://a//b",
            "hvsock://a/b/",
            "hvsock:///a/b",
        ] {
            assert!(bad.parse::<HvUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn each_invalid_url_has_its_error() {
        assert_eq!("http://a/b".parse::<HvUrl>(), Err(ParseUrlError::Scheme));
        assert_eq!("hvsock:/é".parse::<HvUrl>(), Err(ParseUrlError::Scheme));
        assert_eq!(
            "hvsock://parent".parse::<HvUrl>(),
            Err(ParseUrlError::NoService)
        );
        assert_eq!(
            "hvsock:///x".parse::<HvUrl>(),
            Err(ParseUrlError::NoService)
        );
        assert_eq!(
            "hvsock://web/a%2".parse::<HvUrl>(),
            Err(ParseUrlError::Encoding)
        );
        assert_eq!(
            "hvsock://web/%ff".parse::<HvUrl>(),
            Err(ParseUrlError::Encoding)
        );
        assert!(matches!(
            "hvsock://a b/x".parse::<HvUrl>(),
            Err(ParseUrlError::Part(_))
        ));
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused_without_a_panic(text in "\\PC*") {
            let _ = text.parse::<HvUrl>();
            let _ = format!("hvsock://{text}").parse::<HvUrl>();
        }

        #[test]
        fn every_name_survives_a_round_trip_through_a_url(name in "[^\\p{C}]{1,40}") {
            if let Ok(service) = name.parse::<ServiceRef>() {
                let url = HvUrl { partition: VmId::LOOPBACK.into(), service };
                prop_assert_eq!(url.to_string().parse::<HvUrl>(), Ok(url));
            }
        }
    }
}
