//! The line that a client sends, as a server reads it.

use std::str::FromStr;

use hvsock_address::{ElementName, ParseRefError, ServiceId, ServiceRef};

/// The word that begins a request.
const CONNECT: &str = "CONNECT";

/// The most bytes of a request, with its newline: the word, the longest friendly name, and some white
/// space.
pub const MAX_HYBRID_REQUEST: usize = 320;

/// A client's request for a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HybridRequest {
    /// To a vsock port.
    Port(u32),
    /// To a service, by its GUID.
    Service(ServiceId),
    /// To a service, by its friendly name.
    Name(ElementName),
}

/// A line that is not a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHybridRequest {
    /// It does not begin with `CONNECT`.
    #[error("expected the line `CONNECT <port, GUID or name>`")]
    NotConnect,
    /// It has more than [`MAX_HYBRID_REQUEST`] bytes.
    #[error("a request has at most {MAX_HYBRID_REQUEST} bytes")]
    TooLong,
    /// It ends before its newline.
    #[error("the request ends without a newline")]
    NoNewline,
    /// It is not UTF-8.
    #[error("the request is not UTF-8")]
    NotUtf8,
    /// What follows `CONNECT` names no service.
    #[error("{0}")]
    NotService(#[from] ParseRefError),
}

impl HybridRequest {
    /// Parses a line, with or without its newline. White space around the words is ignored, and so is the
    /// case of `CONNECT`. A number is a port, as Firecracker has it, and no GUID.
    ///
    /// # Errors
    ///
    /// See [`InvalidHybridRequest`].
    pub fn parse(line: &[u8]) -> Result<Self, InvalidHybridRequest> {
        if line.len() > MAX_HYBRID_REQUEST {
            return Err(InvalidHybridRequest::TooLong);
        }
        let line = line.trim_ascii();
        let (word, rest) = line.split_at(line.len().min(CONNECT.len()));
        if !word.eq_ignore_ascii_case(CONNECT.as_bytes())
            || !rest.first().is_some_and(u8::is_ascii_whitespace)
        {
            return Err(InvalidHybridRequest::NotConnect);
        }
        let target = std::str::from_utf8(rest).map_err(|_| InvalidHybridRequest::NotUtf8)?;
        let target = target.trim_ascii();
        let service = ServiceRef::from_str(target)?;
        let is_number = target.bytes().all(|byte| byte.is_ascii_digit());
        Ok(match service {
            ServiceRef::Id(id) => match id.port().filter(|_| is_number) {
                Some(port) => Self::Port(port),
                None => Self::Service(id),
            },
            ServiceRef::Name(name) => Self::Name(name),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> HybridRequest {
        HybridRequest::Name(ElementName::new(text).unwrap())
    }

    #[test]
    fn a_request_names_a_port_a_guid_or_a_name() {
        let guid: ServiceId = "5ca1ab1e-0000-4000-8000-000000000000".parse().unwrap();
        for (line, request) in [
            ("CONNECT 52\n", HybridRequest::Port(52)),
            ("connect 52\n", HybridRequest::Port(52)),
            ("Connect 52\r\n", HybridRequest::Port(52)),
            ("  CONNECT\t 052 \n", HybridRequest::Port(52)),
            ("CONNECT 0\n", HybridRequest::Port(0)),
            ("CONNECT 4294967295\n", HybridRequest::Port(u32::MAX)),
            ("CONNECT HV Socket Demo\n", name("HV Socket Demo")),
            ("CONNECT connect\n", name("connect")),
            ("CONNECT -1\n", name("-1")),
            ("CONNECT grüße\n", name("grüße")),
        ] {
            assert_eq!(
                HybridRequest::parse(line.as_bytes()),
                Ok(request),
                "{line:?}"
            );
        }
        for form in [guid.to_string(), guid.to_string().to_uppercase()] {
            let line = format!("CONNECT {form}\n");
            let request = HybridRequest::parse(line.as_bytes());
            assert_eq!(request, Ok(HybridRequest::Service(guid)));
        }
        // The GUID of a port is a GUID, and not the service whose alias the port is.
        let template = ServiceId::from_port(0x4000_0001);
        let line = format!("CONNECT {template}");
        let request = HybridRequest::parse(line.as_bytes());
        assert_eq!(request, Ok(HybridRequest::Service(template)));
    }

    #[test]
    fn a_line_that_is_no_request_has_a_reason() {
        for (line, reason) in [
            ("", "expected the line `CONNECT <port, GUID or name>`"),
            ("\n", "expected the line"),
            ("CONNECT\n", "expected the line"),
            ("CONNECT \n", "expected the line"),
            ("CONNECT52\n", "expected the line"),
            ("CONNECTED 52\n", "expected the line"),
            ("GET / HTTP/1.1\r\n", "expected the line"),
            ("OK 52\n", "expected the line"),
            ("CONNECT 4294967296\n", "a vsock port is a number up to"),
            ("CONNECT a\u{1b}b\n", "not a service"),
        ] {
            let error = HybridRequest::parse(line.as_bytes())
                .unwrap_err()
                .to_string();
            assert!(error.contains(reason), "{line:?}: {error}");
        }
        let not_utf8 = HybridRequest::parse(b"CONNECT \xff\n");
        assert_eq!(not_utf8, Err(InvalidHybridRequest::NotUtf8));
        let long = format!("CONNECT {:>1$}\n", 52, MAX_HYBRID_REQUEST);
        let long = HybridRequest::parse(long.as_bytes());
        assert_eq!(long, Err(InvalidHybridRequest::TooLong));
    }

    #[test]
    fn the_longest_name_fits_into_a_request() {
        let longest = "x".repeat(ElementName::MAX_LEN);
        let line = format!("CONNECT {longest}\r\n");
        assert_eq!(HybridRequest::parse(line.as_bytes()), Ok(name(&longest)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_are_parsed_without_a_panic(line in any::<Vec<u8>>()) {
            let _ = HybridRequest::parse(&line);
            let _ = HybridRequest::parse(&[b"CONNECT ", &line[..]].concat());
        }
    }
}
