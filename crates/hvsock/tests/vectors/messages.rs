//! Messages of the endpoint protocol.

use std::collections::BTreeSet;

use hvsock::{ServiceId, SockAddrHv, VmId};
use hvsock_endpoint::{
    Bound, BrokerMessage, ClientMessage, Connect, ConnectNamed, Connected, DecodeError, Describe,
    Flags, IdOrName, Incoming, Listen, ListenNamed, Listening, LookupKind, NamedAddress, Refused,
    Register, SocketOption, StreamReset, Transport, Transports,
};
use serde_json::Value;

use crate::json::{bytes, guid, hex, long, number, rows, sections, text};

const FILE: &str = include_str!("../../../../docs/vectors/messages.json");

fn flags(fields: &Value) -> Flags {
    let bits = number(fields, "flags");
    Flags {
        raw_fd: bits & 1 != 0,
        dry_run: bits & 2 != 0,
        explain: bits & 4 != 0,
    }
}

fn transports(fields: &Value) -> Transports {
    Transports::from_bits(number(fields, "transports")).expect("a set of transports")
}

fn transport(fields: &Value) -> Transport {
    match number(fields, "transport") {
        1 => Transport::Descriptor,
        2 => Transport::Ring,
        4 => Transport::Arena,
        8 => Transport::Direct,
        16 => Transport::Attached,
        bits => panic!("no transport has the bit {bits}"),
    }
}

fn address(fields: &Value, vm: &str, service: &str) -> SockAddrHv {
    SockAddrHv::new(guid(fields, vm), guid(fields, service))
}

fn named_address(fields: &Value) -> NamedAddress {
    fn part<T: std::str::FromStr>(fields: &Value, id: &str, name: &str) -> IdOrName<T> {
        match text(fields, name) {
            "" => IdOrName::Id(guid(fields, id)),
            name => IdOrName::Name(name.to_owned()),
        }
    }
    NamedAddress {
        partition: part::<VmId>(fields, "vm", "partition_name"),
        service: part::<ServiceId>(fields, "service", "service_name"),
    }
}

fn refused(fields: &Value) -> Refused {
    Refused {
        code: number(fields, "code"),
        errno: number(fields, "errno"),
        detail: text(fields, "detail").to_owned(),
    }
}

fn listening(fields: &Value) -> Listening {
    Listening {
        backlog: number(fields, "backlog"),
        listener: long(fields, "listener"),
    }
}

/// The message to the broker that a vector describes.
fn client_message(kind: &str, fields: &Value) -> ClientMessage {
    let owned = |field| text(fields, field).to_owned();
    match kind {
        "LOOKUP" => ClientMessage::Lookup {
            kind: match number(fields, "what") {
                1 => LookupKind::Service,
                2 => LookupKind::Partition,
                3 => LookupKind::Cid,
                what => panic!("no kind of name has the number {what}"),
            },
            name: owned("name"),
        },
        "SET_OPTION" => ClientMessage::SetOption {
            option: SocketOption::from_number(number(fields, "option")).expect("an option"),
            value: number(fields, "value"),
        },
        "CONNECT" => ClientMessage::Connect(Connect {
            flags: flags(fields),
            timeout_ms: number(fields, "timeout"),
            transports: transports(fields),
            address: address(fields, "vm", "service"),
        }),
        "LISTEN" => ClientMessage::Listen(Listen {
            flags: flags(fields),
            backlog: number(fields, "backlog"),
            transports: transports(fields),
            address: address(fields, "vm", "service"),
        }),
        "CONNECT_NAMED" => ClientMessage::ConnectNamed(ConnectNamed {
            flags: flags(fields),
            timeout_ms: number(fields, "timeout"),
            transports: transports(fields),
            address: named_address(fields),
        }),
        "LISTEN_NAMED" => ClientMessage::ListenNamed(ListenNamed {
            flags: flags(fields),
            backlog: number(fields, "backlog"),
            transports: transports(fields),
            address: named_address(fields),
        }),
        "REGISTER" => ClientMessage::Register(Register {
            service: guid(fields, "service"),
            name: owned("name"),
            purpose: owned("purpose"),
        }),
        "ACCEPTED" => ClientMessage::Accepted {
            connection: long(fields, "connection"),
        },
        "SHUTDOWN" => ClientMessage::Shutdown,
        "DESCRIBE" => ClientMessage::Describe(Describe {
            action: owned("action"),
            detail: owned("detail"),
        }),
        "ARENA_CHANGED" => ClientMessage::ArenaChanged,
        "ARENA_GROW" => ClientMessage::ArenaGrow,
        "CID_OF" => ClientMessage::CidOf {
            partition: guid(fields, "vm"),
        },
        "ATTACH" => ClientMessage::Attach {
            filler: number(fields, "filler"),
        },
        kind => panic!("no message to the broker has the name {kind}"),
    }
}

