//! Frames of the uplink from a hostile guest or host, in any pieces. Encoding a decoded frame gives the same bytes. With
//! a first byte of 0 or 1 they go to the state machine of the host's or the guest's side.

use hvsock_address::{ServiceId, SockAddrHv, VmId};
use hvsock_broker::fuzzing;
use hvsock_endpoint::uplink::{
    Announce, Announced, BindScope, ChildId, ChildState, ConnectUp, ExplainUp, FrameReader,
    GuestFrame, Hello, HostFrame, Incoming, MAX_FRAME, Request, Service, ServiceFlags, Welcome,
    What,
};
use hvsock_endpoint::{LookupKind, Refused};

use crate::target::Seed;

/// Reads frames in both directions. The first byte chooses the pieces.
pub(crate) fn run(bytes: &[u8]) {
    let Some((piece, bytes)) = bytes.split_first() else {
        return;
    };
    match piece {
        0 => return states(bytes, fuzzing::uplink_guest),
        1 => return states(bytes, fuzzing::uplink_host),
        _ => {}
    }
    let (mut reader, mut written) = (FrameReader::new(), Vec::new());
    for piece in bytes.chunks(usize::from(*piece).max(1)) {
        reader.add(piece);
        loop {
            let message = match reader.next() {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(_) => return,
            };
            written.clear();
            if let Ok(frame) = GuestFrame::decode(message) {
                frame.append(&mut written);
                assert_eq!(&written[4..], message, "{frame:?}");
            }
            written.clear();
            if let Ok(frame) = HostFrame::decode(message) {
                frame.append(&mut written);
                assert_eq!(&written[4..], message, "{frame:?}");
            }
        }
        assert!(reader.buffered() <= MAX_FRAME + 4);
    }
}

/// The longest list of pauses between frames.
const PAUSES: usize = 32;

/// The state machines of both sides: up to 32 bytes of pauses end with 255, and the rest are frames.
fn states(bytes: &[u8], run: fn(&[u8], &[u8])) {
    let count = bytes.iter().take(PAUSES).position(|pause| *pause == 255);
    let (pauses, frames) = bytes.split_at(count.unwrap_or(0));
    run(pauses, frames.get(1..).unwrap_or_default());
}

/// Frames whose fields differ in kind, alone and all in one stream.
pub(crate) fn seeds() -> Vec<Seed> {
    let (mut seeds, mut all) = (Vec::new(), vec![255]);
    let mut add = |name: &str, frame: &[u8]| {
        all.extend(frame);
        seeds.push((name.to_owned(), [&[255], frame].concat()));
    };
    for (name, frame) in guest_frames() {
        let mut bytes = Vec::new();
        frame.append(&mut bytes);
        add(name, &bytes);
    }
    for (name, frame) in host_frames() {
        let mut bytes = Vec::new();
        frame.append(&mut bytes);
        add(name, &bytes);
    }
    let frames = all.get(1..).unwrap_or_default();
    let pauses = [0, 1, 4, 2, 6, 40, 8, 255];
    for (side, name) in [(0, "guest"), (1, "host")] {
        let bytes = [&[side], &pauses[..], frames].concat();
        seeds.push((format!("{name}-states"), bytes));
    }
    // The host answers HELLO first.
    let (mut host, welcome) = (vec![1, 1, 4, 1, 0, 6, 255], host_frames());
    let order = [2, 3, 5, 6, 7, 8, 9, 10, 4];
    for (_, frame) in order.iter().filter_map(|at| welcome.get(*at)) {
        frame.append(&mut host);
    }
    seeds.push(("host-open".to_owned(), host));
    seeds.push(("stream".to_owned(), all));
    seeds
}

fn refused() -> Refused {
    Refused {
        code: 7,
        errno: 111,
        detail: "no listener".to_owned(),
    }
}

fn address() -> SockAddrHv {
    SockAddrHv {
        vm: VmId::PARENT,
        service: ServiceId::from_port(2761),
        flags: 0,
    }
}

fn guest_frames() -> Vec<(&'static str, GuestFrame)> {
    let (request, child) = (Request(7), ChildId(1));
    vec![
        (
            "guest-lookup",
            GuestFrame::Lookup {
                kind: LookupKind::Service,
                name: "Demo".to_owned(),
            },
        ),
        (
            "guest-hello",
            GuestFrame::Hello(Hello {
                features: 1,
                instance: [3; 16],
            }),
        ),
        (
            "guest-announce",
            GuestFrame::Announce(Announce {
                child,
                state: ChildState::Running,
                id: VmId::of_container("web"),
                name: "web".to_owned(),
            }),
        ),
        (
            "guest-state",
            GuestFrame::ChildState {
                child,
                state: ChildState::Paused,
            },
        ),
        ("guest-withdraw", GuestFrame::Withdraw { child }),
        (
            "guest-explain",
            GuestFrame::Explain(ExplainUp {
                request,
                child,
                what: What::Listen,
                address: address(),
            }),
        ),
        (
            "guest-connect",
            GuestFrame::Connect(ConnectUp {
                request,
                child,
                timeout_ms: 5000,
                address: address(),
            }),
        ),
        (
            "guest-port",
            GuestFrame::IncomingPort {
                request,
                port: 1 << 24,
            },
        ),
        (
            "guest-refused",
            GuestFrame::IncomingRefused {
                request,
                reason: refused(),
            },
        ),
        ("guest-cancel", GuestFrame::Cancel { request }),
        ("guest-sync", GuestFrame::Sync { number: 9 }),
        ("guest-ping", GuestFrame::Ping),
    ]
}

fn host_frames() -> Vec<(&'static str, HostFrame)> {
    let (request, child) = (Request(7), ChildId(1));
    let incoming = Incoming {
        request,
        child,
        timeout_ms: 5000,
        service: ServiceId::from_port(2761),
    };
    vec![
        ("host-found", HostFrame::Found { guid: [9; 16] }),
        ("host-refused", HostFrame::Refused(refused())),
        (
            "host-welcome",
            HostFrame::Welcome(Welcome {
                features: 1,
                host: VmId::of_container("host"),
                machine: VmId::of_container("machine"),
                host_name: "host".to_owned(),
                machine_name: "machine".to_owned(),
            }),
        ),
        (
            "host-service",
            HostFrame::Service(Service {
                service: ServiceId::from_port(2761),
                flags: ServiceFlags {
                    enabled: true,
                    may_connect: true,
                    bind: BindScope::Everyone,
                    wildcard: true,
                },
                name: "Demo".to_owned(),
            }),
        ),
        (
            "host-gone",
            HostFrame::ServiceGone {
                service: ServiceId::from_port(2761),
            },
        ),
        ("host-end", HostFrame::ServicesEnd),
        (
            "host-announced",
            HostFrame::Announced(Announced {
                child,
                id: VmId::of_container("web"),
                answer: refused(),
            }),
        ),
        (
            "host-port",
            HostFrame::ConnectPort {
                request,
                port: 1 << 24,
            },
        ),
        ("host-incoming", HostFrame::Incoming(incoming)),
        ("host-explain", HostFrame::Explain(incoming)),
        ("host-synced", HostFrame::Synced { number: 9 }),
    ]
}
