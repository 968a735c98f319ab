//! The messages from a broker to a process.

use hvsock_address::SockAddrHv;

use crate::wire::{Reader, Writer, transport_bit};
use crate::{DecodeError, Flags, Transport};

/// One message from a broker to a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrokerMessage {
    /// The GUID of a name that was looked up.
    Found {
        /// A `VmId` or a `ServiceId`, per the lookup, in Microsoft's byte order.
        guid: [u8; 16],
    },
    /// The connection is established. Has one descriptor: data. With [`Transport::Ring`] it has
    /// three: memory, this end's doorbell and the peer's. With [`Transport::Arena`] it has four:
    /// memory, grant page, this process's doorbell and the peer's; no connection is open yet.
    Connected(Connected),
    /// The listener is established.
    Listening(Listening),
    /// The listener of a [`ListenNamed`](crate::ListenNamed) is established.
    Bound(Bound),
    /// The lease is established.
    Registered,
    /// A connection for a listener. Has two descriptors: data and control. With
    /// [`Transport::Ring`] it has four: memory, this end's doorbell, the peer's, and control. With
    /// [`Transport::Arena`] it has five: memory, grant page, this process's doorbell, the peer's, and
    /// control; it is an arena, in which no connection is open yet.
    Incoming(Incoming),
    /// The request is refused, and the connection to the broker ends.
    Refused(Refused),
    /// The peer half-closed: no data follows the bytes in the data descriptor. With
    /// [`Transport::Ring`] the process checks the words in the memory again.
    Shutdown,
    /// The connection, listener or lease is reset, and its descriptors close. With
    /// [`Transport::Arena`] that is every connection in the arena.
    Reset(Refused),
    /// The answer to a dry run. The code 0 means that the request would succeed. Also the answer to a
    /// refused request with the flag [`explain`](Flags::explain), in place of `Refused`.
    Explained(Refused),
    /// A connection with [`Transport::Ring`] is suspended or resumed, or each one in an arena. The
    /// process checks the state words in the memory again.
    Suspended {
        /// Whether it is suspended.
        on: bool,
    },
    /// One connection of an arena is reset. Comes before the state word in the memory says so.
    StreamReset(StreamReset),
    /// The vsock context id (CID) of a partition, the answer to [`CidOf`](crate::ClientMessage::CidOf).
    Cid {
        /// The CID: 2 of the host, from 3 on of others.
        cid: u32,
    },
    /// The answer to [`Attach`](crate::ClientMessage::Attach). Has one descriptor: that of a listening stream
    /// socket, opened with `O_PATH`, to which the process connects its own socket by
    /// `/proc/self/fd/N`.
    Attachable,
}

/// An established connection, as the connecting process sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    /// Its transport.
    pub transport: Transport,
    /// Its number in the control API; with [`Transport::Arena`] the first of the arena's
    /// [`ARENA_IDS`](crate::ARENA_IDS).
    pub connection: u64,
    /// This end's address.
    pub local: SockAddrHv,
    /// The peer's address.
    pub peer: SockAddrHv,
}

/// An established listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// The number of connections that may wait to be accepted.
    pub backlog: u32,
    /// Its number in the control API.
    pub listener: u64,
}

/// An established listener with the address that its names stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The listener.
    pub listening: Listening,
    /// The partitions that it accepts from, and its service.
    pub address: SockAddrHv,
}

/// A connection for a listener, as the listening process sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// Its transport.
    pub transport: Transport,
    /// Its number in the control API, as in [`Connected`].
    pub connection: u64,
    /// This end's address.
    pub local: SockAddrHv,
    /// The peer's address, as this process would reach it.
    pub peer: SockAddrHv,
    /// The peer's process id on this machine; 0 if this process must not see it.
    pub pid: u32,
    /// The peer's user id; `u32::MAX` if this process must not see it.
    pub uid: u32,
    /// The peer's group id; `u32::MAX` if this process must not see it.
    pub gid: u32,
    /// The name of the peer's partition.
    pub partition: String,
}

/// A refusal. The codes are those of hvsock-fabric's `Refusal`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The code of the refusal.
    pub code: u32,
    /// The nearest Linux errno, for programs that do not support the code.
    pub errno: u32,
    /// Details of the refusal, such as the rule that decided, or the lines of an explanation.
    pub detail: String,
}

