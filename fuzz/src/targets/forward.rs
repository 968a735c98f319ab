//! A forwarded connection's records from a hostile peer, and the messages before them, in any pieces.

use hvsock_services::fuzzing;

use crate::target::Seed;

/// Decodes the rest. The first byte chooses the pieces; 0 decodes messages.
pub(crate) fn run(bytes: &[u8]) {
    match bytes.split_first() {
        Some((0, bytes)) => fuzzing::messages(bytes),
        Some((piece, bytes)) => fuzzing::records(usize::from(*piece), bytes),
        None => {}
    }
}

/// Records of each kind, and a message.
pub(crate) fn seeds() -> Vec<Seed> {
    let record = |bytes: &[u8]| [&(bytes.len() as u32).to_le_bytes()[..], bytes].concat();
    let reset = [&[255; 4][..], &record(b"refused")].concat();
    let all = [record(b"data"), record(b"more"), record(b""), reset.clone()].concat();
    let seed = |piece: u8, bytes: &[u8]| [&[piece], bytes].concat();
    // Connect to TCP port 80 of localhost.
    let message = record(b"\x0a\x0f\x0a\x0d\x0a\x09localhost\x10\x50");
    super::named([
        ("data", seed(255, &record(b"data"))),
        ("end", seed(255, &record(b""))),
        ("reset", seed(255, &reset)),
        ("all", seed(3, &all)),
        ("message", seed(0, &message)),
    ])
}
