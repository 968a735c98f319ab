//! Encoding and decoding of little-endian fields. Every length is validated before use.

use hvsock_address::{ServiceId, SockAddrHv, VmId};

use crate::{
    Flags, LookupKind, MAX_FILLER, MAX_MESSAGE, SocketOption, Transport, Transports, VERSION,
};

/// Why bytes are not a message: the sender violates the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message is shorter than its kind requires.
    #[error("the message ends after {0} bytes, inside a field")]
    Truncated(usize),
    /// The message is longer than its kind allows.
    #[error("{0} bytes follow the end of the message")]
    Trailing(usize),
    /// The message is longer than [`MAX_MESSAGE`].
    #[error("a message has at most {MAX_MESSAGE} bytes")]
    TooLong,
    /// Another version of the protocol.
    #[error("version {0} of the endpoint protocol is not supported; this is version {VERSION}")]
    Version(u8),
    /// An unknown kind of message for this direction.
    #[error("there is no message of kind {0:#04x} in this direction")]
    Kind(u8),
    /// An invalid value of a field.
    #[error("the field `{field}` has the invalid value {value:#x}")]
    Value {
        /// The name of the field in docs/endpoint.md.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// Text that is not UTF-8.
    #[error("the text of the message is not UTF-8")]
    Text,
}

/// Appends the fields of a message to a buffer.
pub(crate) struct Writer<'a>(&'a mut Vec<u8>);

impl<'a> Writer<'a> {
    pub(crate) fn new(buffer: &'a mut Vec<u8>, kind: u8, flags: Flags) -> Self {
        buffer.clear();
        buffer.extend_from_slice(&[VERSION, kind]);
        let bits =
            u16::from(flags.raw_fd) | u16::from(flags.dry_run) << 1 | u16::from(flags.explain) << 2;
        buffer.extend_from_slice(&bits.to_le_bytes());
        Self(buffer)
    }

