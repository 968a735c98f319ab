//! The messages from a process to its broker.

use hvsock_address::{ServiceId, SockAddrHv, VmId};

use crate::wire::{Reader, Writer, transports_bits};
use crate::{DecodeError, Flags, LookupKind, SocketOption, Transports};

/// One message from a process to its broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientMessage {
    /// Looks up the GUID of a name. Answered by `Found` or `Refused`.
    Lookup {
        /// The kind of name.
        kind: LookupKind,
        /// The name.
        name: String,
    },
    /// Sets an option. Not answered.
    SetOption {
        /// The option.
        option: SocketOption,
        /// Its value.
        value: u32,
    },
    /// Says what the connection is for, before the request. Not answered. A broker that does not know
    /// this message refuses it as a protocol violation.
    Describe(Describe),
    /// Requests a connection. Answered by `Connected`, `Explained` or `Refused`.
    Connect(Connect),
    /// Requests a listener. Answered by `Listening`, `Explained` or `Refused`.
    Listen(Listen),
    /// Requests a connection to an address with names. Answered as `Connect`. A broker that does not
    /// know this message refuses it as a protocol violation.
    ConnectNamed(ConnectNamed),
    /// Requests a listener at an address with names. Answered by `Bound`, `Explained` or `Refused`. A
    /// broker that does not know this message refuses it as a protocol violation.
    ListenNamed(ListenNamed),
    /// Requests a lease on a service. Answered by `Registered` or `Refused`.
    Register(Register),
    /// On a listener: the process has received an `Incoming`, so its backlog slot is free.
    Accepted {
        /// The connection's number.
        connection: u64,
    },
    /// On a connection (half-close): no data follows the bytes in the data descriptor. Not used with
    /// [`Transport::Ring`](crate::Transport::Ring), whose memory has the word `ended` for it.
    Shutdown,
    /// On a connection with [`Transport::Arena`](crate::Transport::Arena): connections were opened or
    /// closed in it since the broker asked to be told, once for each request.
    ArenaChanged,
    /// On a connection with [`Transport::Arena`](crate::Transport::Arena), of the connecting process:
    /// it needs more slots. The broker raises the number in the grant page, or does not.
    ArenaGrow,
    /// Asks for the vsock context id (CID) of a partition; of the process's own with
    /// [`VmId::LOOPBACK`]. Answered by `Cid` or `Refused`. A broker that does not know this message
    /// refuses it as a protocol violation.
    CidOf {
        /// The partition, as the process would connect to it.
        partition: VmId,
    },
    /// Before a request for a connection with [`Transport::Attached`](crate::Transport::Attached): the
    /// process will connect a stream socket of its own. Answered by `Attachable` or `Refused`. A broker that
    /// does not know this message refuses it as a protocol violation.
    Attach {
        /// The number of bytes that the process writes to its socket before it sends the request, at most
        /// [`MAX_FILLER`](crate::MAX_FILLER). They are no data.
        filler: u32,
    },
}

/// What a process says that its connection is for. The broker records it, and decides nothing by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Describe {
    /// What the process is about to do, in one word: `exec`, `cp`, ...
    pub action: String,
    /// The command line, paths or addresses.
    pub detail: String,
}

/// A request for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connect {
    /// The flags of the request.
    pub flags: Flags,
    /// The connect timeout in milliseconds; 0 is the broker's default.
    pub timeout_ms: u32,
    /// The transports that the client can use.
    pub transports: Transports,
    /// The partition and service to reach.
    pub address: SockAddrHv,
}

/// A request for a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The flags of the request.
    pub flags: Flags,
    /// The number of connections that may wait to be accepted. The broker may grant fewer.
    pub backlog: u32,
    /// The transports that the client can use.
    pub transports: Transports,
    /// The partitions to accept from and the service to offer.
    pub address: SockAddrHv,
}

/// A request for a connection to an address with names, which the broker resolves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectNamed {
    /// The flags of the request.
    pub flags: Flags,
    /// The connect timeout in milliseconds; 0 is the broker's default.
    pub timeout_ms: u32,
    /// The transports that the client can use.
    pub transports: Transports,
    /// The partition and service to reach.
    pub address: NamedAddress,
}

/// A request for a listener at an address with names, which the broker resolves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenNamed {
    /// The flags of the request.
    pub flags: Flags,
    /// The number of connections that may wait to be accepted. The broker may grant fewer.
    pub backlog: u32,
    /// The transports that the client can use.
    pub transports: Transports,
    /// The partitions to accept from and the service to offer.
    pub address: NamedAddress,
}

