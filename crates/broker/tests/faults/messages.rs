//! Malformed and unexpected messages on endpoint connections. Covers each message type, messages
//! out of order, random bytes, unexpected descriptors, transports and backlog bounds.

use std::io::{Read, Write};
use std::os::fd::AsFd;

use hvsock::{ServiceId, VmId};
use hvsock_endpoint::{
    BrokerMessage, ClientMessage, ConnectNamed, Flags, IdOrName, Listen, ListenNamed, LookupKind,
    MAX_MESSAGE, NamedAddress, Register, SocketOption, Transports,
};
use hvsock_fabric::Refusal;
use hvsock_testkit::TempFolder;

use crate::child::BrokerProcess;
use crate::raw::{self, Raw, bytes};
use hvsock_testkit::wait::eventually;
use hvsock_testkit::world::World;

const PORT: u32 = 100;

fn is_protocol_fault(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Reset { cause } if cause.contains("endpoint protocol"))
}

fn register(name: &str) -> ClientMessage {
    ClientMessage::Register(Register {
        service: ServiceId::from_port(PORT),
        name: name.into(),
        purpose: "a test".into(),
    })
}

fn lookup(name: &str) -> ClientMessage {
    ClientMessage::Lookup {
        kind: LookupKind::Service,
        name: name.into(),
    }
}

/// A name of the service at `PORT` in this partition.
fn named() -> NamedAddress {
    NamedAddress {
        partition: IdOrName::Id(VmId::LOOPBACK),
        service: IdOrName::Name(format!("Service {PORT}")),
    }
}

fn every_message() -> [ClientMessage; 11] {
    let flags = Flags {
        explain: true,
        ..Flags::default()
    };
    let (address, transports) = (named(), Transports::DESCRIPTOR);
    let listen_named = ClientMessage::ListenNamed(ListenNamed {
        flags,
        backlog: 1,
        transports,
        address: address.clone(),
    });
    let connect_named = ClientMessage::ConnectNamed(ConnectNamed {
        flags,
        timeout_ms: 0,
        transports,
        address,
    });
    [
        connect_named,
        listen_named,
        lookup("Service 100"),
        ClientMessage::SetOption {
            option: SocketOption::ConnectedSuspend,
            value: 1,
        },
        raw::connect(VmId::LOOPBACK, PORT),
        raw::listen(VmId::LOOPBACK, PORT, 1),
        register("A lease"),
        ClientMessage::Accepted { connection: 1 },
        ClientMessage::Shutdown,
        ClientMessage::CidOf {
            partition: VmId::LOOPBACK,
        },
        ClientMessage::Attach { filler: 16 },
    ]
}

/// Byte strings with one mistake each.
fn malformed() -> Vec<Vec<u8>> {
    let mut malformed = vec![
        Vec::new(),
        vec![1],
        vec![1, 3, 0],
        vec![1, 7, 0, 0, 0],
        vec![0; 4],
        vec![0xff; 44],
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        vec![1; MAX_MESSAGE],
        vec![1; MAX_MESSAGE + 1],
        vec![1; 60_000],
        // LOOKUP of a name that is not UTF-8, and of no kind.
        [&[1, 1, 0, 0, 1, 0, 0, 0][..], b"\xff\xfe"].concat(),
        [&[1, 1, 0, 0, 4, 0, 0, 0][..], b"name"].concat(),
        // SET_OPTION of an unknown option.
        vec![1, 2, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0],
        // CONNECT_NAMED whose name is longer than the message, and one with a GUID and a name.
        [
            &[1, 8, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0][..],
            &[0; 32],
            &[255; 4],
            b"name",
        ]
        .concat(),
        [
            &[1, 8, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0][..],
            &[7; 32],
            &[4, 0, 0, 0],
            b"name",
        ]
        .concat(),
        // REGISTER whose name is longer than the message.
        [&[1, 5, 0, 0][..], &[7; 16], &[255; 4], b"name"].concat(),
    ];
    for message in every_message() {
        let good = bytes(&message);
        for version in [0, 2, 255] {
            malformed.push([&[version], &good[1..]].concat());
        }
        malformed.push([&[good[0], 0x80 | good[1]], &good[2..]].concat());
        malformed.push([&good[..3], &[0x80], &good[4..]].concat());
        let has_text = matches!(
            message,
            ClientMessage::Lookup { .. }
                | ClientMessage::Register(_)
                | ClientMessage::ConnectNamed(_)
                | ClientMessage::ListenNamed(_)
        );
        if !has_text {
            malformed.push([&good[..], &[0]].concat());
            malformed.push(good[..good.len() - 1].to_vec());
        }
        malformed.push(good[..good.len().min(5)].to_vec());
    }
    // Some truncated messages are valid.
    malformed.retain(|bytes| ClientMessage::decode(bytes).is_err());
    malformed
}

