//! systemd-machined over varlink, and over a message bus.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use hvsock_discover::{Machined, State, Unavailable};
use serde_json::{Value, json};

use super::server::Server;
use super::{answer, kernel, list};

/// A machined that answers a call over varlink with these messages.
fn varlink(replies: Vec<Value>) -> Server {
    Server::new(move |stream| {
        let mut call = Vec::new();
        BufReader::new(&stream).read_until(0, &mut call).unwrap();
        let call: Value = serde_json::from_slice(&call[..call.len() - 1]).unwrap();
        assert_eq!(call["method"], "io.systemd.Machine.List");
        assert_eq!(call["more"], true);
        for reply in &replies {
            let _ = (&stream).write_all(format!("{reply}\0").as_bytes());
        }
    })
}

#[test]
fn machines_are_listed_over_varlink_without_containers() {
    let machine = |name: &str, class: &str, cid: u64, leader: Value, continues: bool| {
        let id = "0b2f1f0e000040008000000000000001";
        let parameters =
            json!({ "name": name, "id": id, "class": class, "vSockCid": cid, "leader": leader });
        json!({ "parameters": parameters, "continues": continues })
    };
    let server = varlink(vec![
        machine("web", "vm", 77, json!(4711), true),
        machine("box", "container", 0, json!(4712), true),
        machine("host", "host", 0, json!(1), true),
        machine("odd", "vm", 1 << 40, json!({ "pid": 4713 }), false),
    ]);
    let machines = answer(&Machined::at(server.path(), server.nowhere()));
    let seen: Vec<_> = machines
        .iter()
        .map(|one| (one.name.as_str(), one.pid, one.reach.clone()))
        .collect();
    assert_eq!(
        seen,
        [
            ("web", Some(4711), vec![kernel(77)]),
            ("odd", Some(4713), vec![])
        ]
    );
    let uuid = machines[0].uuid.as_deref();
    assert_eq!(uuid, Some("0b2f1f0e-0000-4000-8000-000000000001"));
}

#[test]
fn no_machine_is_an_empty_list_and_a_refusal_an_error() {
    let error = |name: &str| varlink(vec![json!({ "error": name, "parameters": {} })]);
    let ask = |server: &Server| {
        let machined = Machined::at(server.path(), server.nowhere());
        list(&machined, Duration::from_secs(10))
    };
    assert_eq!(ask(&error("io.systemd.Machine.NoSuchMachine")).unwrap(), []);
    let denied = ask(&error("org.varlink.service.PermissionDenied"));
    assert!(matches!(denied, Err(Unavailable::Forbidden { .. })));
    // Without the method, the message bus is asked, which is not there.
    let old = ask(&error("org.varlink.service.MethodNotFound"));
    assert!(old.unwrap_err().is_absent());
}

/// The bytes of a message of the bus: little-endian, an answer to this call.
fn message(kind: u8, reply_to: u32, error: Option<&str>, signature: &str, body: &[u8]) -> Vec<u8> {
    let pad = |bytes: &mut Vec<u8>| bytes.resize(bytes.len().next_multiple_of(8), 0);
    let mut fields = vec![5, 1, b'u', 0];
    fields.extend(reply_to.to_le_bytes());
    if let Some(error) = error {
        fields.extend([4, 1, b's', 0]);
        fields.extend(text(error));
        pad(&mut fields);
    }
    fields.extend([8, 1, b'g', 0, u8::try_from(signature.len()).unwrap()]);
    fields.extend(signature.as_bytes());
    fields.push(0);
    let mut bytes = vec![b'l', kind, 0, 1];
    bytes.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
    bytes.extend([9, 0, 0, 0]);
    bytes.extend(u32::try_from(fields.len()).unwrap().to_le_bytes());
    bytes.extend(fields);
    pad(&mut bytes);
    bytes.extend(body);
    bytes
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes.push(0);
    bytes
}

/// Appends with this alignment.
fn put(bytes: &mut Vec<u8>, alignment: usize, more: &[u8]) {
    bytes.resize(bytes.len().next_multiple_of(alignment), 0);
    bytes.extend(more);
}

/// An array of elements that are aligned to 8 bytes, and its length before it.
fn array(build: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = vec![0; 8];
    build(&mut bytes);
    let length = u32::try_from(bytes.len() - 8).unwrap();
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// A bus with machined, for one client: it authenticates, and answers Hello, ListMachines and GetAll.
fn bus(mut stream: UnixStream) {
    let mut lines = BufReader::new(stream.try_clone().unwrap());
    let mut line = Vec::new();
    lines.read_until(b'\n', &mut line).unwrap();
    assert!(line.starts_with(b"\0AUTH EXTERNAL "));
    stream.write_all(b"OK 1234\r\n").unwrap();
    line.clear();
    lines.read_until(b'\n', &mut line).unwrap();
    assert_eq!(line, b"BEGIN\r\n");
    for serial in 1.. {
        let mut head = [0; 16];
        if lines.read_exact(&mut head).is_err() {
            return;
        }
        let word = |at: usize| u32::from_le_bytes(head[at..][..4].try_into().unwrap()) as usize;
        let mut rest = vec![0; word(12).next_multiple_of(8) + word(4)];
        lines.read_exact(&mut rest).unwrap();
        let is = |member: &str| {
            rest.windows(member.len())
                .any(|part| part == member.as_bytes())
        };
        let answer = if is("Hello") {
            message(2, serial, None, "s", &text(":1.7"))
        } else if is("ListMachines") {
            let machines = array(|bytes| {
                for (name, class) in [("web", "vm"), ("box", "container"), ("gone", "vm")] {
                    put(bytes, 8, &text(name));
                    put(bytes, 4, &text(class));
                    put(bytes, 4, &text("vmspawn"));
                    put(bytes, 4, &text(&format!("/machine/{name}")));
                }
            });
            message(2, serial, None, "a(ssso)", &machines)
        } else if is("/machine/web") {
            let properties = array(|bytes| {
                put(bytes, 8, &text("VSockCID"));
                bytes.extend([1, b'u', 0]);
                put(bytes, 4, &77_u32.to_le_bytes());
                put(bytes, 8, &text("State"));
                bytes.extend([1, b's', 0]);
                put(bytes, 4, &text("running"));
                put(bytes, 8, &text("Leader"));
                bytes.extend([1, b'u', 0]);
                put(bytes, 4, &4711_u32.to_le_bytes());
                put(bytes, 8, &text("Id"));
                bytes.extend([2, b'a', b'y', 0]);
                put(bytes, 4, &16_u32.to_le_bytes());
                bytes.extend([0xab; 16]);
            });
            message(2, serial, None, "a{sv}", &properties)
        } else {
            let name = "org.freedesktop.DBus.Error.UnknownObject";
            message(3, serial, Some(name), "s", &text("no such machine"))
        };
        // A signal is between.
        stream
            .write_all(&message(4, 0, None, "s", &text("x")))
            .unwrap();
        stream.write_all(&answer).unwrap();
    }
}

#[test]
fn an_older_machined_is_asked_over_the_message_bus() {
    let server = Server::new(bus);
    let machines = answer(&Machined::at(server.nowhere(), server.path()));
    let [web] = machines.as_slice() else {
        panic!("{machines:?}")
    };
    assert_eq!((web.name.as_str(), web.pid), ("web", Some(4711)));
    assert_eq!((web.state, &web.reach), (State::Running, &vec![kernel(77)]));
    let uuid = web.uuid.as_deref();
    assert_eq!(uuid, Some("abababab-abab-abab-abab-abababababab"));
}
