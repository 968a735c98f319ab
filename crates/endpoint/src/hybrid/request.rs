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
    #[error(transparent)]
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

/// Reads a request in the pieces in which it arrives.
///
/// The bytes after the newline are the connection's data, so [`read`](Self::read) says how many bytes belong
/// to the request. Whoever reads from a socket looks at its bytes without consuming them (`MSG_PEEK`) and
/// then consumes that many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HybridRequestReader {
    line: Vec<u8>,
}

impl HybridRequestReader {
    /// The most bytes that can still belong to the request; never 0.
    pub fn wanted(&self) -> usize {
        MAX_HYBRID_REQUEST - self.line.len()
    }

    /// What has arrived of an incomplete request. A new reader that [reads](Self::read) it is equal to this
    /// one.
    pub fn received(&self) -> &[u8] {
        &self.line
    }

    /// Reads further bytes. Returns how many of them belong to the request, and the request once it is
    /// complete.
    ///
    /// # Errors
    ///
    /// If the bytes are no request and cannot become one.
    pub fn read(
        &mut self,
        bytes: &[u8],
    ) -> Result<(usize, Option<HybridRequest>), InvalidHybridRequest> {
        let bytes = &bytes[..bytes.len().min(self.wanted())];
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let count = end.map_or(bytes.len(), |end| end + 1);
        self.line.extend_from_slice(&bytes[..count]);
        if end.is_some() {
            return Ok((count, Some(HybridRequest::parse(&self.line)?)));
        }
        // What cannot become a request is not waited for.
        if !may_begin(&self.line) {
            return Err(InvalidHybridRequest::NotConnect);
        }
        match self.wanted() {
            0 => Err(InvalidHybridRequest::TooLong),
            _ => Ok((count, None)),
        }
    }
}

/// Whether a request can begin with these bytes.
fn may_begin(line: &[u8]) -> bool {
    let line = line.trim_ascii_start();
    let common = line.len().min(CONNECT.len());
    line[..common].eq_ignore_ascii_case(&CONNECT.as_bytes()[..common])
        && line.get(CONNECT.len()).is_none_or(u8::is_ascii_whitespace)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
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
    fn a_request_ends_at_its_newline_and_what_follows_is_data() {
        let mut reader = HybridRequestReader::default();
        assert_eq!(reader.read(b""), Ok((0, None)));
        assert_eq!(reader.read(b"CONN"), Ok((4, None)));
        let rest = reader.read(b"ECT 52\nCONNECT 53\n");
        assert_eq!(rest, Ok((7, Some(HybridRequest::Port(52)))));
    }

    #[test]
    fn what_cannot_become_a_request_is_refused_at_its_first_wrong_byte() {
        let mut reader = HybridRequestReader::default();
        assert_eq!(reader.read(b"C"), Ok((1, None)));
        let wrong = reader.read(b"x");
        assert_eq!(wrong, Err(InvalidHybridRequest::NotConnect));
        let endless = HybridRequestReader::default().read(&[b' '; 2 * MAX_HYBRID_REQUEST]);
        assert_eq!(endless, Err(InvalidHybridRequest::TooLong));
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

        /// The pieces in which bytes arrive change neither the request nor where the data begins.
        #[test]
        fn a_request_in_pieces_is_the_same_request(
            bytes in prop_oneof![
                vec(any::<u8>(), 0..400),
                "[ ]{0,3}[cC]onnect [0-9a-z ]{0,340}\r?\n[ -~\n]{0,20}".prop_map(String::into_bytes),
                "[CONECT 1-3\n]{0,20}".prop_map(String::into_bytes),
            ],
            cuts in vec(1..50_usize, 0..40),
        ) {
            let whole = HybridRequestReader::default().read(&bytes);
            let (mut reader, mut at, mut cuts) = (HybridRequestReader::default(), 0, cuts.into_iter());
            let in_pieces = loop {
                let end = (at + cuts.next().unwrap_or(usize::MAX).min(bytes.len())).min(bytes.len());
                match reader.read(&bytes[at..end]) {
                    Ok((count, Some(request))) => break Ok((at + count, Some(request))),
                    Ok((count, None)) if at + count == bytes.len() => break Ok((bytes.len(), None)),
                    Ok((count, None)) => {
                        prop_assert_eq!(at + count, end);
                        at = end;
                        let mut again = HybridRequestReader::default();
                        prop_assert_eq!(again.read(reader.received()), Ok((at, None)));
                        prop_assert_eq!(&again, &reader);
                    }
                    Err(error) => break Err(error),
                }
            };
            // A line that is wrong at its beginning may be too long as well.
            match (&whole, &in_pieces) {
                (Err(_), Err(_)) => {}
                _ => prop_assert_eq!(whole, in_pieces),
            }
        }
    }
}