/// A connection of an arena that is reset. A slot is used again, so its open counter is a part of its
/// name: the message may come late, and then concerns no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamReset {
    /// The index of the slot.
    pub slot: u32,
    /// The arena's open counter when the connection was opened.
    pub seq: u32,
    /// Why.
    pub reason: Refused,
}

const FOUND: u8 = 0x81;
const CONNECTED: u8 = 0x82;
const LISTENING: u8 = 0x83;
const REGISTERED: u8 = 0x84;
const INCOMING: u8 = 0x85;
const REFUSED: u8 = 0x86;
const SHUTDOWN: u8 = 0x87;
const RESET: u8 = 0x88;
const EXPLAINED: u8 = 0x89;
const SUSPENDED: u8 = 0x8a;
const BOUND: u8 = 0x8b;
const STREAM_RESET: u8 = 0x8c;
const CID: u8 = 0x8d;
const ATTACHABLE: u8 = 0x8e;

impl BrokerMessage {
    /// Encodes this message into `buffer`, whose content it replaces. The message has at most
    /// [`MAX_MESSAGE`](crate::MAX_MESSAGE) bytes; longer text is truncated.
    pub fn encode(&self, buffer: &mut Vec<u8>) {
        let w = Writer::new(buffer, self.kind(), Flags::default());
        match self {
            Self::Found { guid } => {
                w.guid(*guid);
            }
            Self::Connected(m) => {
                w.u32(transport_bit(m.transport))
                    .u64(m.connection)
                    .address(m.local)
                    .address(m.peer);
            }
            Self::Listening(m) => {
                w.u32(m.backlog).u64(m.listener);
            }
            Self::Bound(m) => {
                w.u32(m.listening.backlog)
                    .u64(m.listening.listener)
                    .address(m.address);
            }
            Self::Incoming(m) => w
                .u32(transport_bit(m.transport))
                .u64(m.connection)
                .address(m.local)
                .address(m.peer)
                .u32(m.pid)
                .u32(m.uid)
                .u32(m.gid)
                .text(&m.partition),
            Self::Refused(m) => m.encode(w),
            Self::Reset(m) => m.encode(w),
            Self::Explained(m) => m.encode(w),
            Self::Suspended { on } => {
                w.u32(u32::from(*on));
            }
            Self::StreamReset(m) => m.reason.encode(w.u32(m.slot).u32(m.seq)),
            Self::Cid { cid } => {
                w.u32(*cid);
            }
            Self::Registered | Self::Shutdown | Self::Attachable => {}
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Found { .. } => FOUND,
            Self::Connected(_) => CONNECTED,
            Self::Listening(_) => LISTENING,
            Self::Bound(_) => BOUND,
            Self::Registered => REGISTERED,
            Self::Incoming(_) => INCOMING,
            Self::Refused(_) => REFUSED,
            Self::Shutdown => SHUTDOWN,
            Self::Reset(_) => RESET,
            Self::Explained(_) => EXPLAINED,
            Self::Suspended { .. } => SUSPENDED,
            Self::StreamReset(_) => STREAM_RESET,
            Self::Cid { .. } => CID,
            Self::Attachable => ATTACHABLE,
        }
    }

    /// Decodes one message.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] if the bytes are not a valid message of this direction.
    pub fn decode(message: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(message)?;
        if r.flags != Flags::default() {
            return Err(DecodeError::Value {
                field: "flags",
                value: 1,
            });
        }
        let message = match r.kind {
            FOUND => Self::Found { guid: r.guid()? },
            CONNECTED => Self::Connected(Connected {
                transport: r.transport()?,
                connection: r.u64()?,
                local: r.address()?,
                peer: r.address()?,
            }),
            LISTENING => Self::Listening(Listening {
                backlog: r.u32()?,
                listener: r.u64()?,
            }),
            BOUND => Self::Bound(Bound {
                listening: Listening {
                    backlog: r.u32()?,
                    listener: r.u64()?,
                },
                address: r.address()?,
            }),
            REGISTERED => Self::Registered,
            INCOMING => Self::Incoming(Incoming {
                transport: r.transport()?,
                connection: r.u64()?,
                local: r.address()?,
                peer: r.address()?,
                pid: r.u32()?,
                uid: r.u32()?,
                gid: r.u32()?,
                partition: r.text()?,
            }),
            REFUSED => Self::Refused(Refused::decode(&mut r)?),
            SHUTDOWN => Self::Shutdown,
            RESET => Self::Reset(Refused::decode(&mut r)?),
            EXPLAINED => Self::Explained(Refused::decode(&mut r)?),
            SUSPENDED => Self::Suspended {
                on: r.boolean("suspended")?,
            },
            STREAM_RESET => Self::StreamReset(StreamReset {
                slot: r.u32()?,
                seq: r.u32()?,
                reason: Refused::decode(&mut r)?,
            }),
            CID => Self::Cid { cid: r.u32()? },
            ATTACHABLE => Self::Attachable,
            kind => return Err(DecodeError::Kind(kind)),
        };
        r.finish(message)
    }
}

