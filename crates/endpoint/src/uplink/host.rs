//! The frames from a host's broker to a guest.

use hvsock_address::{ServiceId, VmId};

use super::frame::append;
use super::values::{ChildId, Request, ServiceFlags};
use crate::wire::{Reader, Writer};
use crate::{DecodeError, Flags, Refused};

/// One frame from the host's broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostFrame {
    /// The GUID of a looked-up name.
    Found {
        /// Its bytes in Microsoft's order.
        guid: [u8; 16],
    },
    /// Refuses a look-up. Refuses an uplink, too, and ends that.
    Refused(Refused),
    /// The uplink is open.
    Welcome(Welcome),
    /// A service that the guest may know, or its new settings.
    Service(Service),
    /// A service that the guest may know no longer.
    ServiceGone {
        /// The service.
        service: ServiceId,
    },
    /// The services so far are all that there are. Sent once.
    ServicesEnd,
    /// Answers `Announce`.
    Announced(Announced),
    /// Answers `Connect`: the guest connects a vsock stream to this port of the host.
    ConnectPort {
        /// The number of the request.
        request: Request,
        /// The port, valid for [`TOKEN_MS`](super::TOKEN_MS) and one connect.
        port: u32,
    },
    /// Refuses `Connect`.
    ConnectRefused {
        /// The number of the request.
        request: Request,
        /// The reason.
        reason: Refused,
    },
    /// Requests a connection to a container. Answered by `IncomingPort` or `IncomingRefused`.
    Incoming(Incoming),
    /// Gives up an `Incoming` or an `Explain`. Not answered.
    Cancel {
        /// The number of the request.
        request: Request,
    },
    /// Answers `Sync`.
    Synced {
        /// Its number.
        number: u64,
    },
    /// Answered by `Pong`.
    Ping,
    /// Answers `Ping`.
    Pong,
    /// Asks whether the guest would accept this request. Answered by `Explained`.
    Explain(Incoming),
    /// Answers the guest's `Explain`. Code 0 means that it would succeed.
    Explained {
        /// The number of the request.
        request: Request,
        /// The refusal, with the lines of the explanation as its detail.
        explanation: Refused,
    },
}

/// Opens an uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// What the host's broker supports, as bits. None is defined; unknown ones are ignored.
    pub features: u32,
    /// The host's id.
    pub host: VmId,
    /// The machine's id at its host.
    pub machine: VmId,
    /// The host's name.
    pub host_name: String,
    /// The machine's name at its host.
    pub machine_name: String,
}

/// A service of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its GUID.
    pub service: ServiceId,
    /// What the guest may do with it.
    pub flags: ServiceFlags,
    /// Its friendly name.
    pub name: String,
}

/// The answer to `Announce`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// The container.
    pub child: ChildId,
    /// Its id at the host; zero if it is refused.
    pub id: VmId,
    /// Code 0 if the container is a partition of the host now. The detail is then its name there, else why
    /// it is not.
    pub answer: Refused,
}

/// A request for a connection to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// The number of the request.
    pub request: Request,
    /// The container; 0 is the machine itself.
    pub child: ChildId,
    /// How long the guest may take to answer, in milliseconds.
    pub timeout_ms: u32,
    /// The service.
    pub service: ServiceId,
}

const FOUND: u8 = 0x81;
const REFUSED: u8 = 0x82;
const WELCOME: u8 = 0x83;
const SERVICE: u8 = 0x84;
const SERVICE_GONE: u8 = 0x85;
const SERVICES_END: u8 = 0x86;
const ANNOUNCED: u8 = 0x87;
const CONNECT_PORT: u8 = 0x88;
const CONNECT_REFUSED: u8 = 0x89;
const INCOMING: u8 = 0x8a;
const CANCEL: u8 = 0x8b;
const SYNCED: u8 = 0x8c;
const PING: u8 = 0x8d;
const PONG: u8 = 0x8e;
const EXPLAIN: u8 = 0x8f;
const EXPLAINED: u8 = 0x90;

impl HostFrame {
    /// Appends the frame to `buffer`. It has at most [`MAX_FRAME`](super::MAX_FRAME) bytes.
    pub fn append(&self, buffer: &mut Vec<u8>) {
        append(buffer, |message| self.encode(message));
    }

