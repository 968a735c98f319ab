//! What a broker says to a process.

use hvsock_address::SockAddrHv;

use crate::wire::{Reader, Writer, transport_bit};
use crate::{DecodeError, Flags, Transport};

/// One message from a broker to a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrokerMessage {
    /// The GUID of the name that was looked up, in Microsoft's byte order.
    Found {
        /// A `VmId` or a `ServiceId`, by what was asked.
        guid: [u8; 16],
    },
    /// The connection stands; with one descriptor: data. With [`Transport::Ring`] three: memory,
    /// this end's bell and the other end's.
    Connected(Connected),
    /// The listener stands.
    Listening(Listening),
    /// The lease stands.
    Registered,
    /// A connection for a listener; with two descriptors: data and control. With
    /// [`Transport::Ring`] four: memory, this end's bell, the other end's, and control.
    Incoming(Incoming),
    /// What was asked is turned down; the connection to the broker ends.
    Refused(Refused),
    /// No data follows what is in the data descriptor. With [`Transport::Ring`] a reason to look
    /// at the words of the memory, which say more.
    Shutdown,
    /// The connection or the listener is cut; the descriptors close.
    Reset(Refused),
    /// The answer to a dry run; a code of 0 says that it would succeed.
    Explained(Refused),
    /// A connection with [`Transport::Ring`] stands still, or moves again: a reason to look at
    /// the word of the memory that says so.
    Suspended {
        /// Whether it stands still.
        on: bool,
    },
}

/// A connection that stands, as the connecting process sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    /// How its bytes move.
    pub transport: Transport,
    /// Its number, as the control API lists it.
    pub connection: u64,
    /// This end's address.
    pub local: SockAddrHv,
    /// The other end's address.
    pub peer: SockAddrHv,
}

/// A listener that stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// How many connections may wait to be taken.
    pub backlog: u32,
    /// Its number, as the control API lists it.
    pub listener: u64,
}

/// A connection for a listener, as the listening process sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// How its bytes move.
    pub transport: Transport,
    /// Its number, as the control API lists it.
    pub connection: u64,
    /// This end's address.
    pub local: SockAddrHv,
    /// The other end's address, as this process would reach it.
    pub peer: SockAddrHv,
    /// The other end's process id on this machine; 0 where it is not for this process to know.
    pub pid: u32,
    /// The other end's user id; `u32::MAX` where it is not for this process to know.
    pub uid: u32,
    /// The other end's group id; `u32::MAX` where it is not for this process to know.
    pub gid: u32,
    /// The name of the other end's partition.
    pub partition: String,
}

/// A refusal: its number and words. The numbers are those of hvsock-fabric's `Refusal`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Which refusal.
    pub code: u32,
    /// The nearest errno, for programs that know nothing of refusals.
    pub errno: u32,
    /// What the refusal carries, such as the rule that decided; or the lines of an explanation.
    pub detail: String,
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

impl BrokerMessage {
    /// Replaces what is in `buffer` by this message's bytes, at most
    /// [`MAX_MESSAGE`](crate::MAX_MESSAGE) of them; longer text is cut.
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
            Self::Registered | Self::Shutdown => {}
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Found { .. } => FOUND,
            Self::Connected(_) => CONNECTED,
            Self::Listening(_) => LISTENING,
            Self::Registered => REGISTERED,
            Self::Incoming(_) => INCOMING,
            Self::Refused(_) => REFUSED,
            Self::Shutdown => SHUTDOWN,
            Self::Reset(_) => RESET,
            Self::Explained(_) => EXPLAINED,
            Self::Suspended { .. } => SUSPENDED,
        }
    }

    /// Reads one message.
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
                on: r.yes_no("suspended")?,
            },
            kind => return Err(DecodeError::Kind(kind)),
        };
        r.done(message)
    }
}

impl Refused {
    fn encode(&self, writer: Writer<'_>) {
        writer.u32(self.code).u32(self.errno).text(&self.detail);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
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

    // Written out by hand from docs/endpoint.md.
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
    fn suspended_is_byte_exact_and_says_yes_or_no() {
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

    #[test]
    fn text_that_would_not_fit_is_cut_at_a_character() {
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
        let transport = prop_oneof![Just(Transport::Descriptor), Just(Transport::Ring)];
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
            refused.prop_map(BrokerMessage::Explained),
            Just(BrokerMessage::Registered),
            Just(BrokerMessage::Shutdown),
            any::<bool>().prop_map(|on| BrokerMessage::Suspended { on }),
        ]
    }

    proptest! {
        #[test]
        fn every_message_survives_the_way_there_and_back(message in any_message()) {
            prop_assert_eq!(BrokerMessage::decode(&bytes(&message)), Ok(message));
        }

        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = BrokerMessage::decode(&bytes);
        }
    }

    #[test]
    fn a_connection_has_exactly_one_transport_that_is_known() {
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
        bytes[4] = 2;
        let ring = BrokerMessage::decode(&bytes);
        assert_eq!(ring, Ok(connected(Transport::Ring)));
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
