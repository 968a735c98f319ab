//! The lines by which a program connects to a guest through a Unix socket of its VMM ("hybrid vsock").
//!
//! A program connects to the VMM's socket and writes `CONNECT <port>\n`. The VMM connects to the port in the
//! guest and answers `OK <text>\n`, or closes. From then on the socket carries the connection's bytes. To a
//! program of the host a guest connects the other way: the VMM connects to a Unix socket whose path is the
//! VMM's own with [a suffix](HybridService::suffix). Firecracker made the convention (its
//! `docs/vsock.md`); Cloud Hypervisor, vhost-device-vsock, Dragonball and OpenVMM follow it. OpenVMM also takes a GUID in place of
//! the port.
//!
//! The broker has such a socket for each of its VMs as well. [`HybridRequest`] is a line that it reads there,
//! [`HybridReply::to_line`] its answer. `docs/hybrid.md` has what it accepts beyond the convention.

mod reply;
mod request;

use std::fmt;

pub use request::{HybridRequest, HybridRequestReader, InvalidHybridRequest, MAX_HYBRID_REQUEST};

use hvsock_address::ServiceId;

/// The longest answer in bytes, with its newline. OpenVMM's longest, `OK <GUID>\n`, has 40; the reason of
/// a refusal may be longer.
pub const MAX_HYBRID_REPLY: usize = 256;

/// A service, as such a VMM names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HybridService {
    /// A vsock port.
    Port(u32),
    /// A GUID, which only OpenVMM knows.
    Guid(ServiceId),
}

impl HybridService {
    /// The line that requests a connection. It has 10 bytes at least, which Firecracker requires of the first
    /// read, and 45 at most, which OpenVMM allows.
    pub fn connect_line(self) -> String {
        format!("CONNECT {self}\n")
    }

    /// What follows the VMM's path in the path of the host's socket for this service.
    pub fn suffix(self) -> String {
        format!("_{self}")
    }
}

impl fmt::Display for HybridService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => port.fmt(f),
            Self::Guid(id) => id.fmt(f),
        }
    }
}

/// The answer to a [`connect_line`](HybridService::connect_line).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HybridReply {
    /// The guest has accepted. The text is the VMM's: a port of the host (Firecracker), the guest's port
    /// (vhost-device-vsock), or what was requested (OpenVMM).
    Connected(String),
    /// The connect was refused with this reason. Only hvsock's own socket sends one.
    Refused(String),
}

/// Why bytes are not an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HybridReplyError {
    /// There is no newline where the longest answer ends.
    #[error("the answer has no newline in its first {MAX_HYBRID_REPLY} bytes")]
    TooLong,
    /// The line does not begin with `OK` or `ERR`, or has bytes that are no printable ASCII.
    #[error("the answer is neither `OK` nor `ERR`: {0:?}")]
    Unknown(String),
}

/// Reads the answer in the pieces in which it arrives.
///
/// The bytes after the newline are the connection's data, so [`read`](Self::read) says how many bytes
/// belong to the answer. Whoever reads from a socket looks at its bytes without consuming them
/// (`MSG_PEEK`) and then consumes that many.
#[derive(Debug, Default)]
pub struct HybridReplyReader {
    line: Vec<u8>,
}

impl HybridReplyReader {
    /// The most bytes that can still belong to the answer.
    pub fn wanted(&self) -> usize {
        MAX_HYBRID_REPLY - self.line.len()
    }

    /// Reads further bytes. Returns how many of them belong to the answer, and the answer once it is
    /// complete.
    ///
    /// # Errors
    ///
    /// If the bytes are not an answer. The connection is of no use then.
    pub fn read(&mut self, bytes: &[u8]) -> Result<(usize, Option<HybridReply>), HybridReplyError> {
        let bytes = &bytes[..bytes.len().min(self.wanted())];
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let count = end.unwrap_or(bytes.len());
        self.line.extend_from_slice(&bytes[..count]);
        match end {
            Some(_) => Ok((count + 1, Some(parse(&self.line)?))),
            // What cannot become an answer is not waited for.
            None if !may_begin(&self.line) => Err(unknown(&self.line)),
            None if self.wanted() == 0 => Err(HybridReplyError::TooLong),
            None => Ok((count, None)),
        }
    }
}

/// The words that begin an answer.
const WORDS: [&[u8]; 2] = [b"OK", b"ERR"];

/// Whether an answer can begin with these bytes.
fn may_begin(line: &[u8]) -> bool {
    line.iter().all(|byte| is_text(*byte))
        && WORDS.iter().any(|word| {
            let common = word.len().min(line.len());
            line[..common] == word[..common]
                && line.get(word.len()).is_none_or(|next| *next == b' ')
        })
}

/// Printable ASCII, with the space.
fn is_text(byte: u8) -> bool {
    (b' '..=b'~').contains(&byte)
}