    fn encode(&self, buffer: &mut Vec<u8>) {
        let w = Writer::new(buffer, self.kind(), Flags::default());
        match self {
            Self::Found { guid } => {
                w.guid(*guid);
            }
            Self::Refused(reason) => reason.encode(w),
            Self::Welcome(m) => {
                let len = u32::try_from(m.host_name.len()).unwrap_or(u32::MAX);
                w.u32(m.features)
                    .guid(m.host.to_guid_bytes())
                    .guid(m.machine.to_guid_bytes())
                    .u32(len)
                    .text(&format!("{}{}", m.host_name, m.machine_name));
            }
            Self::Service(m) => w.service(m.service).u32(m.flags.bits()).text(&m.name),
            Self::ServiceGone { service } => {
                w.service(*service);
            }
            Self::ServicesEnd | Self::Ping | Self::Pong => {}
            Self::Announced(m) => {
                let w = w.u32(m.child.0).guid(m.id.to_guid_bytes());
                m.answer.encode(w);
            }
            Self::ConnectPort { request, port } => {
                w.u64(request.0).u32(*port);
            }
            Self::ConnectRefused { request, reason } => reason.encode(w.u64(request.0)),
            Self::Incoming(m) | Self::Explain(m) => {
                let w = w.u64(m.request.0).u32(m.child.0).u32(m.timeout_ms);
                w.service(m.service);
            }
            Self::Cancel { request } => {
                w.u64(request.0);
            }
            Self::Synced { number } => {
                w.u64(*number);
            }
            Self::Explained {
                request,
                explanation,
            } => explanation.encode(w.u64(request.0)),
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Found { .. } => FOUND,
            Self::Refused(_) => REFUSED,
            Self::Welcome(_) => WELCOME,
            Self::Service(_) => SERVICE,
            Self::ServiceGone { .. } => SERVICE_GONE,
            Self::ServicesEnd => SERVICES_END,
            Self::Announced(_) => ANNOUNCED,
            Self::ConnectPort { .. } => CONNECT_PORT,
            Self::ConnectRefused { .. } => CONNECT_REFUSED,
            Self::Incoming(_) => INCOMING,
            Self::Cancel { .. } => CANCEL,
            Self::Synced { .. } => SYNCED,
            Self::Ping => PING,
            Self::Pong => PONG,
            Self::Explain(_) => EXPLAIN,
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
            FOUND => Self::Found { guid: r.guid()? },
            REFUSED => Self::Refused(Refused::decode(&mut r)?),
            WELCOME => {
                let features = r.u32()?;
                let host = VmId::from_guid_bytes(r.guid()?);
                let machine = VmId::from_guid_bytes(r.guid()?);
                let len = usize::try_from(r.u32()?).unwrap_or(usize::MAX);
                Self::Welcome(Welcome {
                    features,
                    host,
                    machine,
                    host_name: r.text_of(len)?,
                    machine_name: r.text()?,
                })
            }
            SERVICE => Self::Service(Service {
                service: r.service()?,
                flags: ServiceFlags::decode(r.u32()?)?,
                name: r.text()?,
            }),
            SERVICE_GONE => Self::ServiceGone {
                service: r.service()?,
            },
            SERVICES_END => Self::ServicesEnd,
            ANNOUNCED => Self::Announced(Announced {
                child: ChildId(r.u32()?),
                id: VmId::from_guid_bytes(r.guid()?),
                answer: Refused::decode(&mut r)?,
            }),
            CONNECT_PORT => Self::ConnectPort {
                request: Request(r.u64()?),
                port: r.u32()?,
            },
            CONNECT_REFUSED => Self::ConnectRefused {
                request: Request(r.u64()?),
                reason: Refused::decode(&mut r)?,
            },
            INCOMING => Self::Incoming(Incoming::decode(&mut r)?),
            CANCEL => Self::Cancel {
                request: Request(r.u64()?),
            },
            SYNCED => Self::Synced { number: r.u64()? },
            PING => Self::Ping,
            PONG => Self::Pong,
            EXPLAIN => Self::Explain(Incoming::decode(&mut r)?),
            EXPLAINED => Self::Explained {
                request: Request(r.u64()?),
                explanation: Refused::decode(&mut r)?,
            },
            kind => return Err(DecodeError::Kind(kind)),
        };
        r.finish(frame)
    }
}

impl Incoming {
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            request: Request(r.u64()?),
            child: ChildId(r.u32()?),
            timeout_ms: r.u32()?,
            service: r.service()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::uplink::{BindScope, FrameReader};

    fn frame(message: &HostFrame) -> Vec<u8> {
        let mut buffer = Vec::new();
        message.append(&mut buffer);
        buffer
    }

