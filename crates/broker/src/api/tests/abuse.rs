//! Slow, greedy and malformed clients of the control API. Covers malformed requests, size limits,
//! timeouts, connection limits and shutdown. Each client receives a response or the end of its
//! connection, and other clients are served meanwhile.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use axum::http::Method;
use proptest::prelude::*;

use super::{TIMEOUT, World};
use crate::api::admission::ConnectionLimits;
use crate::api::limits::{Limits, Shared};

const SHORT: Duration = Duration::from_millis(200);

fn served(world: &World) {
    world.client().status().unwrap();
}

#[test]
fn a_malformed_request_is_a_bad_request_and_others_are_served() {
    let world = World::new();
    for request in [
        &b"\0\x01\x02\x03\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"GET /v1/status HTTP/9.9\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST /v1/services HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/services HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/services HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\
          content-length: 4\r\n\r\n{}",
    ] {
        let response = world.raw(request);
        let shown = String::from_utf8_lossy(request);
        assert!(
            response.is_empty() || response.starts_with("HTTP/1.1 400"),
            "{shown:?}: {response}"
        );
        served(&world);
    }
    for (path, body, want) in [
        ("/v1/services", "", 400),
        ("/v1/services", "[]", 400),
        ("/v1/services", "\u{0}", 400),
        ("/v1/services", r#"{"name": "x", "nam": 1}"#, 400),
        ("/v1/services", r#"{"name": ""}"#, 400),
        ("/v1/services", r#"{"name": "x", "id": "not a guid"}"#, 400),
        ("/v1/services/%ff", "", 405),
        ("/v1/registry?format=xml", "", 400),
    ] {
        let (status, response) = world.ask(Method::POST, path, body);
        assert_eq!(status, want, "{path} {body}: {response}");
        assert!(response["error"].is_string(), "{path} {body}: {response}");
    }
    assert_eq!(world.ask(Method::GET, "/v1/services/%ff", "").0, 400);
    assert_eq!(
        world.ask(Method::GET, "/v1/partitions/a%2fb%2fc", "").0,
        400
    );
    let deep = "[".repeat(60_000);
    assert_eq!(world.ask(Method::POST, "/v1/services", &deep).0, 400);
}

#[test]
fn a_request_that_is_too_large_is_refused_before_it_is_read() {
    let world = World::new();
    let long = format!(
        "GET /v1/status HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n",
        "y".repeat(70_000)
    );
    let response = world.raw(long.as_bytes());
    assert!(response.starts_with("HTTP/1.1 431"), "{response}");
    let many: String = (0..500).map(|number| format!("x{number}: y\r\n")).collect();
    let response = world.raw(format!("GET /v1/status HTTP/1.1\r\n{many}\r\n").as_bytes());
    assert!(response.starts_with("HTTP/1.1 431"), "{response}");
    let large = format!(r#"{{"name": "{}"}}"#, "x".repeat(70_000));
    assert_eq!(world.ask(Method::POST, "/v1/services", &large).0, 413);
    let mut stream = world.connect();
    stream
        .write_all(b"POST /v1/services HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n")
        .unwrap();
    let mut response = [0; 12];
    stream.read_exact(&mut response).unwrap();
    assert_eq!(&response, b"HTTP/1.1 413");
    served(&world);
}

#[test]
fn a_client_that_sends_too_slowly_is_disconnected() {
    let world = World::with_limits(Limits {
        head: SHORT,
        request: SHORT,
        ..Limits::default()
    });
    for start in [
        &b""[..],
        b"GET /v1/st",
        b"GET /v1/status HTTP/1.1\r\nhost: x\r\n",
    ] {
        let mut stream = world.connect();
        stream.write_all(start).unwrap();
        let began = Instant::now();
        let _ = stream.read_to_end(&mut Vec::new());
        assert!(
            began.elapsed() < TIMEOUT,
            "{}",
            String::from_utf8_lossy(start)
        );
    }
    // A byte now and then does not extend the timeout.
    let mut stream = world.connect();
    let began = Instant::now();
    while stream.write_all(b"G").is_ok() {
        assert!(began.elapsed() < TIMEOUT);
        std::thread::sleep(SHORT / 8);
    }
    // A body that never arrives times out.
    let body = b"POST /v1/services HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
        content-length: 10\r\n\r\n{";
    let response = world.raw(body);
    assert!(response.starts_with("HTTP/1.1 408"), "{response}");
    // A kept-alive connection without a next request is closed.
    let mut stream = world.connect();
    stream
        .write_all(b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n")
        .unwrap();
    let mut response = Vec::new();
    stream.read_to_end(&mut response).unwrap();
    assert!(response.starts_with(b"HTTP/1.1 200"));
    served(&world);
}

#[test]
fn a_client_that_does_not_read_is_disconnected() {
    let world = World::with_limits(Limits {
        stall: SHORT,
        ..Limits::default()
    });
    let mut stream = world.connect();
    stream.set_write_timeout(Some(SHORT)).unwrap();
    let began = Instant::now();
    // Send requests and read no response, until the buffers of both directions are full.
    let error = loop {
        match stream.write(b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n") {
            Ok(_) => assert!(began.elapsed() < TIMEOUT),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                assert!(began.elapsed() < TIMEOUT);
            }
            Err(error) => break error,
        }
    };
    assert!(
        matches!(
            error.kind(),
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
        ),
        "{error}"
    );
    served(&world);
}

#[test]
fn connections_beyond_the_limit_are_rejected_until_others_close() {
    let world = World::with_limits(Limits {
        connections: ConnectionLimits {
            privileged: 3,
            others: 3,
            per_user: 3,
        },
        ..Limits::default()
    });
    let mut held: Vec<_> = (0..3).map(|_| world.connect()).collect();
    // Connections are accepted in order: the last one's response shows that all have permits.
    let last = held.last_mut().unwrap();
    last.write_all(b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n")
        .unwrap();
    last.read_exact(&mut [0; 12]).unwrap();
    let response = world.raw(b"");
    assert!(response.starts_with("HTTP/1.1 503"), "{response}");
    assert!(
        response.contains("too many control connections"),
        "{response}"
    );
    drop(held);
    let began = Instant::now();
    while world.client().status().is_err() {
        assert!(began.elapsed() < TIMEOUT);
        std::thread::sleep(SHORT / 8);
    }
}

#[test]
fn followers_beyond_the_limit_are_rejected_until_others_disconnect() {
    let world = World::with_limits(Limits {
        followers: Shared {
            each: 2,
            per_user: 2,
        },
        ..Limits::default()
    });
    let clients: Vec<_> = (0..3).map(|_| world.client()).collect();
    let held: Vec<_> = clients[..2].iter().map(|c| c.events().unwrap()).collect();
    assert!(clients[2].events().is_err());
    drop(held);
    drop(clients);
    let began = Instant::now();
    while world.client().events().is_err() {
        assert!(began.elapsed() < TIMEOUT);
        std::thread::sleep(SHORT / 8);
    }
}

#[test]
fn a_server_stops_while_clients_are_connected() {
    // Were the server to wait for its clients, it would wait for as long as these limits.
    const NEVER: Duration = Duration::from_secs(24 * 3600);
    let world = World::with_limits(Limits {
        head: NEVER,
        request: NEVER,
        stall: NEVER,
        ..Limits::default()
    });
    let client = world.client();
    let _events = client.events().unwrap();
    let mut half = world.connect();
    half.write_all(b"GET /v1/sta").unwrap();
    let World { server, .. } = world;
    let (stopped, stops) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        drop(server);
        let _ = stopped.send(());
    });
    assert_eq!(stops.recv_timeout(TIMEOUT), Ok(()), "it waits for a client");
    let ended = half.read(&mut [0; 1]);
    assert!(
        matches!(&ended, Ok(0))
            || ended
                .as_ref()
                .is_err_and(|e| e.kind() != ErrorKind::WouldBlock),
        "{ended:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: hvsock_testkit::cases(64), ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_receive_a_response_or_the_end(
        requests in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..4),
        paths in prop::collection::vec("/v1/[a-z]{0,12}(/[ -~]{0,20})?(\\?[ -~]{0,30})?", 1..4),
        bodies in prop::collection::vec(".{0,100}", 1..4),
    ) {
        thread_local! {
            static WORLD: World = World::with_limits(Limits { head: SHORT, ..Limits::default() });
        }
        WORLD.with(|world| {
            for request in &requests {
                let mut stream = world.connect();
                let _ = stream.write_all(request);
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = stream.read_to_end(&mut Vec::new());
            }
            for (path, body) in paths.iter().zip(&bodies) {
                for method in ["GET", "POST", "PATCH", "DELETE"] {
                    if path.starts_with("/v1/events") && method == "GET" {
                        continue;
                    }
                    let length = body.len();
                    let request = format!(
                        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                         content-length: {length}\r\n\r\n{body}"
                    );
                    let response = world.raw(request.as_bytes());
                    assert!(!response.starts_with("HTTP/1.1 5"), "{request}\n{response}");
                }
            }
            served(world);
        });
    }
}
