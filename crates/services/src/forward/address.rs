//! Socket addresses: `tcp:[HOST:]PORT`, `unix:PATH` or `ssh`.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::wire::forward as wire;

/// The longest path in a Unix socket's address, in bytes, without the NUL (unix(7)).
const MAX_PATH: usize = 107;
/// The longest host name, in bytes (RFC 1035, without the last dot).
const MAX_HOST: usize = 253;
/// The default host.
const LOCALHOST: &str = "localhost";

/// The address of a socket on the host or in a guest.
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
    /// A TCP port of a host; the default host is loopback.
    Tcp {
        /// An IP address or a name.
        host: String,
        /// The port. To listen, 0 lets the system choose one.
        port: u16,
    },
    /// A Unix stream socket, by its absolute path.
    Unix(PathBuf),
    /// The SSH server of a guest, which the agent connects to or starts.
    Ssh,
}

/// Why a text, or an address from a peer, is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseAddressError {
    /// An unknown kind of address.
    #[error("invalid address `{0}`: write tcp:[HOST:]PORT, unix:PATH or ssh")]
    Kind(String),
    /// Not a number from 0 to 65535.
    #[error("invalid TCP port `{0}`: write a number up to 65535")]
    Port(String),
    /// Neither an IP address nor a valid host name.
    #[error("invalid host `{0}`: write an IP address (IPv6 in brackets) or a name")]
    Host(String),
    /// Relative, too long, or with a NUL.
    #[error("invalid Unix socket path `{0}`: write an absolute path of at most {MAX_PATH} bytes")]
    Path(String),
    /// An empty address from a peer.
    #[error("the address is empty")]
    Empty,
}

impl Address {
    /// A TCP port of `host`, an IP address or a name; empty means loopback.
    ///
    /// # Errors
    ///
    /// [`ParseAddressError::Host`] if `host` is neither an IP address nor a valid name.
    pub fn tcp(host: &str, port: u16) -> Result<Self, ParseAddressError> {
        let host = match host {
            "" => LOCALHOST,
            host => host,
        };
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let is_name = !host.starts_with('-') && host.chars().all(named);
        if host.len() > MAX_HOST || !(is_name || host.parse::<Ipv6Addr>().is_ok()) {
            return Err(ParseAddressError::Host(
                host.chars().take(MAX_HOST).collect(),
            ));
        }
        let host = host.to_owned();
        Ok(Self::Tcp { host, port })
    }

    /// A Unix socket.
    ///
    /// # Errors
    ///
    /// [`ParseAddressError::Path`] if the path is relative, longer than 107 bytes, or contains NUL.
    pub fn unix(path: impl AsRef<Path>) -> Result<Self, ParseAddressError> {
        let path = path.as_ref();
        let bytes = path.as_os_str().as_encoded_bytes();
        if !path.is_absolute() || bytes.len() > MAX_PATH || bytes.contains(&0) {
            let path = path.display().to_string();
            return Err(ParseAddressError::Path(path.chars().take(256).collect()));
        }
        Ok(Self::Unix(path.to_owned()))
    }

    /// Converts to the wire format. A path that is not UTF-8 has none.
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

    /// Converts from the wire format, and validates it.
    pub(crate) fn from_wire(address: &wire::Address) -> Result<Self, ParseAddressError> {
        use wire::address::Kind;

        match &address.kind {
            Some(Kind::Tcp(tcp)) => {
                let port = u16::try_from(tcp.port)
                    .map_err(|_| ParseAddressError::Port(tcp.port.to_string()))?;
                Self::tcp(&tcp.host, port)
            }
            Some(Kind::Unix(path)) => Self::unix(path),
            Some(Kind::Ssh(_)) => Ok(Self::Ssh),
            None => Err(ParseAddressError::Empty),
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
            Some(("tcp", rest)) => {
                let (host, port) = rest.rsplit_once(':').unwrap_or(("", rest));
                // `parse` alone would accept a sign.
                let port = match port.bytes().all(|byte| byte.is_ascii_digit()) {
                    true => port.parse().ok(),
                    false => None,
                };
                let port = port.ok_or_else(|| {
                    let text = rest.rsplit(':').next().unwrap_or_default();
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
    fn a_host_is_optional_and_is_a_name_or_an_address() {
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
    fn an_invalid_address_names_the_invalid_part() {
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
    fn an_address_from_a_peer_is_validated() {
        use wire::address::Kind;
        let of = |kind| Address::from_wire(&wire::Address { kind });
        assert_eq!(of(None), Err(ParseAddressError::Empty));
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
        fn an_address_survives_printing_and_sending(text in "(tcp:([a-z][a-z0-9.-]{0,20}:|\\[::[1-9a-f]{1,4}\\]:)?[1-9][0-9]{0,3}|unix:/[a-zA-Z0-9:/ ._-]{1,100}|ssh)") {
            let address: Address = text.parse().unwrap();
            prop_assert_eq!(address.to_string().parse(), Ok(address.clone()));
            prop_assert_eq!(Address::from_wire(&address.to_wire().unwrap()), Ok(address));
        }

        #[test]
        fn any_text_parses_or_fails(text in ".{0,300}") {
            let _ = text.parse::<Address>();
            let _ = format!("tcp:{text}").parse::<Address>();
        }
    }
}
