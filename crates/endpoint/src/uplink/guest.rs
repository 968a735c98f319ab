//! The frames from a guest to its host's broker.

use hvsock_address::{SockAddrHv, VmId};

use super::frame::append;
use super::values::{ChildId, ChildState, Request, What};
use crate::wire::{Reader, Writer};
use crate::{DecodeError, Flags, LookupKind, Refused};

/// One frame from a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestFrame {
    /// Looks up the GUID of a name. Answered in order by `Found` or `Refused`.
    Lookup {
        /// The kind of name.
        kind: LookupKind,
        /// The name.
        name: String,
    },
    /// Asks what the host would say. Answered by `Explained`.
    Explain(ExplainUp),
    /// Opens an uplink: the first frame of a broker. Answered by `Welcome` or `Refused`.
    Hello(Hello),
    /// Announces a container. Answered by `Announced`.
    Announce(Announce),
    /// The new state of a container that the host has accepted.
    ChildState {
        /// The container.
        child: ChildId,
        /// Its state.
        state: ChildState,
    },
    /// Withdraws a container. Its connections are reset, and its number is free.
    Withdraw {
        /// The container.
        child: ChildId,
    },
    /// Requests a connection to the host. Answered by `ConnectPort` or `ConnectRefused`.
    Connect(ConnectUp),
    /// Answers `Incoming`: the guest listens at this vsock port for that one connection.
    IncomingPort {
        /// The number of the request.
        request: Request,
        /// The port.
        port: u32,
    },
    /// Refuses `Incoming`.
    IncomingRefused {
        /// The number of the request.
        request: Request,
        /// The reason.
        reason: Refused,
    },
    /// Gives up a `Connect` or an `Explain`. Not answered.
    Cancel {
        /// The number of the request.
        request: Request,
    },
    /// Answered by `Synced` with the same number, after all that the host has changed before.
    Sync {
        /// A number that the guest chooses.
        number: u64,
    },
    /// Answered by `Pong`.
    Ping,
    /// Answers `Ping`.
    Pong,
    /// Answers the host's `Explain`. Code 0 means that the connect would be accepted.
    Explained {
        /// The number of the request.
        request: Request,
        /// The refusal, with the lines of the explanation as its detail.
        explanation: Refused,
    },
}

/// What a guest asks to be explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExplainUp {
    /// The number of the request.
    pub request: Request,
    /// The container that would connect or listen.
    pub child: ChildId,
    /// Which of both.
    pub what: What,
    /// The address.
    pub address: SockAddrHv,
}

/// Opens an uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// What the guest's broker supports, as bits. None is defined; unknown ones are ignored.
    pub features: u32,
    /// A random number of this run of the broker. An uplink with another one has lost all that was before.
    pub instance: [u8; 16],
}

/// Announces a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announce {
    /// The number by which both sides refer to it, not 0.
    pub child: ChildId,
    /// Its state.
    pub state: ChildState,
    /// Its id in the guest.
    pub id: VmId,
    /// Its name in the guest.
    pub name: String,
}

/// Requests a connection to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectUp {
    /// The number of the request.
    pub request: Request,
    /// Which container connects.
    pub child: ChildId,
    /// How long to wait for the peer, in milliseconds.
    pub timeout_ms: u32,
    /// The address: `VmId::PARENT` of the machine itself, the host's id of a container.
    pub address: SockAddrHv,
}

const LOOKUP: u8 = 0x01;
const EXPLAIN: u8 = 0x02;
const HELLO: u8 = 0x03;
const ANNOUNCE: u8 = 0x04;
const CHILD_STATE: u8 = 0x05;
const WITHDRAW: u8 = 0x06;
const CONNECT: u8 = 0x07;
const INCOMING_PORT: u8 = 0x08;
const INCOMING_REFUSED: u8 = 0x09;
const CANCEL: u8 = 0x0a;
const SYNC: u8 = 0x0b;
const PING: u8 = 0x0c;
const PONG: u8 = 0x0d;
const EXPLAINED: u8 = 0x0e;

impl GuestFrame {
    /// Appends the frame to `buffer`. It has at most [`MAX_FRAME`](super::MAX_FRAME) bytes.
    pub fn append(&self, buffer: &mut Vec<u8>) {
        append(buffer, |message| self.encode(message));
    }