#[test]
fn a_malformed_message_is_refused_with_the_reason_and_affects_no_other_connection() {
    let world = World::new();
    let host = world.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let (mut connected, mut accepted) = host.pair(VmId::LOOPBACK, PORT, &listener);
    let malformed = malformed();
    assert!(malformed.len() > 40, "{}", malformed.len());
    for bytes in malformed {
        let raw = Raw::new(&host);
        raw.send_bytes(&bytes);
        let refusal = raw.recv_refused();
        assert!(is_protocol_fault(&refusal), "{bytes:?}: {refusal}");

        // On a listening connection it ends the listener.
        let raw = Raw::new(&host);
        raw.listen(VmId::LOOPBACK, PORT + 1, 1);
        raw.send_bytes(&bytes);
        assert!(is_protocol_fault(&raw.recv_refused()), "{bytes:?}");
    }
    world.settles_at(1, 1);
    connected.write_all(b"unharmed").unwrap();
    let mut received = [0; 8];
    accepted.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"unharmed");
}

#[test]
fn a_malformed_message_on_a_connection_resets_both_ends_with_the_reason() {
    let world = World::new();
    let host = world.host();
    let server = Raw::new(&host);
    server.listen(VmId::LOOPBACK, PORT, 8);
    for (turn, bytes) in malformed().into_iter().enumerate() {
        let client = Raw::new(&host);
        let _client_data = client.connect(VmId::LOOPBACK, PORT);
        let (incoming, _server_data, control) = server.recv_incoming();
        server.send(&ClientMessage::Accepted {
            connection: incoming.connection,
        });
        let sender = if turn % 2 == 0 { &client } else { &control };
        sender.send_bytes(&bytes);
        for end in [&client, &control] {
            let refusal = end.recv_reset();
            assert!(is_protocol_fault(&refusal), "{bytes:?}: {refusal}");
        }
    }
    world.settles_at(1, 0);
}

#[test]
fn an_unexpected_message_ends_the_endpoint_connection_with_its_listener_or_lease() {
    let world = World::new();
    let host = world.host();
    let unexpected = |raw: &Raw, message: &ClientMessage| {
        raw.send(message);
        let refusal = raw.recv_refused();
        assert!(is_protocol_fault(&refusal), "{message:?}: {refusal}");
    };
    for message in every_message() {
        use ClientMessage::{Accepted, SetOption, Shutdown};
        if matches!(message, Accepted { .. } | Shutdown) {
            unexpected(&Raw::new(&host), &message);
        }
        if !matches!(message, Accepted { .. } | SetOption { .. }) {
            let raw = Raw::new(&host);
            raw.listen(VmId::LOOPBACK, PORT, 1);
            unexpected(&raw, &message);
        }
        if !matches!(message, SetOption { .. }) {
            let raw = Raw::new(&host);
            raw.send(&register("A lease"));
            assert_eq!(raw.recv(), BrokerMessage::Registered);
            unexpected(&raw, &message);
            eventually("the lease has ended", || {
                world.handle().services(false).unwrap().is_empty()
            });
        }
    }
    world.settles_at(0, 0);
}

