//! Frames of a container runtime for the NRI plugin, in any pieces.

use std::time::Duration;

use hvsock_nri::{Endpoint, Endpoints, Hook, Plugin, Wanted};
use prost::Message;

use crate::target::Seed;

/// Endpoints without a broker.
struct Scripted;

impl Endpoints for Scripted {
    fn prepare(&mut self, wanted: &Wanted, _: Duration) -> Result<Option<Endpoint>, String> {
        match wanted.groups.len() {
            0 => Ok(Some(Endpoint {
                folder: format!("/run/hvsock/containers/{}", wanted.name),
                create_runtime: vec![Hook {
                    path: "/usr/bin/hvsock".to_owned(),
                    args: vec!["hvsock".to_owned(), wanted.name.to_string()],
                }],
                poststop: Vec::new(),
            })),
            1 => Ok(None),
            _ => Err(format!("no broker for {}", wanted.name)),
        }
    }

    fn found(&mut self, _: Vec<Wanted>) {}

    fn removed(&mut self, _: &Wanted, _: Duration) {}
}

/// Gives a plugin the bytes. The first byte chooses the pieces.
pub(crate) fn run(bytes: &[u8]) {
    let Some((piece, bytes)) = bytes.split_first() else {
        return;
    };
    let mut plugin = Plugin::default();
    for piece in bytes.chunks(usize::from(*piece).max(1)) {
        if plugin.receive(piece, &mut Scripted).is_err() {
            return;
        }
    }
}

/// A message of ttRPC.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(string, tag = "1")]
    service: String,
    #[prost(string, tag = "2")]
    method: String,
    #[prost(bytes = "vec", tag = "3")]
    payload: Vec<u8>,
}

/// A field with a length: its number, and its bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    // These are all shorter than 16 KiB.
    let length = bytes.len();
    let length = [(length & 0x7f) as u8 | 0x80, (length >> 7) as u8];
    [&[number << 3 | 2], &length[..], bytes].concat()
}

/// A piece of the connection to the plugin, with one frame.
fn frame(connection: u8, stream: u8, kind: u8, data: &[u8]) -> Vec<u8> {
    let length = |count: usize| u32::try_from(count).unwrap_or_default().to_be_bytes();
    let frame = [&length(data.len())[..], &[0, 0, 0, stream, kind, 0], data].concat();
    [&[0, 0, 0, connection], &length(frame.len())[..], &frame].concat()
}

fn call(stream: u8, method: &str, payload: Vec<u8>) -> Vec<u8> {
    let request = Request {
        service: "nri.pkg.api.v1alpha1.Plugin".to_owned(),
        method: method.to_owned(),
        payload,
    };
    frame(1, stream, 1, &request.encode_to_vec())
}

/// The calls that containerd makes, alone and in one connection.
pub(crate) fn seeds() -> Vec<Seed> {
    let annotation = |key: &str, value: &str| {
        let entry = [field(1, key.as_bytes()), field(2, value.as_bytes())].concat();
        field(6, &entry)
    };
    let pod = [
        field(1, b"sandbox"),
        field(2, b"shop"),
        field(3, b"uid-1"),
        field(4, b"prod"),
        annotation("hvsock.dev/container.web", "{pod}-{container}-{id}"),
    ]
    .concat();
    let mount = [
        field(1, b"/run/hvsock"),
        field(2, b"bind"),
        field(3, b"/tmp"),
    ]
    .concat();
    let container = [
        field(1, b"0123456789abcdef"),
        field(2, b"sandbox"),
        field(3, b"web"),
        annotation("hvsock.dev/name", "web"),
        annotation("hvsock.dev/groups", "a, b"),
        field(9, &mount),
    ]
    .concat();
    let both = [field(1, &pod), field(2, &container)].concat();
    let event = [&[8, 11][..], &field(2, &pod), &field(3, &container)].concat();
    let configure = [
        field(2, b"containerd"),
        field(3, b"v2.1.0"),
        vec![40, 200, 1],
    ]
    .concat();
    let registered = frame(2, 1, 2, &[]);
    let calls = [
        ("registered", registered),
        ("configure", call(1, "Configure", configure)),
        ("synchronize", call(3, "Synchronize", both.clone())),
        ("create", call(5, "CreateContainer", both.clone())),
        ("remove", call(7, "RemoveContainer", both)),
        ("event", call(9, "StateChange", event)),
        ("unknown", call(11, "Unknown", Vec::new())),
    ];
    let all: Vec<u8> = calls.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    let calls = calls.into_iter().chain([("all", all)]);
    calls
        .map(|(name, bytes)| (name.to_owned(), [&[255], bytes.as_slice()].concat()))
        .collect()
}