    // Written by hand from docs/uplink.md.
    #[test]
    fn frames_are_byte_exact() {
        let service = HostFrame::Service(Service {
            service: ServiceId::from_port(1),
            flags: ServiceFlags {
                enabled: true,
                may_connect: true,
                bind: BindScope::Root,
                wildcard: true,
            },
            name: "Demo".into(),
        });
        let want = b"\x1c\0\0\0\x01\x84\0\0\x01\0\0\0\xcb\xfa\xe6\x11\xbd\x58\x64\0\x6a\x79\x86\xd3\x17\0\0\0Demo";
        assert_eq!(frame(&service), want);
        let port = HostFrame::ConnectPort {
            request: Request(2),
            port: 0x0100_0000,
        };
        assert_eq!(
            frame(&port),
            b"\x10\0\0\0\x01\x88\0\0\x02\0\0\0\0\0\0\0\0\0\0\x01"
        );
    }

    #[test]
    fn flags_that_are_not_defined_are_refused() {
        for bits in [0b01100_u32, 0b100000, u32::MAX] {
            let mut bytes = frame(&HostFrame::Service(Service {
                service: ServiceId::from_port(1),
                flags: ServiceFlags::default(),
                name: String::new(),
            }));
            bytes[24..28].copy_from_slice(&bits.to_le_bytes());
            assert!(matches!(
                HostFrame::decode(&bytes[4..]),
                Err(DecodeError::Value { field: "flags", .. })
            ));
        }
    }

    fn refused() -> impl Strategy<Value = Refused> {
        (any::<u32>(), any::<u32>(), ".{0,60}").prop_map(|(code, errno, detail)| Refused {
            code,
            errno,
            detail,
        })
    }

    fn any_frame() -> impl Strategy<Value = HostFrame> {
        let request = any::<u64>().prop_map(Request);
        let vm = any::<[u8; 16]>().prop_map(VmId::from_guid_bytes);
        let service = any::<[u8; 16]>().prop_map(ServiceId::from_guid_bytes);
        let flags = (any::<[bool; 3]>(), 0..3).prop_map(|([enabled, may_connect, wildcard], n)| {
            let bind = [BindScope::Nobody, BindScope::Root, BindScope::Everyone][n as usize];
            ServiceFlags {
                enabled,
                may_connect,
                bind,
                wildcard,
            }
        });
        let incoming = (request.clone(), any::<[u32; 2]>(), service.clone()).prop_map(
            |(request, [child, timeout_ms], service)| Incoming {
                request,
                child: ChildId(child),
                timeout_ms,
                service,
            },
        );
        prop_oneof![
            any::<[u8; 16]>().prop_map(|guid| HostFrame::Found { guid }),
            refused().prop_map(HostFrame::Refused),
            (any::<u32>(), vm.clone(), vm.clone(), ".{0,30}", ".{0,30}").prop_map(
                |(features, host, machine, host_name, machine_name)| HostFrame::Welcome(Welcome {
                    features,
                    host,
                    machine,
                    host_name,
                    machine_name
                })
            ),
            (service.clone(), flags, ".{0,60}").prop_map(|(service, flags, name)| {
                HostFrame::Service(Service {
                    service,
                    flags,
                    name,
                })
            }),
            service.prop_map(|service| HostFrame::ServiceGone { service }),
            (any::<u32>(), vm, refused()).prop_map(|(child, id, answer)| {
                let child = ChildId(child);
                HostFrame::Announced(Announced { child, id, answer })
            }),
            (request.clone(), any::<u32>())
                .prop_map(|(request, port)| HostFrame::ConnectPort { request, port }),
            (request.clone(), refused())
                .prop_map(|(request, reason)| HostFrame::ConnectRefused { request, reason }),
            incoming.clone().prop_map(HostFrame::Incoming),
            incoming.prop_map(HostFrame::Explain),
            request
                .clone()
                .prop_map(|request| HostFrame::Cancel { request }),
            any::<u64>().prop_map(|number| HostFrame::Synced { number }),
            prop::sample::select(vec![
                HostFrame::Ping,
                HostFrame::Pong,
                HostFrame::ServicesEnd
            ]),
            (request, refused()).prop_map(|(request, explanation)| HostFrame::Explained {
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
            prop_assert_eq!(HostFrame::decode(message), Ok(sent));
        }

        #[test]
        fn any_bytes_are_decoded_without_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = HostFrame::decode(&bytes);
            if let [version, _, low, high, ..] = &mut bytes[..] {
                (*version, *low, *high) = (crate::VERSION, 0, 0);
            }
            if let Ok(decoded) = HostFrame::decode(&bytes) {
                prop_assert_eq!(&frame(&decoded)[4..], &bytes[..]);
            }
        }
    }
}