impl Refused {
    pub(crate) fn encode(&self, writer: Writer<'_>) {
        writer.u32(self.code).u32(self.errno).text(&self.detail);
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            code: r.u32()?,
            errno: r.u32()?,
            detail: r.text()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use hvsock_address::{ServiceId, VmId};
    use proptest::prelude::*;

    use super::*;

    fn bytes(message: &BrokerMessage) -> Vec<u8> {
        let mut buffer = Vec::new();
        message.encode(&mut buffer);
        buffer
    }

    // Written by hand from docs/endpoint.md.
    #[test]
    fn refused_is_byte_exact() {
        let message = BrokerMessage::Refused(Refused {
            code: 9,
            errno: 111,
            detail: "hi".into(),
        });
        let want = [1, 0x86, 0, 0, 9, 0, 0, 0, 111, 0, 0, 0, b'h', b'i'];
        assert_eq!(bytes(&message), want);
        assert_eq!(BrokerMessage::decode(&want), Ok(message));
    }

    #[test]
    fn suspended_is_byte_exact_and_has_a_boolean() {
        for (on, byte) in [(false, 0), (true, 1)] {
            let message = BrokerMessage::Suspended { on };
            let want = [1, 0x8a, 0, 0, byte, 0, 0, 0];
            assert_eq!(bytes(&message), want);
            assert_eq!(BrokerMessage::decode(&want), Ok(message));
        }
        assert_eq!(
            BrokerMessage::decode(&[1, 0x8a, 0, 0, 2, 0, 0, 0]),
            Err(DecodeError::Value {
                field: "suspended",
                value: 2
            })
        );
    }

    // Written by hand from docs/endpoint.md.
    #[test]
    fn stream_reset_is_byte_exact() {
        let message = BrokerMessage::StreamReset(StreamReset {
            slot: 3,
            seq: 0x0102,
            reason: Refused {
                code: 17,
                errno: 104,
                detail: "hi".into(),
            },
        });
        let want = [
            1, 0x8c, 0, 0, 3, 0, 0, 0, 2, 1, 0, 0, 17, 0, 0, 0, 104, 0, 0, 0, b'h', b'i',
        ];
        assert_eq!(bytes(&message), want);
        assert_eq!(BrokerMessage::decode(&want), Ok(message));
        assert_eq!(
            BrokerMessage::decode(&want[..18]),
            Err(DecodeError::Truncated(18))
        );
    }

    // Written by hand from docs/endpoint.md.
    #[test]
    fn the_answers_about_cids_and_attached_sockets_are_byte_exact() {
        let cid = BrokerMessage::Cid { cid: 0x8000_0001 };
        for (message, want) in [
            (cid, vec![1, 0x8d, 0, 0, 1, 0, 0, 0x80]),
            (BrokerMessage::Attachable, vec![1, 0x8e, 0, 0]),
        ] {
            assert_eq!(bytes(&message), want);
            let longer = [want.as_slice(), &[0]].concat();
            assert_eq!(
                BrokerMessage::decode(&longer),
                Err(DecodeError::Trailing(1))
            );
            assert!(BrokerMessage::decode(&want[..want.len() - 1]).is_err());
            assert_eq!(BrokerMessage::decode(&want), Ok(message));
        }
    }

    #[test]
    fn text_that_does_not_fit_is_truncated_at_a_character() {
        let detail = "é".repeat(4096);
        let message = BrokerMessage::Explained(Refused {
            code: 0,
            errno: 0,
            detail,
        });
        let bytes = bytes(&message);
        assert!(bytes.len() <= crate::MAX_MESSAGE);
        assert!(BrokerMessage::decode(&bytes).is_ok());
    }

    fn any_message() -> impl Strategy<Value = BrokerMessage> {
        let address = (any::<[u8; 16]>(), any::<[u8; 16]>()).prop_map(|(vm, service)| {
            SockAddrHv::new(
                VmId::from_guid_bytes(vm),
                ServiceId::from_guid_bytes(service),
            )
        });
        let refused =
            (any::<u32>(), any::<u32>(), ".{0,80}").prop_map(|(code, errno, detail)| Refused {
                code,
                errno,
                detail,
            });
        let transport = prop_oneof![
            Just(Transport::Descriptor),
            Just(Transport::Ring),
            Just(Transport::Arena),
            Just(Transport::Direct),
            Just(Transport::Attached)
        ];
        prop_oneof![
            any::<[u8; 16]>().prop_map(|guid| BrokerMessage::Found { guid }),
            (
                transport.clone(),
                any::<u64>(),
                address.clone(),
                address.clone()
            )
                .prop_map(|(transport, connection, local, peer)| {
                    BrokerMessage::Connected(Connected {
                        transport,
                        connection,
                        local,
                        peer,
                    })
                }),
            (any::<u32>(), any::<u64>()).prop_map(|(backlog, listener)| {
                BrokerMessage::Listening(Listening { backlog, listener })
            }),
            (any::<u32>(), any::<u64>(), address.clone()).prop_map(
                |(backlog, listener, address)| {
                    let listening = Listening { backlog, listener };
                    BrokerMessage::Bound(Bound { listening, address })
                }
            ),
            (
                transport,
                any::<u64>(),
                address.clone(),
                address,
                any::<[u32; 3]>(),
                ".{0,63}"
            )
                .prop_map(
                    |(transport, connection, local, peer, [pid, uid, gid], partition)| {
                        BrokerMessage::Incoming(Incoming {
                            transport,
                            connection,
                            local,
                            peer,
                            pid,
                            uid,
                            gid,
                            partition,
                        })
                    }
                ),
            refused.clone().prop_map(BrokerMessage::Refused),
            refused.clone().prop_map(BrokerMessage::Reset),
            refused.clone().prop_map(BrokerMessage::Explained),
            (any::<u32>(), any::<u32>(), refused).prop_map(|(slot, seq, reason)| {
                BrokerMessage::StreamReset(StreamReset { slot, seq, reason })
            }),
            Just(BrokerMessage::Registered),
            Just(BrokerMessage::Shutdown),
            any::<bool>().prop_map(|on| BrokerMessage::Suspended { on }),
            any::<u32>().prop_map(|cid| BrokerMessage::Cid { cid }),
            Just(BrokerMessage::Attachable),
        ]
    }

    proptest! {
        #[test]
        fn every_message_survives_a_round_trip(message in any_message()) {
            prop_assert_eq!(BrokerMessage::decode(&bytes(&message)), Ok(message));
        }

        #[test]
        fn any_bytes_decode_to_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = BrokerMessage::decode(&bytes);
        }
    }

    #[test]
    fn a_connection_has_exactly_one_known_transport() {
        let connected = |transport| {
            BrokerMessage::Connected(Connected {
                transport,
                connection: 1,
                local: SockAddrHv::new(VmId::LOOPBACK, ServiceId::ZERO),
                peer: SockAddrHv::new(VmId::LOOPBACK, ServiceId::ZERO),
            })
        };
        let mut bytes = bytes(&connected(Transport::Descriptor));
        assert_eq!(bytes[4], 1);
        for (bit, transport) in [
            (2, Transport::Ring),
            (4, Transport::Arena),
            (8, Transport::Direct),
            (16, Transport::Attached),
        ] {
            bytes[4] = bit;
            assert_eq!(BrokerMessage::decode(&bytes), Ok(connected(transport)));
        }
        for unknown in [0, 3, 0x40] {
            bytes[4] = unknown;
            assert_eq!(
                BrokerMessage::decode(&bytes),
                Err(DecodeError::Value {
                    field: "transport",
                    value: unknown.into()
                })
            );
        }
    }
}