fn parse(line: &[u8]) -> Result<HybridReply, HybridReplyError> {
    let word = WORDS.iter().position(|word| line.starts_with(word));
    let (Some(word), true) = (word, may_begin(line)) else {
        return Err(unknown(line));
    };
    let text = String::from_utf8_lossy(&line[WORDS[word].len()..]);
    let text = text.trim().to_owned();
    Ok(match word {
        0 => HybridReply::Connected(text),
        _ => HybridReply::Refused(text),
    })
}

fn unknown(line: &[u8]) -> HybridReplyError {
    /// Enough to recognize another protocol by.
    const SHOWN: usize = 40;
    let shown = &line[..line.len().min(SHOWN)];
    HybridReplyError::Unknown(String::from_utf8_lossy(shown).into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Result<(usize, Option<HybridReply>), HybridReplyError> {
        HybridReplyReader::default().read(bytes)
    }

    #[test]
    fn a_connect_line_has_at_least_the_10_bytes_of_firecrackers_first_read() {
        assert_eq!(HybridService::Port(1).connect_line(), "CONNECT 1\n");
        assert_eq!(HybridService::Port(0).connect_line().len(), 10);
        let last = HybridService::Port(u32::MAX).connect_line();
        assert_eq!(last, "CONNECT 4294967295\n");
        assert!(last.len() <= 32);
    }

    #[test]
    fn a_guid_is_in_lower_case_and_fits_openvmms_line() {
        let id: ServiceId = "E0E16197-DD56-4A10-9195-5EE7A155A838".parse().unwrap();
        let service = HybridService::Guid(id);
        let line = service.connect_line();
        assert_eq!(line, "CONNECT e0e16197-dd56-4a10-9195-5ee7a155a838\n");
        assert_eq!(line.len(), 45);
        assert_eq!(service.suffix(), "_e0e16197-dd56-4a10-9195-5ee7a155a838");
    }

    #[test]
    fn the_answers_of_each_vmm_are_read_and_their_data_is_left() {
        let connected = |text: &str| Some(HybridReply::Connected(text.into()));
        for (line, reply) in [
            ("OK 1073741824\n", connected("1073741824")),
            ("OK 5000\n", connected("5000")),
            (
                "OK 00001388-facb-11e6-bd58-64006a7986d3\n",
                connected("00001388-facb-11e6-bd58-64006a7986d3"),
            ),
            ("OK\n", connected("")),
            (
                "ERR no listener\n",
                Some(HybridReply::Refused("no listener".into())),
            ),
        ] {
            assert_eq!(read(line.as_bytes()), Ok((line.len(), reply.clone())));
            let with_data = format!("{line}OK 1\nhello");
            assert_eq!(read(with_data.as_bytes()), Ok((line.len(), reply)));
        }
    }

    #[test]
    fn what_is_not_an_answer_is_refused_at_its_first_wrong_byte() {
        for bytes in [
            &b"SSH-2.0-OpenSSH\r\n"[..],
            b"O \n",
            b"OKAY\n",
            b"OK\r\n",
            b"ok 1\n",
            b"ERROR\n",
            b"\n",
            b"OK \x1b[31m\n",
            b"OK \xff\n",
            b"S",
            b"OKx",
            b"\0",
        ] {
            let error = read(bytes).unwrap_err();
            assert!(matches!(error, HybridReplyError::Unknown(_)), "{bytes:?}");
        }
    }

    #[test]
    fn an_endless_line_is_refused_where_the_longest_answer_ends() {
        let mut reader = HybridReplyReader::default();
        let mut line = b"OK ".to_vec();
        line.resize(MAX_HYBRID_REPLY - 1, b'1');
        assert_eq!(reader.read(&line), Ok((line.len(), None)));
        assert_eq!(reader.wanted(), 1);
        assert_eq!(reader.read(b"11\n"), Err(HybridReplyError::TooLong));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// The pieces in which bytes arrive change neither the answer nor where the data begins.
        #[test]
        fn an_answer_in_pieces_is_the_same_answer(
            bytes in prop_oneof![
                vec(any::<u8>(), 0..400),
                "(OK|ERR)( [ -~]{0,60})?\n[ -~]{0,20}".prop_map(String::into_bytes),
                "[OKER 1-3\n]{0,20}".prop_map(String::into_bytes),
            ],
            cuts in vec(1..50_usize, 0..40),
        ) {
            let whole = read(&bytes);
            let (mut reader, mut at, mut cuts) = (HybridReplyReader::default(), 0, cuts.into_iter());
            let in_pieces = loop {
                let end = (at + cuts.next().unwrap_or(usize::MAX).min(bytes.len())).min(bytes.len());
                match reader.read(&bytes[at..end]) {
                    Ok((count, Some(reply))) => break Ok((at + count, Some(reply))),
                    Ok((count, None)) if at + count == bytes.len() => break Ok((bytes.len(), None)),
                    Ok((count, None)) => {
                        prop_assert_eq!(at + count, end);
                        at = end;
                    }
                    Err(error) => break Err(error),
                }
            };
            match (&whole, &in_pieces) {
                (Err(HybridReplyError::Unknown(_)), Err(HybridReplyError::Unknown(_))) => {}
                _ => prop_assert_eq!(whole, in_pieces),
            }
        }
    }
}
