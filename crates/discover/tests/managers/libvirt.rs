//! libvirt, by a daemon that speaks its protocol. The bytes were compared with those of libvirt 9.0.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use hvsock_discover::{Daemon, Libvirt, Reach, State, Unavailable};

use super::server::Server;
use super::{answer, kernel, list};

const XML: &str = "<domain type='kvm' id='1'><devices><vsock model='virtio'>\
    <cid auto='yes' address='77'/></vsock></devices>\
    <qemu:commandline xmlns:qemu='x'><qemu:arg value='-chardev'/>\
    <qemu:arg value='socket,id=a,path=/run/a&amp;b.sock'/><qemu:arg value='-device'/>\
    <qemu:arg value='vhost-user-vsock-pci,chardev=a'/></qemu:commandline></domain>";

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = words(&[u32::try_from(text.len()).unwrap()]);
    bytes.extend(text.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn domain(name: &str, number: u8, id: u32) -> Vec<u8> {
    [string(name), vec![number; 16], words(&[id])].concat()
}

fn fault(code: u32, message: &str) -> Vec<u8> {
    [
        words(&[code, 10, 1]),
        string(message),
        words(&[2, 0, 0, 0, 0, 0, 0, 0]),
    ]
    .concat()
}

/// Serves a client: `Ok` is a result of a procedure, `Err` an error.
fn serve(mut stream: UnixStream, call: impl Fn(u32, &[u8]) -> Result<Vec<u8>, Vec<u8>>) {
    let mut length = [0; 4];
    while stream.read_exact(&mut length).is_ok() {
        let mut message = vec![0; u32::from_be_bytes(length) as usize - 4];
        stream.read_exact(&mut message).unwrap();
        let word = |at: usize| u32::from_be_bytes(message[at * 4..][..4].try_into().unwrap());
        assert_eq!((word(0), word(1), word(3)), (0x2000_8086, 1, 0));
        let (status, body) = match call(word(2), &message[24..]) {
            Ok(body) => (0, body),
            Err(body) => (1, body),
        };
        let mut send = |kind: u32, serial: u32, body: &[u8]| {
            let length = u32::try_from(28 + body.len()).unwrap();
            let head = [length, word(0), word(1), word(2), kind, serial, status];
            stream.write_all(&[&words(&head), body].concat())
        };
        // An event is between.
        send(2, 0, b"eventful").unwrap();
        send(1, word(4), &body).unwrap();
    }
}

fn daemon(server: &Server) -> Libvirt {
    Libvirt::at(vec![Daemon {
        socket: server.path(),
        uri: "qemu:///system".to_owned(),
    }])
}

#[test]
fn domains_are_listed_with_their_states_context_ids_and_our_device() {
    let server = Server::new(|stream| {
        serve(stream, |procedure, arguments| match procedure {
            66 => Ok(words(&[1, 0])),
            1 => {
                let want = [words(&[1]), string("qemu:///system"), words(&[1])].concat();
                assert_eq!(arguments, want);
                Ok(Vec::new())
            }
            273 => {
                let domains = [
                    domain("web", 1, 1),
                    domain("idle", 2, 2),
                    domain("off", 3, u32::MAX),
                    domain("gone", 4, 3),
                ];
                Ok([words(&[4]), domains.concat(), words(&[4])].concat())
            }
            212 => match arguments[3] {
                3 if arguments.starts_with(&string("web")) => Ok(words(&[1, 1])),
                3 => Ok(words(&[5, 0])),
                _ if arguments.starts_with(&string("idle")) => Ok(words(&[3, 1])),
                _ => Err(fault(42, "no domain")),
            },
            14 if arguments.starts_with(&string("web")) => Ok(string(XML)),
            14 => Ok(string("<domain/>")),
            other => panic!("procedure {other}"),
        });
    });
    let machines = answer(&daemon(&server));
    let seen: Vec<_> = machines
        .iter()
        .map(|one| (one.name.as_str(), one.state))
        .collect();
    assert_eq!(
        seen,
        [
            ("web", State::Running),
            ("idle", State::Paused),
            ("off", State::Off)
        ]
    );
    let socket = "/run/a&b.sock".into();
    assert_eq!(machines[0].reach, [kernel(77), Reach::VhostUser { socket }]);
    let uuid = machines[0].uuid.as_deref();
    assert_eq!(uuid, Some("01010101-0101-0101-0101-010101010101"));
}

#[test]
fn a_daemon_that_asks_for_a_password_forbids() {
    let server = Server::new(|stream| serve(stream, |_, _| Ok(words(&[1, 1]))));
    let error = list(&daemon(&server), Duration::from_secs(10)).unwrap_err();
    assert!(matches!(error, Unavailable::Forbidden { .. }), "{error}");
    let server = Server::new(|stream| serve(stream, |_, _| Err(fault(88, "access denied"))));
    let error = list(&daemon(&server), Duration::from_secs(10)).unwrap_err();
    assert!(matches!(error, Unavailable::Forbidden { .. }), "{error}");
    let server = Server::new(|stream| serve(stream, |_, _| Err(fault(1, "out of \u{7} luck"))));
    let error = list(&daemon(&server), Duration::from_secs(10)).unwrap_err();
    assert!(
        error.to_string().ends_with("refused: out of \\u{7} luck"),
        "{error}"
    );
}

#[test]
fn more_domains_than_anybody_has_are_an_invalid_answer() {
    let server = Server::new(|stream| {
        serve(stream, |procedure, _| match procedure {
            66 => Ok(words(&[1, 0])),
            273 => Ok(words(&[u32::MAX])),
            _ => Ok(Vec::new()),
        });
    });
    let error = list(&daemon(&server), Duration::from_secs(10)).unwrap_err();
    assert!(matches!(error, Unavailable::Invalid { .. }), "{error}");
}
