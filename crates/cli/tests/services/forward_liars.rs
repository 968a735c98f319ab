//! Guests that lie about forwarding: a command on the host ends with a clear error, and takes no broken
//! connection for a whole one.

use std::time::Duration;

use hvsock_services::catalog::FORWARD;
use hvsock_services::link::ServiceServer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::liars::lie;
use crate::util::{Done, World};

/// An answer that is ready, with no address.
const READY: &[u8] = &[2, 0, 0, 0, 0x0a, 0];

/// What the guest sends once it is asked, and whether it then keeps the connection.
fn says(world: &World, name: &str, pieces: &[&[u8]], stays: bool) {
    let all = pieces.concat();
    let handler = move |mut stream: hvsock::tokio::HvStream| {
        let all = all.clone();
        async move {
            // The question, of which nothing matters.
            let _ = stream.read(&mut [0; 512]).await;
            let _ = stream.write_all(&all).await;
            if stays {
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
        }
    };
    lie(world, name, ServiceServer::streams(&FORWARD, handler));
}

#[test]
fn a_guest_that_breaks_the_format_is_told_apart_from_one_that_ends() {
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
        ("cut", &[READY, data], "data", "the connection broke"),
        ("half", &[READY, &data[..6]], "da", "the connection broke"),
    ];
    for (name, pieces, printed, why) in cases {
        let breaks_off = matches!(name, "cut" | "half");
        says(&world, name, pieces, !breaks_off);
        let done = Done::of(&mut world.command(["nc", name, "tcp:80"]));
        assert_eq!(done.code, Some(1), "{name}: {done:?}");
        assert_eq!(done.stdout, printed, "{name}");
        assert!(done.stderr.contains(why), "{name}: {}", done.stderr);
    }
    // And one that keeps to it.
    says(&world, "honest", &[READY, data, end], true);
    let done = Done::of(&mut world.command(["nc", "honest", "tcp:80"]));
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (Some(0), "data"),
        "{done:?}"
    );
}
