//! Hostile guests and the forward service: a command on the host fails with a clear error, and reports a
//! truncated stream as a failure.

use std::time::Duration;

use hvsock_services::catalog::FORWARD;
use hvsock_services::link::ServiceServer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::hostile_guests::offer;
use crate::util::{Completed, World};

/// A reply that reports success, without an address.
const READY: &[u8] = &[2, 0, 0, 0, 0x0a, 0];

/// Offers the forward service in a new container. It sends these chunks after the request, and then closes
/// the connection or keeps it open.
fn offer_reply(world: &World, name: &str, chunks: &[&[u8]], stays_open: bool) {
    let all = chunks.concat();
    let handler = move |mut stream: hvsock::tokio::HvStream| {
        let all = all.clone();
        async move {
            // The content of the request does not matter.
            let _ = stream.read(&mut [0; 512]).await;
            let _ = stream.write_all(&all).await;
            if stays_open {
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
        }
    };
    offer(world, name, ServiceServer::streams(&FORWARD, handler));
}

#[test]
fn protocol_violations_and_truncated_streams_of_a_guest_are_distinguished() {
    let world = World::new();
    let too_long: &[u8] = &[1, 0, 1, 0];
    let data: &[u8] = &[4, 0, 0, 0, b'd', b'a', b't', b'a'];
    let end: &[u8] = &[0; 4];
    let cases: [(&str, &[&[u8]], &str, &str); 7] = [
        ("silent", &[], "", "did not answer"),
        ("noise", &[b"HTTP/1.1 400 Bad Request\r\n"], "", "too long"),
        ("nothing", &[&[0; 4]], "", "an empty answer"),
        ("long", &[READY, too_long], "", "record of 65537 bytes"),
        (
            "more",
            &[READY, data, end, data],
            "data",
            "a record after the half-close",
        ),
        ("closed", &[READY, data], "data", "the connection broke"),
        ("half", &[READY, &data[..6]], "da", "the connection broke"),
    ];
    for (name, chunks, printed, why) in cases {
        let is_truncated = matches!(name, "closed" | "half");
        offer_reply(&world, name, chunks, !is_truncated);
        let done = Completed::of(&mut world.command(["nc", name, "tcp:80"]));
        assert_eq!(done.code, Some(1), "{name}: {done:?}");
        assert_eq!(done.stdout, printed, "{name}");
        assert!(done.stderr.contains(why), "{name}: {}", done.stderr);
    }
    // A valid reply.
    offer_reply(&world, "honest", &[READY, data, end], true);
    let done = Completed::of(&mut world.command(["nc", "honest", "tcp:80"]));
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (Some(0), "data"),
        "{done:?}"
    );
}