/// The message from the broker that a vector describes.
fn broker_message(kind: &str, fields: &Value) -> BrokerMessage {
    match kind {
        "FOUND" => BrokerMessage::Found {
            guid: guid::<VmId>(fields, "guid").to_guid_bytes(),
        },
        "CONNECTED" => BrokerMessage::Connected(Connected {
            transport: transport(fields),
            connection: long(fields, "connection"),
            local: address(fields, "local_vm", "local_service"),
            peer: address(fields, "peer_vm", "peer_service"),
        }),
        "LISTENING" => BrokerMessage::Listening(listening(fields)),
        "BOUND" => BrokerMessage::Bound(Bound {
            listening: listening(fields),
            address: address(fields, "vm", "service"),
        }),
        "REGISTERED" => BrokerMessage::Registered,
        "INCOMING" => BrokerMessage::Incoming(Incoming {
            transport: transport(fields),
            connection: long(fields, "connection"),
            local: address(fields, "local_vm", "local_service"),
            peer: address(fields, "peer_vm", "peer_service"),
            pid: number(fields, "pid"),
            uid: number(fields, "uid"),
            gid: number(fields, "gid"),
            partition: text(fields, "partition").to_owned(),
        }),
        "REFUSED" => BrokerMessage::Refused(refused(fields)),
        "RESET" => BrokerMessage::Reset(refused(fields)),
        "EXPLAINED" => BrokerMessage::Explained(refused(fields)),
        "SHUTDOWN" => BrokerMessage::Shutdown,
        "CID" => BrokerMessage::Cid {
            cid: number(fields, "cid"),
        },
        "ATTACHABLE" => BrokerMessage::Attachable,
        "SUSPENDED" => BrokerMessage::Suspended {
            on: number(fields, "suspended") == 1,
        },
        "STREAM_RESET" => BrokerMessage::StreamReset(StreamReset {
            slot: number(fields, "slot"),
            seq: number(fields, "seq"),
            reason: refused(fields),
        }),
        kind => panic!("no message from the broker has the name {kind}"),
    }
}

/// The bytes of the message of a row.
fn encoded(direction: &str, row: &Value) -> Vec<u8> {
    let (kind, fields) = (text(row, "kind"), &row["fields"]);
    let mut encoded = Vec::new();
    match direction {
        "to_broker" => client_message(kind, fields).encode(&mut encoded),
        "from_broker" => broker_message(kind, fields).encode(&mut encoded),
        other => panic!("no direction is named {other}"),
    }
    encoded
}

fn decode_error(direction: &str, bytes: &[u8]) -> Option<DecodeError> {
    match direction {
        "to_broker" => ClientMessage::decode(bytes).err(),
        "from_broker" => BrokerMessage::decode(bytes).err(),
        other => panic!("no direction is named {other}"),
    }
}

/// Every kind of message that the codec of this direction knows.
fn kinds(direction: &str) -> BTreeSet<u8> {
    let known = |kind: &u8| {
        let error = decode_error(direction, &[1, *kind, 0, 0]);
        !matches!(error, Some(DecodeError::Kind(_)))
    };
    (0..=u8::MAX).filter(known).collect()
}