#[test]
fn a_connect_without_a_supported_transport_is_refused() {
    let world = World::new();
    let host = world.host();
    let _listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let raw = Raw::new(&host);
    let mut offer = bytes(&raw::connect(VmId::LOOPBACK, PORT));
    offer[8..12].copy_from_slice(&0x8000_0000_u32.to_le_bytes());
    raw.send_bytes(&offer);
    assert_eq!(raw.recv_refused(), Refusal::NotSupported);
    world.settles_at(1, 0);
}

#[test]
fn random_bytes_and_damaged_messages_leak_nothing() {
    let world = World::new();
    let endpoints = [world.host(), world.container("web", None)];
    world.register(PORT);
    let listener = endpoints[0].listen(VmId::CHILDREN, PORT).unwrap();
    let messages = every_message().map(|message| bytes(&message));
    let mut random = Random(1);
    for turn in 0..3000 {
        let raw = Raw::new(&endpoints[turn % 2]);
        for _ in 0..1 + random.below(4) {
            let mut message = messages[random.below(messages.len())].clone();
            match random.below(4) {
                0 => message = (0..random.below(100)).map(|_| random.byte()).collect(),
                1 => message.truncate(random.below(message.len())),
                2 => {
                    let at = random.below(message.len());
                    message[at] = random.byte();
                }
                _ => {}
            }
            if !raw.send_bytes(&message) {
                break;
            }
        }
    }
    drop(listener);
    world.settles_at(0, 0);
    let services = world.handle().services(false).unwrap();
    assert_eq!(services.len(), 1, "{services:?}");
    // The broker still serves connections.
    let listener = endpoints[0].listen(VmId::CHILDREN, PORT).unwrap();
    endpoints[1].pair(VmId::PARENT, PORT, &listener);
}

/// A deterministic pseudorandom generator (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[7]
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 33).expect("31 bits") % bound
    }
}

#[test]
fn unexpected_descriptors_are_refused_and_never_stay_open() {
    let folder = TempFolder::new();
    let broker = BrokerProcess::start(folder.path(), None);
    let host = broker.host();
    let server = Raw::new(&host);
    server.listen(VmId::LOOPBACK, PORT, 128);
    let before = broker.descriptors();
    let (pipe, other) = rustix::pipe::pipe().unwrap();
    let many = vec![other.as_fd(); 253];
    let good = bytes(&ClientMessage::SetOption {
        option: SocketOption::ConnectedSuspend,
        value: 1,
    });
    for turn in 0..400 {
        // With a valid or a malformed message, one descriptor or the kernel's maximum.
        let message: &[u8] = if turn % 2 == 0 { &good } else { b"nonsense" };
        let count = if turn % 3 == 0 { 253 } else { 1 };
        let raw = Raw::new(&host);
        raw.send_with_fds(message, &many[..count]).unwrap();
        assert!(is_protocol_fault(&raw.recv_refused()));

        let client = Raw::new(&host);
        let _data = client.connect(VmId::LOOPBACK, PORT);
        let (_, _server_data, control) = server.recv_incoming();
        client.send_with_fds(message, &many[..count]).unwrap();
        assert!(is_protocol_fault(&client.recv_reset()));
        assert!(is_protocol_fault(&control.recv_reset()));
        assert!(broker.descriptors() < before + 32);
    }
    eventually("the broker has no more descriptors than before", || {
        broker.descriptors() <= before
    });
    // The pipe reads as ended only if no copy of its write end is left.
    drop(many);
    drop(other);
    assert_eq!(rustix::io::read(&pipe, &mut [0; 1]), Ok(0));
}

#[test]
fn a_backlog_is_clamped_to_its_bounds() {
    let world = World::new();
    for (asked, granted) in [(0, 1), (1, 1), (4096, 4096), (u32::MAX, 4096)] {
        let raw = Raw::new(&world.host());
        raw.send(&ClientMessage::Listen(Listen {
            backlog: asked,
            ..match raw::listen(VmId::LOOPBACK, PORT, 0) {
                ClientMessage::Listen(listen) => listen,
                _ => unreachable!(),
            }
        }));
        match raw.recv() {
            BrokerMessage::Listening(listening) => assert_eq!(listening.backlog, granted),
            other => panic!("{other:?}"),
        }
        drop(raw);
        world.settles_at(0, 0);
    }
}
