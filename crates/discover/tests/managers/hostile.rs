//! Servers that never answer, never end or answer nonsense, for every manager.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hvsock_discover::{Daemon, Incus, Libvirt, Machined, Manager, Unavailable};

use super::list;
use super::server::Server;

/// Each manager, with this server in its place.
fn managers(server: &Server) -> [Box<dyn Manager>; 4] {
    let daemon = Daemon {
        socket: server.path(),
        uri: "qemu:///system".to_owned(),
    };
    [
        Box::new(Incus::at(vec![server.path()])),
        Box::new(Libvirt::at(vec![daemon])),
        Box::new(Machined::at(server.path(), server.nowhere())),
        Box::new(Machined::at(server.nowhere(), server.path())),
    ]
}

#[test]
fn a_manager_that_never_answers_is_silent_after_the_time_limit() {
    let mut held = Vec::new();
    let server = Server::new(move |stream| held.push(stream));
    for manager in managers(&server) {
        let began = Instant::now();
        let error = list(&*manager, Duration::from_millis(200)).unwrap_err();
        assert!(matches!(error, Unavailable::Silent { .. }), "{error}");
        assert!(began.elapsed() < Duration::from_secs(5), "{manager:?}");
    }
}

#[test]
fn a_manager_that_sends_a_byte_at_a_time_is_silent_after_the_time_limit() {
    let server = Server::new(|stream| {
        std::thread::spawn(move || {
            while (&stream).write_all(b" ").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
    });
    for manager in managers(&server) {
        let began = Instant::now();
        let error = list(&*manager, Duration::from_millis(300)).unwrap_err();
        let ended = matches!(
            error,
            Unavailable::Silent { .. } | Unavailable::Invalid { .. }
        );
        assert!(ended, "{error}");
        assert!(began.elapsed() < Duration::from_secs(5), "{manager:?}");
    }
}

#[test]
fn an_answer_without_end_or_of_another_protocol_is_invalid() {
    let endless = |bytes: &'static [u8]| {
        Server::new(move |mut stream: UnixStream| {
            std::thread::spawn(move || while stream.write_all(bytes).is_ok() {});
        })
    };
    for bytes in [
        &[b'x'; 4096][..],
        &[0; 4096],
        &[255; 4096],
        b"HTTP/1.1 200 OK\r\nX: y\r\n",
        b"\n",
        b"{}\0",
        b"l\x02\0\x01\xff\xff\xff\x7f\x01\0\0\0\xff\xff\xff\x7f",
        b"OK 1\r\n",
    ] {
        let server = endless(bytes);
        for manager in managers(&server) {
            // A stream of endless empty messages may also end with the time.
            let result = list(&*manager, Duration::from_secs(2));
            if let Ok(machines) = &result {
                assert_eq!(machines, &[], "{manager:?}");
            }
        }
    }
    for bytes in [
        &b""[..],
        b"\0",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n[]",
        b"\0\0\0\x1c",
    ] {
        let server = Server::new(move |mut stream| {
            let _ = stream.write_all(bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            std::thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
        });
        for manager in managers(&server) {
            let error = list(&*manager, Duration::from_secs(10)).unwrap_err();
            assert!(
                matches!(error, Unavailable::Invalid { .. }),
                "{manager:?} {error}"
            );
        }
    }
}
