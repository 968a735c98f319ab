//! Incus.

use std::io::{BufRead, BufReader, Write};

use hvsock_discover::{Incus, State, Unavailable};
use serde_json::json;

use super::server::Server;
use super::{answer, kernel};

/// A daemon that answers each request with this.
pub fn daemon(answer: impl Into<Vec<u8>>) -> Server {
    let answer = answer.into();
    Server::new(move |stream| {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        while lines
            .next()
            .is_some_and(|line| !line.unwrap_or_default().is_empty())
        {}
        let _ = (&stream).write_all(&answer);
    })
}

#[test]
fn virtual_machines_of_all_projects_are_listed_with_their_states_and_containers_are_not() {
    let vm = |name: &str, project: &str, status: &str, cid: &str| {
        json!({
            "name": name, "project": project, "type": "virtual-machine", "status": status,
            "config": { "volatile.vsock_id": cid, "volatile.uuid": "u" },
        })
    };
    let document = json!({ "metadata": [
        vm("web", "default", "Running", "77"),
        vm("db", "shop", "Frozen", "78"),
        vm("old", "default", "Stopped", "79"),
        vm("odd", "default", "Error", "x"),
        { "name": "box", "project": "default", "type": "container", "status": "Running" },
    ] });
    let server = daemon(format!(
        "HTTP/1.0 200 OK\r\nContent-Type: x\r\n\r\n{document}"
    ));
    let machines = answer(&Incus::at(vec![server.nowhere(), server.path()]));
    let seen: Vec<_> = machines
        .iter()
        .map(|one| (one.name.as_str(), one.state, one.reach.clone()))
        .collect();
    assert_eq!(
        seen,
        [
            ("web", State::Running, vec![kernel(77)]),
            ("shop/db", State::Paused, vec![kernel(78)]),
            ("old", State::Off, vec![kernel(79)]),
            ("odd", State::Unknown, vec![]),
        ]
    );
}

#[test]
fn a_daemon_that_refuses_is_told_apart_from_one_that_forbids_and_one_that_is_not_there() {
    let ask = |server: &Server| {
        let incus = Incus::at(vec![server.path()]);
        super::list(&incus, std::time::Duration::from_secs(10)).unwrap_err()
    };
    let forbids = daemon("HTTP/1.0 403 Forbidden\r\n\r\n{\"error\": \"no\"}");
    assert!(matches!(ask(&forbids), Unavailable::Forbidden { .. }));
    let body = r#"{"error": "\u001b[31m"}"#;
    let head = format!("HTTP/1.1 500 No\r\nContent-Length: {}\r\n\r\n", body.len());
    let refuses = ask(&daemon(head + body));
    assert!(
        refuses.to_string().ends_with("refused: \\u{1b}[31m"),
        "{refuses}"
    );
    let absent = super::list(
        &Incus::at(vec![forbids.nowhere()]),
        std::time::Duration::from_secs(10),
    );
    assert!(absent.unwrap_err().is_absent());
}
