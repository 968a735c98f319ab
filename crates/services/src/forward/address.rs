//! Where a socket is: `tcp:[HOST:]PORT`, `unix:PATH` or `ssh`.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::wire::forward as wire;

/// The most bytes of a path that a Unix socket's address holds, beside the NUL.
const LONGEST_PATH: usize = 107;
/// The most bytes of a host's name (RFC 1035, without the last dot).
const LONGEST_HOST: usize = 253;
/// The host where none is named.
const LOCALHOST: &str = "localhost";

/// The address of a socket in the host or in a guest.
///
/// ```
/// use hvsock_services::forward::Address;
///
/// let address: Address = "tcp:80".parse()?;
/// assert_eq!(address.to_string(), "tcp:localhost:80");
/// # Ok::<(), hvsock_services::forward::ParseAddressError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A TCP port of a host, which is an IP address or a name, loopback unless said otherwise.
    Tcp {
        /// An IP address or a name.
        host: String,
        /// The port; 0 to listen at one that the system chooses.
        port: u16,
    },
    /// A Unix stream socket, by its absolute path.
    Unix(PathBuf),
    /// The SSH server of a guest, however it is reached there.
    Ssh,
}

/// Why text, or what a peer sent, is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseAddressError {
    /// It begins with none of the kinds.
    #[error("`{0}` is no address; write tcp:[HOST:]PORT, unix:PATH or ssh")]
    Kind(String),
    /// Not a number up to 65535.
    #[error("`{0}` is no TCP port; it is a number up to 65535")]
    Port(String),
    /// Neither an IP address nor what a name looks like.
    #[error("`{0}` is no host; write an IP address (IPv6 in brackets) or a name")]
    Host(String),
    /// Relative, too long, or with a NUL in it.
    #[error(
        "`{0}` is no path of a Unix socket; it is absolute and has at most {LONGEST_PATH} bytes"
    )]
    Path(String),
    /// Nothing at all, from a peer.
    #[error("the address is empty")]
    Nothing,
}

impl Address {
    /// A TCP port of `host`, as text has it; empty for loopback.
    pub fn tcp(host: &str, port: u16) -> Result<Self, ParseAddressError> {
        let host = match host {
            "" => LOCALHOST,
            host => host,
        };
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let is_name = !host.starts_with('-') && host.chars().all(named);
        if host.len() > LONGEST_HOST || !(is_name || host.parse::<Ipv6Addr>().is_ok()) {
            return Err(ParseAddressError::Host(
                host.chars().take(LONGEST_HOST).collect(),
            ));
        }
        let host = host.to_owned();
        Ok(Self::Tcp { host, port })
    }

    /// A Unix socket.
    pub fn unix(path: impl AsRef<Path>) -> Result<Self, ParseAddressError> {
        let path = path.as_ref();
        let bytes = path.as_os_str().as_encoded_bytes();
        if !path.is_absolute() || bytes.len() > LONGEST_PATH || bytes.contains(&0) {
            let path = path.display().to_string();
            return Err(ParseAddressError::Path(path.chars().take(256).collect()));
        }
        Ok(Self::Unix(path.to_owned()))
    }

    /// As it is sent. A path that is not UTF-8 cannot be.
    pub(crate) fn to_wire(&self) -> Result<wire::Address, ParseAddressError> {
        use wire::address::Kind;

        let kind = match self {
            Self::Tcp { host, port } => Kind::Tcp(wire::Tcp {
                host: host.clone(),
                port: u32::from(*port),
            }),
            Self::Unix(path) => match path.to_str() {
                Some(path) => Kind::Unix(path.to_owned()),
                None => return Err(ParseAddressError::Path(path.display().to_string())),
            },
            Self::Ssh => Kind::Ssh(wire::Ssh {}),
        };
        Ok(wire::Address { kind: Some(kind) })
    }

    /// What was sent.
    pub(crate) fn of_wire(address: &wire::Address) -> Result<Self, ParseAddressError> {
        use wire::address::Kind;

        match &address.kind {
            Some(Kind::Tcp(tcp)) => {
                let port = u16::try_from(tcp.port)
                    .map_err(|_| ParseAddressError::Port(tcp.port.to_string()))?;
                Self::tcp(&tcp.host, port)
            }
            Some(Kind::Unix(path)) => Self::unix(path),
            Some(Kind::Ssh(_)) => Ok(Self::Ssh),
            None => Err(ParseAddressError::Nothing),
        }
    }
}