#[test]
fn every_section_of_messages_is_known() {
    let mut found = sections(FILE);
    found.sort_unstable();
    assert_eq!(
        found,
        ["from_broker", "malformed", "to_broker", "truncated"]
    );
}

#[test]
fn every_message_to_the_broker_encodes_and_decodes_as_in_its_vector() {
    for row in rows(FILE, "to_broker") {
        assert_eq!(
            hex(&encoded("to_broker", &row)),
            text(&row, "bytes"),
            "{row}"
        );
        let message = client_message(text(&row, "kind"), &row["fields"]);
        let decoded = ClientMessage::decode(&bytes(&row, "bytes"));
        assert_eq!(decoded, Ok(message), "{row}");
    }
}

#[test]
fn every_message_from_the_broker_encodes_and_decodes_as_in_its_vector() {
    for row in rows(FILE, "from_broker") {
        assert_eq!(
            hex(&encoded("from_broker", &row)),
            text(&row, "bytes"),
            "{row}"
        );
        let message = broker_message(text(&row, "kind"), &row["fields"]);
        let decoded = BrokerMessage::decode(&bytes(&row, "bytes"));
        assert_eq!(decoded, Ok(message), "{row}");
    }
}

#[test]
fn every_kind_of_message_has_vectors() {
    for direction in ["to_broker", "from_broker"] {
        let found = rows(FILE, direction);
        let found: BTreeSet<u8> = found.iter().map(|row| bytes(row, "bytes")[1]).collect();
        assert_eq!(found, kinds(direction), "{direction}");
        let malformed = rows(FILE, "malformed");
        let malformed = malformed.iter().filter(|row| row["direction"] == direction);
        let malformed: BTreeSet<u8> = malformed
            .filter_map(|row| bytes(row, "bytes").get(1).copied())
            .collect();
        let missing: Vec<_> = found.difference(&malformed).collect();
        assert!(missing.is_empty(), "malformed {direction}: {missing:x?}");
    }
}

#[test]
fn every_option_flag_and_transport_has_a_vector() {
    let all = rows(FILE, "to_broker");
    let fields = |name| {
        all.iter()
            .filter_map(move |row| row["fields"][name].as_u64())
    };
    let options: BTreeSet<u64> = fields("option").collect();
    let known = (0..=0xffff).filter(|number| SocketOption::from_number(*number).is_some());
    assert_eq!(options, known.map(u64::from).collect());
    assert_eq!(fields("flags").fold(0, |all, bits| all | bits), 7);
    for section in ["CONNECTED", "INCOMING"] {
        let all = rows(FILE, "from_broker");
        let of_kind = all.iter().filter(|row| row["kind"] == section);
        let found: BTreeSet<u32> = of_kind
            .map(|row| number(&row["fields"], "transport"))
            .collect();
        assert_eq!(found, BTreeSet::from([1, 2, 4, 8, 16]), "{section}");
    }
}

#[test]
fn text_that_is_too_long_is_truncated_as_in_the_vectors() {
    for row in rows(FILE, "truncated") {
        let encoded = encoded(text(&row, "direction"), &row);
        assert_eq!(hex(&encoded), text(&row, "bytes"), "{}", row["name"]);
    }
}

#[test]
fn malformed_messages_are_refused_with_the_error_of_the_vector() {
    for row in rows(FILE, "malformed") {
        let error = decode_error(text(&row, "direction"), &bytes(&row, "bytes"));
        let error = error.unwrap_or_else(|| panic!("it decodes: {row}"));
        let (label, field) = match error {
            DecodeError::Truncated(_) => ("truncated", None),
            DecodeError::Trailing(_) => ("trailing", None),
            DecodeError::TooLong => ("too_long", None),
            DecodeError::Version(_) => ("version", None),
            DecodeError::Kind(_) => ("kind", None),
            DecodeError::Value { field, .. } => ("value", Some(field)),
            DecodeError::Text => ("text", None),
        };
        assert_eq!(label, text(&row, "error"), "{row}");
        assert_eq!(field, row["field"].as_str(), "{row}");
    }
}