/// An address in which the partition, the service or both are given by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedAddress {
    /// The partition.
    pub partition: IdOrName<VmId>,
    /// The service.
    pub service: IdOrName<ServiceId>,
}

/// A GUID, or a name for the broker to resolve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdOrName<T> {
    /// The GUID.
    Id(T),
    /// The name, which is not empty.
    Name(String),
}

impl<T> IdOrName<T> {
    /// The id, or `none` if there is a name.
    fn id_or(&self, none: T) -> T
    where
        T: Copy,
    {
        match self {
            Self::Id(id) => *id,
            Self::Name(_) => none,
        }
    }

    /// The name; empty if there is an id.
    fn name(&self) -> &str {
        match self {
            Self::Id(_) => "",
            Self::Name(name) => name,
        }
    }
}

/// A request for a registration that ends with this connection to the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Register {
    /// The service.
    pub service: ServiceId,
    /// Its friendly name.
    pub name: String,
    /// Its purpose; may be empty.
    pub purpose: String,
}

const LOOKUP: u8 = 0x01;
const SET_OPTION: u8 = 0x02;
const CONNECT: u8 = 0x03;
const LISTEN: u8 = 0x04;
const REGISTER: u8 = 0x05;
const ACCEPTED: u8 = 0x06;
const SHUTDOWN: u8 = 0x07;
const CONNECT_NAMED: u8 = 0x08;
const LISTEN_NAMED: u8 = 0x09;
const DESCRIBE: u8 = 0x0a;
const ARENA_CHANGED: u8 = 0x0b;
const ARENA_GROW: u8 = 0x0c;
const CID_OF: u8 = 0x0d;
const ATTACH: u8 = 0x0e;

impl ClientMessage {
    /// Encodes this message into `buffer`, whose content it replaces. The message has at most
    /// [`MAX_MESSAGE`](crate::MAX_MESSAGE) bytes.
    pub fn encode(&self, buffer: &mut Vec<u8>) {
        let none = Flags::default();
        match self {
            Self::Lookup { kind, name } => {
                Writer::new(buffer, LOOKUP, none)
                    .u32(*kind as u32)
                    .text(name);
            }
            Self::SetOption { option, value } => {
                Writer::new(buffer, SET_OPTION, none)
                    .u32(*option as u32)
                    .u32(*value);
            }
            Self::Describe(m) => {
                let action_len = u32::try_from(m.action.len()).unwrap_or(u32::MAX);
                Writer::new(buffer, DESCRIBE, none)
                    .u32(action_len)
                    .text(&format!("{}{}", m.action, m.detail));
            }
            Self::Connect(m) => {
                Writer::new(buffer, CONNECT, m.flags)
                    .u32(m.timeout_ms)
                    .u32(transports_bits(m.transports))
                    .address(m.address);
            }
            Self::Listen(m) => {
                Writer::new(buffer, LISTEN, m.flags)
                    .u32(m.backlog)
                    .u32(transports_bits(m.transports))
                    .address(m.address);
            }
            Self::ConnectNamed(m) => {
                let writer = Writer::new(buffer, CONNECT_NAMED, m.flags)
                    .u32(m.timeout_ms)
                    .u32(transports_bits(m.transports));
                encode_address(writer, &m.address);
            }
            Self::ListenNamed(m) => {
                let writer = Writer::new(buffer, LISTEN_NAMED, m.flags)
                    .u32(m.backlog)
                    .u32(transports_bits(m.transports));
                encode_address(writer, &m.address);
            }
            Self::Register(m) => {
                let name_len = u32::try_from(m.name.len()).unwrap_or(u32::MAX);
                Writer::new(buffer, REGISTER, none)
                    .service(m.service)
                    .u32(name_len)
                    .text(&format!("{}{}", m.name, m.purpose));
            }
            Self::Accepted { connection } => {
                Writer::new(buffer, ACCEPTED, none).u64(*connection);
            }
            Self::Shutdown => {
                Writer::new(buffer, SHUTDOWN, none);
            }
            Self::ArenaChanged => {
                Writer::new(buffer, ARENA_CHANGED, none);
            }
            Self::ArenaGrow => {
                Writer::new(buffer, ARENA_GROW, none);
            }
            Self::CidOf { partition } => {
                Writer::new(buffer, CID_OF, none).guid(partition.to_guid_bytes());
            }
            Self::Attach { filler } => {
                Writer::new(buffer, ATTACH, none).u32(*filler);
            }
        }
    }

