//! The line that a program writes.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use hvsock_address::{ParseRefError, PartitionRef, ServiceId, ServiceRef, VmId};

use super::MAX_TEXT_LINE;
use crate::IdOrName;

/// The word before a CID.
const CID: &str = "cid:";
/// The name of the host of this virtual machine, for a container in it.
const HOST: &str = "host";

/// A request of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextRequest {
    /// `CONNECT`: a connection.
    Connect(TextConnect),
    /// `CONNECT` with a vsock port only, as Firecracker has it: a connection to this port of the parent.
    ConnectPort(u32),
    /// `LISTEN`: a listener.
    Listen(TextListen),
    /// `ACCEPT`: the next connection of the listener with this token.
    Accept(ListenerToken),
    /// `WHY`: what a connect would come to.
    Why {
        /// The partition.
        partition: TextPartition,
        /// The service.
        service: IdOrName<ServiceId>,
    },
    /// `LOOKUP partition`: the id of a partition.
    LookupPartition(TextPartition),
    /// `LOOKUP service`: the id of a service.
    LookupService(IdOrName<ServiceId>),
    /// `CID`: the context id of a partition.
    Cid(TextPartition),
}

/// The secret by which connections of a listener are accepted. It is the program's to keep.
pub type ListenerToken = [u8; 16];

/// A partition in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextPartition {
    /// By its GUID or name.
    Named(IdOrName<VmId>),
    /// By its vsock context id.
    Cid(u32),
}

/// A request for a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextConnect {
    /// The connect timeout in milliseconds; 0 is the broker's default.
    pub timeout_ms: u32,
    /// The partition.
    pub partition: TextPartition,
    /// The service.
    pub service: IdOrName<ServiceId>,
}

/// A request for a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextListen {
    /// The number of connections that may wait to be accepted; 0 is the broker's default.
    pub backlog: u32,
    /// The Unix socket to which the broker connects for each connection, if they are not accepted.
    pub callback: Option<PathBuf>,
    /// The partitions to accept from.
    pub from: TextPartition,
    /// The service to offer.
    pub service: IdOrName<ServiceId>,
}

