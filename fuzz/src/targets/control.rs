//! Requests for the control API, of an operator and of another user.

use std::sync::LazyLock;

use hvsock_broker::fuzzing::Control;
use hvsock_testkit::world::World;

use crate::target::Seed;

/// The uid of a user who is neither root nor the broker's.
const OTHER_USER: u32 = 65_534;

/// A broker, which all runs share. What it keeps is bounded by its limits.
struct Fixture {
    control: Control,
    _world: World,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let world = World::new();
    world.container("web", None);
    world.register(7);
    let control = Control::new(world.broker.handle()).expect("a runtime");
    Fixture {
        control,
        _world: world,
    }
});

/// Sends requests. The first byte chooses the user.
pub(crate) fn run(bytes: &[u8]) {
    let Some((user, bytes)) = bytes.split_first() else {
        return;
    };
    let uid = match user % 4 {
        0 => 0,
        _ => OTHER_USER,
    };
    let answer = FIXTURE.control.answer(uid, bytes);
    // Whatever is answered is HTTP, and no failure of the broker itself.
    if !answer.is_empty() {
        assert!(answer.starts_with(b"HTTP/1."), "{answer:?}");
        assert!(
            !answer.starts_with(b"HTTP/1.1 500"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
}

/// A request for each kind of path.
pub(crate) fn seeds() -> Vec<Seed> {
    let request = |user: u8, method: &str, path: &str, body: &str| {
        let text = format!(
            "{method} /v1/{path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        [&[user], text.as_bytes()].concat()
    };
    super::named([
        ("status", request(1, "GET", "status", "")),
        ("services", request(1, "GET", "services?all=true", "")),
        ("service", request(1, "GET", "services/7", "")),
        ("partitions", request(1, "GET", "partitions", "")),
        ("partition", request(1, "GET", "partitions/web", "")),
        ("connections", request(1, "GET", "connections", "")),
        ("metrics", request(1, "GET", "metrics", "")),
        (
            "explain",
            request(1, "GET", "explain/connect?from=web&to=parent&service=7", ""),
        ),
        (
            "register",
            request(0, "POST", "services", r#"{"name":"Demo","id":"00000009-facb-11e6-bd58-64006a7986d3","connect":{"partitions":["*"]}}"#),
        ),
        ("change", request(0, "PATCH", "services/7", r#"{"enabled":true,"vm":"web"}"#)),
        ("remove", request(0, "DELETE", "services/Demo", "")),
        ("container", request(0, "POST", "containers", r#"{"name":"db","groups":["a"]}"#)),
        ("vm", request(0, "POST", "vms", r#"{"name":"vm","cid":42}"#)),
        ("import", request(0, "POST", "registry/import", "REGEDIT4\r\n")),
        ("forbidden", request(1, "POST", "services", "{}")),
        (
            "chunked",
            b"\x01POST /v1/services HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n".to_vec(),
        ),
        ("two", b"\x01GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\nGET /v1/none HTTP/1.0\r\n\r\n".to_vec()),
    ])
}