    /// Decodes one message.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] if the bytes are not a valid message of this direction.
    pub fn decode(message: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(message)?;
        let flags = r.flags;
        if flags != Flags::default() && !has_flags(r.kind) {
            return Err(DecodeError::Value {
                field: "flags",
                value: 1,
            });
        }
        let message = match r.kind {
            LOOKUP => Self::Lookup {
                kind: r.lookup_kind()?,
                name: r.text()?,
            },
            SET_OPTION => Self::SetOption {
                option: r.option()?,
                value: r.u32()?,
            },
            DESCRIBE => {
                let action_len = r.u32()? as usize;
                Self::Describe(Describe {
                    action: r.text_of(action_len)?,
                    detail: r.text()?,
                })
            }
            CONNECT => Self::Connect(Connect {
                flags,
                timeout_ms: r.u32()?,
                transports: r.transports()?,
                address: r.address()?,
            }),
            LISTEN => Self::Listen(Listen {
                flags,
                backlog: r.u32()?,
                transports: r.transports()?,
                address: r.address()?,
            }),
            CONNECT_NAMED => Self::ConnectNamed(ConnectNamed {
                flags,
                timeout_ms: r.u32()?,
                transports: r.transports()?,
                address: decode_address(&mut r)?,
            }),
            LISTEN_NAMED => Self::ListenNamed(ListenNamed {
                flags,
                backlog: r.u32()?,
                transports: r.transports()?,
                address: decode_address(&mut r)?,
            }),
            REGISTER => {
                let service = r.service()?;
                let name_len = r.u32()? as usize;
                Self::Register(Register {
                    service,
                    name: r.text_of(name_len)?,
                    purpose: r.text()?,
                })
            }
            ACCEPTED => Self::Accepted {
                connection: r.u64()?,
            },
            SHUTDOWN => Self::Shutdown,
            ARENA_CHANGED => Self::ArenaChanged,
            ARENA_GROW => Self::ArenaGrow,
            CID_OF => Self::CidOf {
                partition: VmId::from_guid_bytes(r.guid()?),
            },
            ATTACH => Self::Attach {
                filler: r.filler()?,
            },
            kind => return Err(DecodeError::Kind(kind)),
        };
        r.finish(message)
    }
}

/// Whether messages of this kind have [`Flags`].
fn has_flags(kind: u8) -> bool {
    matches!(kind, CONNECT | LISTEN | CONNECT_NAMED | LISTEN_NAMED)
}

/// Appends the GUIDs, zero in place of a name, the length of the partition's name, and both names.
fn encode_address(writer: Writer<'_>, address: &NamedAddress) {
    let vm = address.partition.id_or(VmId::ZERO);
    let service = address.service.id_or(ServiceId::ZERO);
    let (partition, name) = (address.partition.name(), address.service.name());
    let partition_len = u32::try_from(partition.len()).unwrap_or(u32::MAX);
    writer
        .address(SockAddrHv::new(vm, service))
        .u32(partition_len)
        .text(&format!("{partition}{name}"));
}

fn decode_address(r: &mut Reader<'_>) -> Result<NamedAddress, DecodeError> {
    let SockAddrHv { vm, service, .. } = r.address()?;
    let partition_len = r.u32()? as usize;
    let (partition, name) = (r.text_of(partition_len)?, r.text()?);
    let both = |field| DecodeError::Value { field, value: 1 };
    if !partition.is_empty() && vm != VmId::ZERO {
        return Err(both("partition"));
    }
    if !name.is_empty() && service != ServiceId::ZERO {
        return Err(both("service"));
    }
    Ok(NamedAddress {
        partition: id_or_name(vm, partition),
        service: id_or_name(service, name),
    })
}