    fn encode(&self, buffer: &mut Vec<u8>) {
        let w = Writer::new(buffer, self.kind(), Flags::default());
        match self {
            Self::Lookup { kind, name } => w.u32(*kind as u32).text(name),
            Self::Explain(m) => {
                let w = w.u64(m.request.0).u32(m.child.0).u32(m.what as u32);
                w.address(m.address);
            }
            Self::Hello(m) => {
                w.u32(m.features).guid(m.instance);
            }
            Self::Announce(m) => {
                let w = w.u32(m.child.0).u32(m.state as u32);
                w.guid(m.id.to_guid_bytes()).text(&m.name);
            }
            Self::ChildState { child, state } => {
                w.u32(child.0).u32(*state as u32);
            }
            Self::Withdraw { child } => {
                w.u32(child.0);
            }
            Self::Connect(m) => {
                let w = w.u64(m.request.0).u32(m.child.0).u32(m.timeout_ms);
                w.address(m.address);
            }
            Self::IncomingPort { request, port } => {
                w.u64(request.0).u32(*port);
            }
            Self::IncomingRefused { request, reason } => reason.encode(w.u64(request.0)),
            Self::Cancel { request } => {
                w.u64(request.0);
            }
            Self::Sync { number } => {
                w.u64(*number);
            }
            Self::Ping | Self::Pong => {}
            Self::Explained {
                request,
                explanation,
            } => explanation.encode(w.u64(request.0)),
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Lookup { .. } => LOOKUP,
            Self::Explain(_) => EXPLAIN,
            Self::Hello(_) => HELLO,
            Self::Announce(_) => ANNOUNCE,
            Self::ChildState { .. } => CHILD_STATE,
            Self::Withdraw { .. } => WITHDRAW,
            Self::Connect(_) => CONNECT,
            Self::IncomingPort { .. } => INCOMING_PORT,
            Self::IncomingRefused { .. } => INCOMING_REFUSED,
            Self::Cancel { .. } => CANCEL,
            Self::Sync { .. } => SYNC,
            Self::Ping => PING,
            Self::Pong => PONG,
            Self::Explained { .. } => EXPLAINED,
        }
    }

    /// Decodes a message that a [`FrameReader`](super::FrameReader) has found.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] if the bytes are not a valid message of this direction.
    pub fn decode(message: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::without_flags(message)?;
        let frame = match r.kind {
            LOOKUP => Self::Lookup {
                kind: r.name_kind()?,
                name: r.text()?,
            },
            EXPLAIN => Self::Explain(ExplainUp {
                request: Request(r.u64()?),
                child: ChildId(r.u32()?),
                what: What::decode(r.u32()?)?,
                address: r.address()?,
            }),
            HELLO => Self::Hello(Hello {
                features: r.u32()?,
                instance: r.guid()?,
            }),
            ANNOUNCE => Self::Announce(Announce {
                child: child(&mut r)?,
                state: ChildState::decode(r.u32()?)?,
                id: VmId::from_guid_bytes(r.guid()?),
                name: r.text()?,
            }),
            CHILD_STATE => Self::ChildState {
                child: child(&mut r)?,
                state: ChildState::decode(r.u32()?)?,
            },
            WITHDRAW => Self::Withdraw {
                child: child(&mut r)?,
            },
            CONNECT => Self::Connect(ConnectUp {
                request: Request(r.u64()?),
                child: ChildId(r.u32()?),
                timeout_ms: r.u32()?,
                address: r.address()?,
            }),
            INCOMING_PORT => Self::IncomingPort {
                request: Request(r.u64()?),
                port: r.u32()?,
            },
            INCOMING_REFUSED => Self::IncomingRefused {
                request: Request(r.u64()?),
                reason: Refused::decode(&mut r)?,
            },
            CANCEL => Self::Cancel {
                request: Request(r.u64()?),
            },
            SYNC => Self::Sync { number: r.u64()? },
            PING => Self::Ping,
            PONG => Self::Pong,
            EXPLAINED => Self::Explained {
                request: Request(r.u64()?),
                explanation: Refused::decode(&mut r)?,
            },
            kind => return Err(DecodeError::Kind(kind)),
        };
        r.finish(frame)
    }
}

/// The number of a container, which is not 0.
fn child(r: &mut Reader<'_>) -> Result<ChildId, DecodeError> {
    match r.u32()? {
        0 => Err(DecodeError::Value {
            field: "child",
            value: 0,
        }),
        child => Ok(ChildId(child)),
    }
}

#[cfg(test)]
mod tests {
    use hvsock_address::ServiceId;
    use proptest::prelude::*;

    use super::*;
    use crate::uplink::FrameReader;

    fn frame(message: &GuestFrame) -> Vec<u8> {
        let mut buffer = Vec::new();
        message.append(&mut buffer);
        buffer
    }

