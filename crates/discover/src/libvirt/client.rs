//! The calls of libvirt's protocol.

use std::path::Path;
use std::time::Instant;

use super::xdr::{Reader, Writer};
use crate::error::Unavailable;
use crate::wire::Wire;

/// The program and its version.
const PROGRAM: u32 = 0x2000_8086;
const VERSION: u32 = 1;

/// Numbers of procedures.
const CONNECT_OPEN: u32 = 1;
const DOMAIN_GET_XML_DESC: u32 = 14;
const AUTH_LIST: u32 = 66;
const DOMAIN_GET_STATE: u32 = 212;
const CONNECT_LIST_ALL_DOMAINS: u32 = 273;

/// Kinds and status of messages.
const CALL: u32 = 0;
const REPLY: u32 = 1;
const OK: u32 = 0;

/// `VIR_CONNECT_RO`, and the kind of authentication that asks nothing.
const READ_ONLY: u32 = 1;
const AUTH_NONE: u32 = 0;

/// `VIR_ERR_NO_DOMAIN`; `VIR_ERR_AUTH_FAILED`, `_CANCELLED`, `_UNAVAILABLE` and `VIR_ERR_ACCESS_DENIED`.
const NO_DOMAIN: u32 = 42;
const DENIED: [u32; 4] = [45, 79, 80, 88];

/// The longest message (`VIR_NET_MESSAGE_MAX` and its length), and the bytes of a length and a header.
const MAX_MESSAGE: usize = 16_777_216 + 4;
const HEADER: usize = 28;

/// Messages between an answer and its call.
const MAX_OTHERS: usize = 1000;

/// A domain, as a handle for calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    pub name: String,
    pub uuid: [u8; 16],
    pub id: u32,
}

/// A connection to a daemon, opened for reading.
pub struct Client {
    wire: Wire,
    serial: u32,
}

/// An answer that is no result.
struct Fault {
    code: u32,
    message: String,
}

impl Client {
    /// Connects and opens the driver of `uri`.
    pub fn open(socket: &Path, uri: &str, deadline: Instant) -> Result<Self, Unavailable> {
        let wire = Wire::connect(socket, deadline)?;
        let mut client = Self { wire, serial: 0 };
        let kinds = client.result(AUTH_LIST, &[])?;
        let mut kinds = Reader(&kinds);
        let count = kinds.word().unwrap_or_default();
        let asks = (0..count)
            .map_while(|_| kinds.word())
            .all(|kind| kind != AUTH_NONE);
        if asks {
            return Err(client.wire.forbidden());
        }
        let mut arguments = Writer::default();
        arguments.word(1);
        arguments.string(uri);
        arguments.word(READ_ONLY);
        client.result(CONNECT_OPEN, &arguments.0)?;
        Ok(client)
    }

    /// All domains, also those that do not run.
    pub fn domains(&mut self, max: usize) -> Result<Vec<Domain>, Unavailable> {
        let mut arguments = Writer::default();
        // The list is wanted, and no flag leaves a domain out.
        arguments.word(1);
        arguments.word(0);
        let answer = self.result(CONNECT_LIST_ALL_DOMAINS, &arguments.0)?;
        let mut reader = Reader(&answer);
        let count = reader.word().unwrap_or_default() as usize;
        if count > max {
            return Err(self.wire.invalid("it lists too many domains"));
        }
        let mut domain = || {
            Some(Domain {
                name: reader.string()?,
                uuid: reader.fixed(16)?.try_into().ok()?,
                id: reader.word()?,
            })
        };
        let domains: Option<Vec<_>> = (0..count).map(|_| domain()).collect();
        domains.ok_or_else(|| self.wire.invalid("a list of domains is malformed"))
    }

    /// A domain's state (`virDomainState`), or `None` if there is no such domain.
    pub fn state(&mut self, domain: &Domain) -> Result<Option<u32>, Unavailable> {
        let answer = self.about(DOMAIN_GET_STATE, domain)?;
        let state = answer.map(|answer| Reader(&answer).word());
        match state {
            Some(None) => Err(self.wire.invalid("a state is malformed")),
            Some(state) => Ok(state),
            None => Ok(None),
        }
    }

    /// A domain's XML, without secrets, or `None` if there is no such domain.
    pub fn xml(&mut self, domain: &Domain) -> Result<Option<String>, Unavailable> {
        let answer = self.about(DOMAIN_GET_XML_DESC, domain)?;
        let xml = answer.map(|answer| Reader(&answer).string());
        match xml {
            Some(None) => Err(self.wire.invalid("a description is malformed")),
            Some(xml) => Ok(xml),
            None => Ok(None),
        }
    }

    /// Calls a procedure whose arguments are a domain and flags.
    fn about(&mut self, procedure: u32, domain: &Domain) -> Result<Option<Vec<u8>>, Unavailable> {
        let mut arguments = Writer::default();
        arguments.string(&domain.name);
        arguments.fixed(&domain.uuid);
        arguments.word(domain.id);
        arguments.word(0);
        match self.call(procedure, &arguments.0)? {
            Ok(answer) => Ok(Some(answer)),
            Err(fault) if fault.code == NO_DOMAIN => Ok(None),
            Err(fault) => Err(self.unavailable(&fault)),
        }
    }

    fn result(&mut self, procedure: u32, arguments: &[u8]) -> Result<Vec<u8>, Unavailable> {
        let answer = self.call(procedure, arguments)?;
        answer.map_err(|fault| self.unavailable(&fault))
    }

    fn unavailable(&self, fault: &Fault) -> Unavailable {
        match DENIED.contains(&fault.code) {
            true => self.wire.forbidden(),
            false => self.wire.refused(&fault.message),
        }
    }

    fn call(
        &mut self,
        procedure: u32,
        arguments: &[u8],
    ) -> Result<Result<Vec<u8>, Fault>, Unavailable> {
        self.serial += 1;
        let length = HEADER + arguments.len();
        let mut message = Writer::default();
        message.word(u32::try_from(length).unwrap_or_default());
        for word in [PROGRAM, VERSION, procedure, CALL, self.serial, OK] {
            message.word(word);
        }
        message.fixed(arguments);
        self.wire.write(&message.0)?;
        for _ in 0..MAX_OTHERS {
            let length = self.wire.read(4)?;
            let length = Reader(&length).word().unwrap_or_default() as usize;
            if !(HEADER..=MAX_MESSAGE).contains(&length) {
                return Err(self.wire.invalid("a message has an invalid length"));
            }
            let bytes = self.wire.read(length - 4)?;
            let mut reader = Reader(&bytes);
            let mut word = || reader.word().unwrap_or_default();
            let (program, version, _procedure) = (word(), word(), word());
            let (kind, serial, status) = (word(), word(), word());
            if (program, version) != (PROGRAM, VERSION) {
                return Err(self.wire.invalid("it speaks another protocol"));
            }
            // Events are between.
            if (kind, serial) != (REPLY, self.serial) {
                continue;
            }
            let body = reader.0;
            return Ok(match status {
                OK => Ok(body.to_vec()),
                _ => Err(fault(body)),
            });
        }
        Err(self.wire.invalid("it sends messages that nobody asked for"))
    }
}

/// The first fields of an error: its code, its domain and its message.
fn fault(body: &[u8]) -> Fault {
    let mut reader = Reader(body);
    let code = reader.word().unwrap_or_default();
    let _domain = reader.word();
    let message = reader.optional_string().flatten();
    Fault {
        code,
        message: message.unwrap_or_else(|| format!("error {code}")),
    }
}