impl FromStr for Address {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, ParseAddressError> {
        if text == "ssh" {
            return Ok(Self::Ssh);
        }
        match text.split_once(':') {
            Some(("unix", path)) => Self::unix(path),
            Some(("tcp", place)) => {
                let (host, port) = place.rsplit_once(':').unwrap_or(("", place));
                // A number and nothing else: `parse` would take a sign.
                let port = match port.bytes().all(|byte| byte.is_ascii_digit()) {
                    true => port.parse().ok(),
                    false => None,
                };
                let port = port.ok_or_else(|| {
                    let text = place.rsplit(':').next().unwrap_or_default();
                    ParseAddressError::Port(text.to_owned())
                })?;
                match host
                    .strip_prefix('[')
                    .and_then(|host| host.strip_suffix(']'))
                {
                    Some(inner) if inner.parse::<Ipv6Addr>().is_ok() => Self::tcp(inner, port),
                    Some(_) => Err(ParseAddressError::Host(host.to_owned())),
                    None if host.contains(':') => Err(ParseAddressError::Host(host.to_owned())),
                    None => Self::tcp(host, port),
                }
            }
            _ => Err(ParseAddressError::Kind(text.to_owned())),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Ssh => f.write_str("ssh"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tcp(host: &str, port: u16) -> Address {
        Address::tcp(host, port).unwrap()
    }

    #[test]
    fn a_host_may_be_left_out_named_or_an_address() {
        assert_eq!("tcp:80".parse(), Ok(tcp("localhost", 80)));
        assert_eq!("tcp:127.0.0.1:0".parse(), Ok(tcp("127.0.0.1", 0)));
        assert_eq!(
            "tcp:db-1.example:5432".parse(),
            Ok(tcp("db-1.example", 5432))
        );
        assert_eq!("tcp:[::1]:22".parse(), Ok(tcp("::1", 22)));
        assert_eq!("ssh".parse(), Ok(Address::Ssh));
        let path = PathBuf::from("/run/a:b.sock");
        assert_eq!("unix:/run/a:b.sock".parse(), Ok(Address::Unix(path)));
    }

    #[test]
    fn what_is_no_address_says_which_part_is_not() {
        use ParseAddressError::{Host, Kind, Path, Port};
        let of = |text: &str| text.parse::<Address>().unwrap_err();
        assert_eq!(of("udp:53"), Kind("udp:53".into()));
        assert_eq!(of("80"), Kind("80".into()));
        for port in ["", "65536", "+80", "-1", "http"] {
            assert_eq!(of(&format!("tcp:{port}")), Port(port.into()));
            assert_eq!(of(&format!("tcp:web:{port}")), Port(port.into()));
        }
        for host in ["::1", "[web]", "[::1", "we b", "a/b", "-oProxyCommand=x"] {
            assert_eq!(of(&format!("tcp:{host}:80")), Host(host.into()));
        }
        assert_eq!(of("unix:here.sock"), Path("here.sock".into()));
        assert!(matches!(of(&format!("unix:/{}", "a".repeat(107))), Path(_)));
        assert!(
            format!("unix:/{}", "a".repeat(106))
                .parse::<Address>()
                .is_ok()
        );
        assert!(matches!(of("unix:/a\0b"), Path(_)));
    }

    #[test]
    fn what_a_peer_sends_is_held_to_the_same() {
        use wire::address::Kind;
        let of = |kind| Address::of_wire(&wire::Address { kind });
        assert_eq!(of(None), Err(ParseAddressError::Nothing));
        let tcp = |host: &str, port| {
            let host = host.to_owned();
            Some(Kind::Tcp(wire::Tcp { host, port }))
        };
        assert!(of(tcp("localhost", 65_536)).is_err());
        assert!(of(tcp("--help", 80)).is_err());
        assert!(of(tcp(&"a".repeat(254), 80)).is_err());
        assert!(of(Some(Kind::Unix("relative".to_owned()))).is_err());
        assert_eq!(of(tcp("", 80)), "tcp:80".parse());
    }

    proptest! {
        #[test]
        fn what_is_printed_can_be_read_again_and_sent(text in "(tcp:([a-z][a-z0-9.-]{0,20}:|\\[::[1-9a-f]{1,4}\\]:)?[1-9][0-9]{0,3}|unix:/[a-zA-Z0-9:/ ._-]{1,100}|ssh)") {
            let address: Address = text.parse().unwrap();
            prop_assert_eq!(address.to_string().parse(), Ok(address.clone()));
            prop_assert_eq!(Address::of_wire(&address.to_wire().unwrap()), Ok(address));
        }

        #[test]
        fn no_text_is_too_odd(text in ".{0,300}") {
            let _ = text.parse::<Address>();
            let _ = format!("tcp:{text}").parse::<Address>();
        }
    }
}