fn id_or_name<T>(id: T, name: String) -> IdOrName<T> {
    match name.is_empty() {
        true => IdOrName::Id(id),
        false => IdOrName::Name(name),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{MAX_FILLER, Transport};

    fn bytes(message: &ClientMessage) -> Vec<u8> {
        let mut buffer = Vec::new();
        message.encode(&mut buffer);
        buffer
    }

    // Written by hand from docs/endpoint.md.
    #[test]
    fn connect_is_byte_exact() {
        let message = ClientMessage::Connect(Connect {
            flags: Flags {
                raw_fd: true,
                ..Flags::default()
            },
            timeout_ms: 2000,
            transports: Transports::DESCRIPTOR,
            address: SockAddrHv::new(VmId::PARENT, ServiceId::from_port(2761)),
        });
        let want = [
            0x01, 0x03, 0x01, 0x00, // version, CONNECT, flags RAW_FD
            0xd0, 0x07, 0x00, 0x00, // 2000 ms
            0x01, 0x00, 0x00, 0x00, // the descriptor transport
            0xda, 0x7c, 0x2e, 0xa4, 0x3f, 0xd0, 0x0c, 0x48, // VmId
            0x9c, 0xc2, 0xa4, 0xde, 0x20, 0xab, 0xb8, 0x78, //
            0xc9, 0x0a, 0x00, 0x00, 0xcb, 0xfa, 0xe6, 0x11, // ServiceId
            0xbd, 0x58, 0x64, 0x00, 0x6a, 0x79, 0x86, 0xd3,
        ];
        assert_eq!(bytes(&message), want);
        assert_eq!(ClientMessage::decode(&want), Ok(message));
    }

    #[test]
    fn unknown_members_of_the_set_of_transports_are_ignored() {
        let both = Transports::DESCRIPTOR | Transports::RING;
        let message = ClientMessage::Listen(Listen {
            flags: Flags::default(),
            backlog: 1,
            transports: both,
            address: SockAddrHv::new(VmId::LOOPBACK, ServiceId::ZERO),
        });
        let mut bytes = bytes(&message);
        assert_eq!(bytes[8..12], [3, 0, 0, 0]);
        bytes[8] = 0x82;
        let Ok(ClientMessage::Listen(listen)) = ClientMessage::decode(&bytes) else {
            panic!("no LISTEN");
        };
        assert!(listen.transports.contains(Transport::Ring));
        assert!(!listen.transports.contains(Transport::Descriptor));
        assert!(both.contains(Transport::Ring) && both.contains(Transport::Descriptor));
        bytes[8] = 0;
        assert!(matches!(
            ClientMessage::decode(&bytes),
            Err(DecodeError::Value {
                field: "transports",
                value: 0
            })
        ));
    }

    // Written by hand from docs/endpoint.md.
    #[test]
    fn the_size_of_a_ring_is_an_option() {
        let message = ClientMessage::SetOption {
            option: SocketOption::RingSize,
            value: 1 << 20,
        };
        let want = [1, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0x10, 0];
        assert_eq!(bytes(&message), want);
        assert_eq!(ClientMessage::decode(&want), Ok(message));
    }

    // Written by hand from docs/endpoint.md.
    #[test]
    fn the_messages_of_an_arena_are_byte_exact_and_have_no_fields() {
        for (message, kind) in [
            (ClientMessage::ArenaChanged, 0x0b),
            (ClientMessage::ArenaGrow, 0x0c),
        ] {
            let want = [1, kind, 0, 0];
            assert_eq!(bytes(&message), want);
            assert_eq!(ClientMessage::decode(&want), Ok(message));
            assert_eq!(
                ClientMessage::decode(&[1, kind, 0, 0, 0]),
                Err(DecodeError::Trailing(1))
            );
            assert!(matches!(
                ClientMessage::decode(&[1, kind, 2, 0]),
                Err(DecodeError::Value { field: "flags", .. })
            ));
        }
    }

    // Written by hand from docs/endpoint.md.
    #[test]
    fn the_messages_about_cids_and_attached_sockets_are_byte_exact() {
        let lookup = ClientMessage::Lookup {
            kind: LookupKind::Cid,
            name: "42".into(),
        };
        let cid_of = ClientMessage::CidOf {
            partition: VmId::PARENT,
        };
        let attach = ClientMessage::Attach { filler: 1024 };
        let parent = [
            0xda, 0x7c, 0x2e, 0xa4, 0x3f, 0xd0, 0x0c, 0x48, 0x9c, 0xc2, 0xa4, 0xde, 0x20, 0xab,
            0xb8, 0x78,
        ];
        for (message, want) in [
            (lookup, b"\x01\x01\0\0\x03\0\0\x0042".to_vec()),
            (cid_of, [[1, 0x0d, 0, 0].as_slice(), &parent].concat()),
            (attach, vec![1, 0x0e, 0, 0, 0, 4, 0, 0]),
        ] {
            assert_eq!(bytes(&message), want);
            assert_eq!(ClientMessage::decode(&want), Ok(message));
        }
    }

    #[test]
    fn an_attach_has_a_bounded_number_of_filler_bytes_and_nothing_else() {
        let attach = |filler| ClientMessage::decode(&bytes(&ClientMessage::Attach { filler }));
        assert!(attach(MAX_FILLER).is_ok());
        for filler in [MAX_FILLER + 1, u32::MAX] {
            let value = u64::from(filler);
            let field = "filler";
            assert_eq!(attach(filler), Err(DecodeError::Value { field, value }));
        }
        for length in [4, 7, 9] {
            let mut message = vec![0; length];
            message[..2].copy_from_slice(&[1, 0x0e]);
            assert!(ClientMessage::decode(&message).is_err(), "{length}");
        }
        for length in [4, 19, 21] {
            let mut message = vec![0; length];
            message[..2].copy_from_slice(&[1, 0x0d]);
            assert!(ClientMessage::decode(&message).is_err(), "{length}");
        }
        assert!(matches!(
            ClientMessage::decode(&[1, 0x0e, 1, 0, 0, 0, 0, 0]),
            Err(DecodeError::Value { field: "flags", .. })
        ));
    }

    #[test]
    fn a_message_of_another_version_kind_or_length_is_refused() {
        assert_eq!(ClientMessage::decode(&[]), Err(DecodeError::Truncated(0)));
        assert_eq!(
            ClientMessage::decode(&[2, 7, 0, 0]),
            Err(DecodeError::Version(2))
        );
        assert_eq!(
            ClientMessage::decode(&[1, 0x82, 0, 0]),
            Err(DecodeError::Kind(0x82))
        );
        assert_eq!(
            ClientMessage::decode(&[1, 7, 0, 0, 9]),
            Err(DecodeError::Trailing(1))
        );
        assert_eq!(
            ClientMessage::decode(&[1, 6, 0, 0, 9]),
            Err(DecodeError::Truncated(5))
        );
        assert!(matches!(
            ClientMessage::decode(&[1, 7, 4, 0]),
            Err(DecodeError::Value { .. })
        ));
        assert!(matches!(
            ClientMessage::decode(&[1, 7, 1, 0]),
            Err(DecodeError::Value { .. })
        ));
        assert_eq!(ClientMessage::decode(&[1; 4097]), Err(DecodeError::TooLong));
    }

    #[test]
    fn a_register_message_with_an_invalid_name_length_is_refused() {
        let mut buffer = bytes(&ClientMessage::Register(Register {
            service: ServiceId::random(),
            name: "Backup".into(),
            purpose: "nightly".into(),
        }));
        assert!(ClientMessage::decode(&buffer).is_ok());
        buffer[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(
            ClientMessage::decode(&buffer),
            Err(DecodeError::Truncated(_))
        ));
    }

    // Written by hand from docs/endpoint.md.
    #[test]
    fn connect_named_is_byte_exact() {
        let message = ClientMessage::ConnectNamed(ConnectNamed {
            flags: Flags {
                explain: true,
                ..Flags::default()
            },
            timeout_ms: 2000,
            transports: Transports::DESCRIPTOR,
            address: NamedAddress {
                partition: IdOrName::Name("web".into()),
                service: IdOrName::Name("Demo".into()),
            },
        });
        let mut want = vec![
            0x01, 0x08, 0x04, 0x00, // version, CONNECT_NAMED, flags EXPLAIN
            0xd0, 0x07, 0x00, 0x00, // 2000 ms
            0x01, 0x00, 0x00, 0x00, // the descriptor transport
        ];
        want.extend([0; 32]);
        want.extend(*b"\x03\0\0\0webDemo");
        assert_eq!(bytes(&message), want);
        assert_eq!(ClientMessage::decode(&want), Ok(message));
        // Either a GUID or a name.
        want[20] = 1;
        assert!(matches!(
            ClientMessage::decode(&want),
            Err(DecodeError::Value {
                field: "partition",
                value: 1
            })
        ));
    }

    // Written by hand from docs/endpoint.md.
    #[test]
    fn describe_is_byte_exact() {
        let message = ClientMessage::Describe(Describe {
            action: "exec".into(),
            detail: "uname -r".into(),
        });
        let want = b"\x01\x0a\0\0\x04\0\0\0execuname -r";
        assert_eq!(bytes(&message), want);
        assert_eq!(ClientMessage::decode(want), Ok(message));
        let too_long = b"\x01\x0a\0\0\x09\0\0\0exec";
        assert!(matches!(
            ClientMessage::decode(too_long),
            Err(DecodeError::Truncated(_))
        ));
    }

    fn any_message() -> impl Strategy<Value = ClientMessage> {
        let flags = any::<[bool; 3]>().prop_map(|[raw_fd, dry_run, explain]| Flags {
            raw_fd,
            dry_run,
            explain,
        });
        let named = (any::<[u8; 16]>(), ".{0,63}", any::<[u8; 16]>(), ".{0,80}").prop_map(
            |(vm, partition, service, name)| NamedAddress {
                partition: id_or_name(VmId::from_guid_bytes(vm), partition),
                service: id_or_name(ServiceId::from_guid_bytes(service), name),
            },
        );
        let address = (any::<[u8; 16]>(), any::<[u8; 16]>()).prop_map(|(vm, service)| {
            SockAddrHv::new(
                VmId::from_guid_bytes(vm),
                ServiceId::from_guid_bytes(service),
            )
        });
        let transports = prop_oneof![
            Just(Transports::DESCRIPTOR),
            Just(Transports::RING),
            Just(Transports::DESCRIPTOR | Transports::RING),
            Just(Transports::DESCRIPTOR | Transports::RING | Transports::ARENA),
            Just(Transports::ATTACHED),
        ];
        let lookup_kind = prop_oneof![
            Just(LookupKind::Service),
            Just(LookupKind::Partition),
            Just(LookupKind::Cid),
        ];
        let option = prop_oneof![
            Just(SocketOption::ConnectedSuspend),
            Just(SocketOption::RingSize),
        ];
        prop_oneof![
            (lookup_kind, ".{0,80}").prop_map(|(kind, name)| ClientMessage::Lookup { kind, name }),
            (".{0,32}", ".{0,80}").prop_map(|(action, detail)| {
                ClientMessage::Describe(Describe { action, detail })
            }),
            (option, any::<u32>())
                .prop_map(|(option, value)| ClientMessage::SetOption { option, value }),
            (
                flags.clone(),
                any::<u32>(),
                transports.clone(),
                address.clone()
            )
                .prop_map(|(flags, timeout_ms, transports, address)| {
                    ClientMessage::Connect(Connect {
                        flags,
                        timeout_ms,
                        transports,
                        address,
                    })
                }),
            (
                flags.clone(),
                any::<u32>(),
                transports.clone(),
                named.clone()
            )
                .prop_map(|(flags, timeout_ms, transports, address)| {
                    ClientMessage::ConnectNamed(ConnectNamed {
                        flags,
                        timeout_ms,
                        transports,
                        address,
                    })
                }),
            (flags.clone(), any::<u32>(), transports.clone(), named).prop_map(
                |(flags, backlog, transports, address)| {
                    ClientMessage::ListenNamed(ListenNamed {
                        flags,
                        backlog,
                        transports,
                        address,
                    })
                }
            ),
            (flags, any::<u32>(), transports, address).prop_map(
                |(flags, backlog, transports, address)| {
                    ClientMessage::Listen(Listen {
                        flags,
                        backlog,
                        transports,
                        address,
                    })
                }
            ),
            (any::<[u8; 16]>(), ".{0,80}", ".{0,80}").prop_map(|(id, name, purpose)| {
                let service = ServiceId::from_guid_bytes(id);
                ClientMessage::Register(Register {
                    service,
                    name,
                    purpose,
                })
            }),
            any::<u64>().prop_map(|connection| ClientMessage::Accepted { connection }),
            Just(ClientMessage::Shutdown),
            Just(ClientMessage::ArenaChanged),
            Just(ClientMessage::ArenaGrow),
            any::<[u8; 16]>().prop_map(|id| ClientMessage::CidOf {
                partition: VmId::from_guid_bytes(id)
            }),
            (0..=MAX_FILLER).prop_map(|filler| ClientMessage::Attach { filler }),
        ]
    }

    proptest! {
        #[test]
        fn every_message_survives_a_round_trip(message in any_message()) {
            prop_assert_eq!(ClientMessage::decode(&bytes(&message)), Ok(message));
        }

        #[test]
        fn any_bytes_decode_to_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = ClientMessage::decode(&bytes);
        }

        #[test]
        fn a_message_with_one_changed_byte_never_panics(
            message in any_message(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let mut bytes = bytes(&message);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = ClientMessage::decode(&bytes);
        }
    }
}