    // Written by hand from docs/uplink.md.
    #[test]
    fn frames_are_byte_exact() {
        let hello = GuestFrame::Hello(Hello {
            features: 0,
            instance: *b"0123456789abcdef",
        });
        assert_eq!(
            frame(&hello),
            b"\x18\0\0\0\x01\x03\0\0\0\0\0\x000123456789abcdef"
        );
        let lookup = GuestFrame::Lookup {
            kind: LookupKind::Service,
            name: "Demo".into(),
        };
        assert_eq!(frame(&lookup), b"\x0c\0\0\0\x01\x01\0\0\x01\0\0\0Demo");
        let port = GuestFrame::IncomingPort {
            request: Request(7),
            port: 0x0102_0304,
        };
        assert_eq!(
            frame(&port),
            b"\x10\0\0\0\x01\x08\0\0\x07\0\0\0\0\0\0\0\x04\x03\x02\x01"
        );
    }

    #[test]
    fn the_machine_itself_cannot_be_announced() {
        let mut bytes = frame(&GuestFrame::Withdraw { child: ChildId(1) });
        bytes[8] = 0;
        assert_eq!(
            GuestFrame::decode(&bytes[4..]),
            Err(DecodeError::Value {
                field: "child",
                value: 0
            })
        );
    }

    pub(crate) fn refused() -> impl Strategy<Value = Refused> {
        (any::<u32>(), any::<u32>(), ".{0,60}").prop_map(|(code, errno, detail)| Refused {
            code,
            errno,
            detail,
        })
    }

    fn any_frame() -> impl Strategy<Value = GuestFrame> {
        let request = any::<u64>().prop_map(Request);
        let child = (1..u32::MAX).prop_map(ChildId);
        let state = prop::sample::select(ChildState::ALL.to_vec());
        let address = any::<[u8; 32]>().prop_map(|bytes| {
            let mut guids = [[0; 16]; 2];
            guids[0].copy_from_slice(&bytes[..16]);
            guids[1].copy_from_slice(&bytes[16..]);
            SockAddrHv::new(
                VmId::from_guid_bytes(guids[0]),
                ServiceId::from_guid_bytes(guids[1]),
            )
        });
        prop_oneof![
            (any::<bool>(), ".{0,60}").prop_map(|(service, name)| GuestFrame::Lookup {
                kind: match service {
                    true => LookupKind::Service,
                    false => LookupKind::Partition,
                },
                name
            }),
            (
                request.clone(),
                child.clone(),
                any::<bool>(),
                address.clone()
            )
                .prop_map(|(request, child, connect, address)| {
                    let what = match connect {
                        true => What::Connect,
                        false => What::Listen,
                    };
                    GuestFrame::Explain(ExplainUp {
                        request,
                        child,
                        what,
                        address,
                    })
                }),
            (any::<u32>(), any::<[u8; 16]>()).prop_map(|(features, instance)| {
                GuestFrame::Hello(Hello { features, instance })
            }),
            (
                child.clone(),
                state.clone(),
                any::<[u8; 16]>(),
                "[a-z]{0,70}"
            )
                .prop_map(|(child, state, id, name)| {
                    let id = VmId::from_guid_bytes(id);
                    GuestFrame::Announce(Announce {
                        child,
                        state,
                        id,
                        name,
                    })
                }),
            (child.clone(), state)
                .prop_map(|(child, state)| GuestFrame::ChildState { child, state }),
            child
                .clone()
                .prop_map(|child| GuestFrame::Withdraw { child }),
            (request.clone(), child, any::<u32>(), address).prop_map(
                |(request, child, timeout_ms, address)| {
                    GuestFrame::Connect(ConnectUp {
                        request,
                        child,
                        timeout_ms,
                        address,
                    })
                }
            ),
            (request.clone(), any::<u32>())
                .prop_map(|(request, port)| GuestFrame::IncomingPort { request, port }),
            (request.clone(), refused())
                .prop_map(|(request, reason)| GuestFrame::IncomingRefused { request, reason }),
            request
                .clone()
                .prop_map(|request| GuestFrame::Cancel { request }),
            any::<u64>().prop_map(|number| GuestFrame::Sync { number }),
            Just(GuestFrame::Ping),
            Just(GuestFrame::Pong),
            (request, refused()).prop_map(|(request, explanation)| GuestFrame::Explained {
                request,
                explanation
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_frame_is_decoded_as_it_was_encoded(sent in any_frame()) {
            let mut reader = FrameReader::new();
            reader.add(&frame(&sent));
            let message = reader.next().unwrap().unwrap();
            prop_assert_eq!(GuestFrame::decode(message), Ok(sent));
        }

        #[test]
        fn any_bytes_are_decoded_without_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = GuestFrame::decode(&bytes);
            if let [version, _, low, high, ..] = &mut bytes[..] {
                (*version, *low, *high) = (crate::VERSION, 0, 0);
            }
            if let Ok(decoded) = GuestFrame::decode(&bytes) {
                prop_assert_eq!(&frame(&decoded)[4..], &bytes[..]);
            }
        }
    }
}
