//! Messages of the services between a host and a guest's agent, and the files that the agent reads.

use hvsock_services::fuzzing;
use hvsock_services::wire::forward;
use hvsock_services::wire::session::{self, input};
use hvsock_services::wire::{freeze, heartbeat, kvp};
use prost::Message;

use crate::target::Seed;

/// Decodes the rest as what the first byte chooses.
pub(crate) fn run(bytes: &[u8]) {
    if let Some((kind, bytes)) = bytes.split_first() {
        fuzzing::message(*kind, bytes);
    }
}

/// A message of each kind, and files.
pub(crate) fn seeds() -> Vec<Seed> {
    let seed = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    let start = session::Start {
        argv: vec![b"sh".as_slice().into(), b"-c".as_slice().into()],
        env: vec![session::Variable {
            name: b"A".as_slice().into(),
            value: b"b".as_slice().into(),
        }],
        dir: b"/".as_slice().into(),
        user: "root".to_owned(),
        terminal: Some(session::Terminal {
            term: "xterm".to_owned(),
            size: Some(session::Size { rows: 24, cols: 80 }),
        }),
        stdin: true,
        requester: None,
    };
    let start = session::Input {
        what: Some(input::What::Start(start)),
    };
    let mut pool = vec![0; 512 + 2048];
    pool[..3].copy_from_slice(b"key");
    pool[512..515].copy_from_slice(b"val");
    let address = forward::Address {
        kind: Some(forward::address::Kind::Tcp(forward::Tcp {
            host: "localhost".to_owned(),
            port: 80,
        })),
    };
    let pair = kvp::SetRequest::default();
    super::named([
        ("start", seed(0, &start.encode_to_vec())),
        ("pool", seed(1, &pool)),
        (
            "mounts",
            seed(
                2,
                b"28 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n29 28 254:1 / /a\\040b rw - xfs /dev/vdb rw\n",
            ),
        ),
        ("os-release", seed(3, b"NAME=\"Debian \\\"x\\\"\"\nPRETTY_NAME='a'\n")),
        ("address", seed(4, &address.encode_to_vec())),
        ("address-text", seed(4, b"tcp:[::1]:80")),
        ("address-unix", seed(4, b"unix:/run/a.sock")),
        ("beat", seed(5, &heartbeat::Beat::default().encode_to_vec())),
        ("set", seed(6, &pair.encode_to_vec())),
        ("freeze", seed(7, &freeze::FreezeRequest::default().encode_to_vec())),
    ])
}