/// A line that is not a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTextRequest {
    /// It begins with another word.
    #[error("a request begins with CONNECT, LISTEN, ACCEPT, WHY, LOOKUP or CID")]
    UnknownWord,
    /// A part is missing.
    #[error("expected `{0}`")]
    Incomplete(&'static str),
    /// An option that the request does not have.
    #[error("there is no option `{0}` here")]
    UnknownOption(String),
    /// An option with a value that it cannot have.
    #[error("the option `{0}` has no such value")]
    OptionValue(&'static str),
    /// No CID.
    #[error("a CID is a number up to 4294967295")]
    NotCid,
    /// No token.
    #[error("the token is the one that LISTEN was answered with")]
    NotToken,
    /// It names no partition or no service.
    #[error(transparent)]
    NotAddress(#[from] ParseRefError),
    /// It has more than [`MAX_TEXT_LINE`] bytes.
    #[error("a request has at most {MAX_TEXT_LINE} bytes")]
    TooLong,
    /// It ends before its newline.
    #[error("the request ends without a newline")]
    NoNewline,
    /// It is not UTF-8.
    #[error("the request is not UTF-8")]
    NotUtf8,
}

const CONNECT_FORM: &str = "CONNECT [timeout=MS] PARTITION SERVICE, or CONNECT PORT";
const LISTEN_FORM: &str = "LISTEN [backlog=N] [at=PATH] FROM SERVICE";
const ACCEPT_FORM: &str = "ACCEPT TOKEN";
const WHY_FORM: &str = "WHY PARTITION SERVICE";
const LOOKUP_FORM: &str = "LOOKUP partition PARTITION, or LOOKUP service SERVICE";
const CID_FORM: &str = "CID PARTITION";

/// The words that begin a request.
const WORDS: [&str; 6] = ["CONNECT", "LISTEN", "ACCEPT", "WHY", "LOOKUP", "CID"];

impl TextRequest {
    /// Parses a line, with or without its newline. White space around the words is ignored, and so is the case
    /// of the first one. The service is the rest of the line.
    ///
    /// # Errors
    ///
    /// See [`InvalidTextRequest`].
    pub fn parse(line: &[u8]) -> Result<Self, InvalidTextRequest> {
        if line.len() > MAX_TEXT_LINE {
            return Err(InvalidTextRequest::TooLong);
        }
        let line = std::str::from_utf8(line).map_err(|_| InvalidTextRequest::NotUtf8)?;
        let (word, rest) = split(line);
        match word.to_ascii_uppercase().as_str() {
            "CONNECT" => connect(rest),
            "LISTEN" => listen(rest),
            "ACCEPT" => {
                let (token, more) = split(rest);
                complete(token, ACCEPT_FORM)?;
                let token = VmId::from_str(token).ok().filter(|_| more.is_empty());
                let token = token.ok_or(InvalidTextRequest::NotToken)?;
                Ok(Self::Accept(token.to_guid_bytes()))
            }
            "WHY" => {
                let (partition, service) = address(rest, WHY_FORM)?;
                Ok(Self::Why { partition, service })
            }
            "LOOKUP" => {
                let (kind, what) = split(rest);
                complete(what, LOOKUP_FORM)?;
                match kind {
                    "partition" => Ok(Self::LookupPartition(only_partition(what, LOOKUP_FORM)?)),
                    "service" => Ok(Self::LookupService(service(what)?)),
                    _ => Err(InvalidTextRequest::Incomplete(LOOKUP_FORM)),
                }
            }
            "CID" => Ok(Self::Cid(only_partition(rest, CID_FORM)?)),
            _ => Err(InvalidTextRequest::UnknownWord),
        }
    }
}

/// The first word, and the rest without white space around it.
fn split(text: &str) -> (&str, &str) {
    let text = text.trim_ascii();
    let end = text.find(|c: char| c.is_ascii_whitespace());
    let (word, rest) = text.split_at(end.unwrap_or(text.len()));
    (word, rest.trim_ascii())
}

fn complete(text: &str, form: &'static str) -> Result<(), InvalidTextRequest> {
    match text.is_empty() {
        true => Err(InvalidTextRequest::Incomplete(form)),
        false => Ok(()),
    }
}

/// The next option, whose key is in lower case, and what follows it. No partition has an equals sign in its
/// name.
fn option(text: &str) -> Option<(&str, &str, &str)> {
    let (word, rest) = split(text);
    let (key, value) = word.split_once('=')?;
    Some((key, value, rest))
}

fn connect(mut rest: &str) -> Result<TextRequest, InvalidTextRequest> {
    let mut timeout_ms = None;
    while let Some((key, value, more)) = option(rest) {
        match key {
            "timeout" => timeout_ms = Some(number(value, "timeout")?),
            _ => return Err(InvalidTextRequest::UnknownOption(key.to_owned())),
        }
        rest = more;
    }
    complete(rest, CONNECT_FORM)?;
    let (word, more) = split(rest);
    let is_number = word.bytes().all(|byte| byte.is_ascii_digit());
    if more.is_empty() && is_number && timeout_ms.is_none() {
        let too_large = || ParseRefError::PortTooLarge(word.to_owned());
        let port = word.parse().map_err(|_| too_large())?;
        return Ok(TextRequest::ConnectPort(port));
    }
    let (partition, service) = address(rest, CONNECT_FORM)?;
    Ok(TextRequest::Connect(TextConnect {
        timeout_ms: timeout_ms.unwrap_or(0),
        partition,
        service,
    }))
}

fn listen(mut rest: &str) -> Result<TextRequest, InvalidTextRequest> {
    let (mut backlog, mut callback) = (0, None);
    while let Some((key, value, more)) = option(rest) {
        match key {
            "backlog" => backlog = number(value, "backlog")?,
            "at" => callback = Some(path(value)?),
            _ => return Err(InvalidTextRequest::UnknownOption(key.to_owned())),
        }
        rest = more;
    }
    let (from, service) = address(rest, LISTEN_FORM)?;
    Ok(TextRequest::Listen(TextListen {
        backlog,
        callback,
        from,
        service,
    }))
}

fn number(value: &str, key: &'static str) -> Result<u32, InvalidTextRequest> {
    let has_digits_only = value.bytes().all(|byte| byte.is_ascii_digit());
    let number = value.parse().ok().filter(|_| has_digits_only);
    number.ok_or(InvalidTextRequest::OptionValue(key))
}

/// An absolute path, in which `%` and two hexadecimal digits are a byte: white space would end the option.
fn path(value: &str) -> Result<PathBuf, InvalidTextRequest> {
    let invalid = InvalidTextRequest::OptionValue("at");
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let Some((digits, more)) = rest.split_first_chunk::<2>() else {
            return Err(invalid);
        };
        rest = more;
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let (Some(high), Some(low)) = (digit(digits[0]), digit(digits[1])) else {
            return Err(invalid);
        };
        bytes.push((high * 16 + low) as u8);
    }
    if bytes.first() != Some(&b'/') || bytes.contains(&0) {
        return Err(invalid);
    }
    os_string(bytes).map(PathBuf::from).ok_or(invalid)
}

/// A path has any bytes on Unix. Elsewhere there is no such socket.
#[cfg(unix)]
fn os_string(bytes: Vec<u8>) -> Option<OsString> {
    Some(std::os::unix::ffi::OsStringExt::from_vec(bytes))
}

/// A path has any bytes on Unix. Elsewhere there is no such socket.
#[cfg(not(unix))]
fn os_string(bytes: Vec<u8>) -> Option<OsString> {
    String::from_utf8(bytes).ok().map(OsString::from)
}

fn address(
    text: &str,
    form: &'static str,
) -> Result<(TextPartition, IdOrName<ServiceId>), InvalidTextRequest> {
    let (word, rest) = split(text);
    complete(rest, form)?;
    Ok((partition(word)?, service(rest)?))
}

fn only_partition(text: &str, form: &'static str) -> Result<TextPartition, InvalidTextRequest> {
    let (word, rest) = split(text);
    match word.is_empty() || !rest.is_empty() {
        true => Err(InvalidTextRequest::Incomplete(form)),
        false => partition(word),
    }
}

fn partition(word: &str) -> Result<TextPartition, InvalidTextRequest> {
    if let Some(cid) = word.strip_prefix(CID) {
        let has_digits_only = cid.bytes().all(|byte| byte.is_ascii_digit());
        let cid = cid.parse().ok().filter(|_| has_digits_only);
        return cid
            .map(TextPartition::Cid)
            .ok_or(InvalidTextRequest::NotCid);
    }
    Ok(TextPartition::Named(match word {
        HOST => IdOrName::Name(word.to_owned()),
        word => match PartitionRef::from_str(word)? {
            PartitionRef::Id(id) => IdOrName::Id(id),
            PartitionRef::Name(name) => IdOrName::Name(name.to_string()),
        },
    }))
}

fn service(text: &str) -> Result<IdOrName<ServiceId>, InvalidTextRequest> {
    Ok(match ServiceRef::from_str(text)? {
        ServiceRef::Id(id) => IdOrName::Id(id),
        ServiceRef::Name(name) => IdOrName::Name(name.to_string()),
    })
}

/// Reads a request in the pieces in which it arrives.
///
/// The bytes after the newline are the connection's data, so [`read`](Self::read) says how many bytes belong
/// to the request. Whoever reads from a socket looks at its bytes without consuming them (`MSG_PEEK`) and
/// then consumes that many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextRequestReader {
    line: Vec<u8>,
}

impl TextRequestReader {
    /// The most bytes that can still belong to the request; never 0.
    pub fn wanted(&self) -> usize {
        MAX_TEXT_LINE - self.line.len()
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
    ) -> Result<(usize, Option<TextRequest>), InvalidTextRequest> {
        let bytes = &bytes[..bytes.len().min(self.wanted())];
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let count = end.map_or(bytes.len(), |end| end + 1);
        self.line.extend_from_slice(&bytes[..count]);
        if end.is_some() {
            return Ok((count, Some(TextRequest::parse(&self.line)?)));
        }
        // What cannot become a request is not waited for.
        if !may_begin(&self.line) {
            return Err(InvalidTextRequest::UnknownWord);
        }
        match self.wanted() {
            0 => Err(InvalidTextRequest::TooLong),
            _ => Ok((count, None)),
        }
    }
}

/// Whether a request can begin with these bytes.
fn may_begin(line: &[u8]) -> bool {
    let line = line.trim_ascii_start();
    WORDS.iter().any(|word| {
        let common = line.len().min(word.len());
        line[..common].eq_ignore_ascii_case(&word.as_bytes()[..common])
            && line.get(word.len()).is_none_or(u8::is_ascii_whitespace)
    })
}

#[cfg(test)]
mod tests;