    pub(crate) fn u32(self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn u64(self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn service(self, id: ServiceId) -> Self {
        self.0.extend_from_slice(&id.to_guid_bytes());
        self
    }

    pub(crate) fn address(self, address: SockAddrHv) -> Self {
        self.0.extend_from_slice(&address.vm.to_guid_bytes());
        self.service(address.service)
    }

    pub(crate) fn guid(self, bytes: [u8; 16]) -> Self {
        self.0.extend_from_slice(&bytes);
        self
    }

    /// Appends text up to the end of the message. Text that does not fit is truncated at a character
    /// boundary.
    pub(crate) fn text(self, text: &str) {
        let free = MAX_MESSAGE.saturating_sub(self.0.len()).min(text.len());
        // `str::floor_char_boundary` needs Rust 1.91.
        let end = (0..=free)
            .rfind(|&end| text.is_char_boundary(end))
            .unwrap_or(0);
        self.0.extend_from_slice(&text.as_bytes()[..end]);
    }
}

/// Reads the fields of a message from front to back.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    len: usize,
    pub(crate) kind: u8,
    pub(crate) flags: Flags,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(message: &'a [u8]) -> Result<Self, DecodeError> {
        if message.len() > MAX_MESSAGE {
            return Err(DecodeError::TooLong);
        }
        let (header, rest) = message
            .split_first_chunk::<4>()
            .ok_or(DecodeError::Truncated(message.len()))?;
        let [version, kind, low, high] = *header;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        let bits = u16::from_le_bytes([low, high]);
        if bits & !0b111 != 0 {
            return Err(DecodeError::Value {
                field: "flags",
                value: bits.into(),
            });
        }
        let flags = Flags {
            raw_fd: bits & 1 != 0,
            dry_run: bits & 2 != 0,
            explain: bits & 4 != 0,
        };
        Ok(Self {
            rest,
            len: message.len(),
            kind,
            flags,
        })
    }

    /// A message of a kind without flags.
    pub(crate) fn without_flags(message: &'a [u8]) -> Result<Self, DecodeError> {
        let reader = Self::new(message)?;
        match reader.flags == Flags::default() {
            true => Ok(reader),
            false => Err(DecodeError::Value {
                field: "flags",
                value: 1,
            }),
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(DecodeError::Truncated(self.len))?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.take().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.take().map(u64::from_le_bytes)
    }

    pub(crate) fn guid(&mut self) -> Result<[u8; 16], DecodeError> {
        self.take()
    }

    pub(crate) fn service(&mut self) -> Result<ServiceId, DecodeError> {
        self.take().map(ServiceId::from_guid_bytes)
    }

    pub(crate) fn address(&mut self) -> Result<SockAddrHv, DecodeError> {
        let vm = VmId::from_guid_bytes(self.take()?);
        Ok(SockAddrHv::new(vm, self.service()?))
    }

    pub(crate) fn transports(&mut self) -> Result<Transports, DecodeError> {
        // Unknown bits are valid: they offer transports of a later version.
        Transports::from_bits(self.u32()?).ok_or(DecodeError::Value {
            field: "transports",
            value: 0,
        })
    }

    pub(crate) fn transport(&mut self) -> Result<Transport, DecodeError> {
        match self.u32()? {
            bits if bits == Transport::Descriptor.bit() => Ok(Transport::Descriptor),
            bits if bits == Transport::Ring.bit() => Ok(Transport::Ring),
            bits if bits == Transport::Arena.bit() => Ok(Transport::Arena),
            bits if bits == Transport::Direct.bit() => Ok(Transport::Direct),
            bits if bits == Transport::Attached.bit() => Ok(Transport::Attached),
            bits => Err(DecodeError::Value {
                field: "transport",
                value: bits.into(),
            }),
        }
    }

    pub(crate) fn lookup_kind(&mut self) -> Result<LookupKind, DecodeError> {
        match self.u32()? {
            1 => Ok(LookupKind::Service),
            2 => Ok(LookupKind::Partition),
            3 => Ok(LookupKind::Cid),
            value => Err(DecodeError::Value {
                field: "what",
                value: value.into(),
            }),
        }
    }

    pub(crate) fn option(&mut self) -> Result<SocketOption, DecodeError> {
        let number = self.u32()?;
        SocketOption::from_number(number).ok_or(DecodeError::Value {
            field: "option",
            value: number.into(),
        })
    }

    /// The kind of a name, without numbers.
    pub(crate) fn name_kind(&mut self) -> Result<LookupKind, DecodeError> {
        match self.lookup_kind()? {
            LookupKind::Cid => Err(DecodeError::Value {
                field: "what",
                value: LookupKind::Cid as u64,
            }),
            kind => Ok(kind),
        }
    }

    /// The number of filler bytes.
    pub(crate) fn filler(&mut self) -> Result<u32, DecodeError> {
        match self.u32()? {
            filler if filler <= MAX_FILLER => Ok(filler),
            value => Err(DecodeError::Value {
                field: "filler",
                value: value.into(),
            }),
        }
    }

    /// A field that is 0 or 1.
    pub(crate) fn boolean(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(DecodeError::Value {
                field,
                value: value.into(),
            }),
        }
    }

    /// `count` bytes of text.
    pub(crate) fn text_of(&mut self, count: usize) -> Result<String, DecodeError> {
        let (text, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or(DecodeError::Truncated(self.len))?;
        self.rest = rest;
        std::str::from_utf8(text)
            .map(str::to_owned)
            .map_err(|_| DecodeError::Text)
    }

    /// The text that fills the rest of the message.
    pub(crate) fn text(&mut self) -> Result<String, DecodeError> {
        self.text_of(self.rest.len())
    }

    /// Returns `message` if no bytes are left.
    pub(crate) fn finish<T>(self, message: T) -> Result<T, DecodeError> {
        match self.rest.len() {
            0 => Ok(message),
            extra => Err(DecodeError::Trailing(extra)),
        }
    }
}

/// The `transports` field.
pub(crate) fn transports_bits(transports: Transports) -> u32 {
    transports.0
}

/// The `transport` field.
pub(crate) fn transport_bit(transport: Transport) -> u32 {
    transport.bit()
}
