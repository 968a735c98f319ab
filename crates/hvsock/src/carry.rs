//! Moving bytes from one place to another until one of them has had enough.

use std::io::{self, Read, Write};

/// Bytes moved at once.
const PIECE: usize = 64 * 1024;

/// Why bytes go no further.
pub(crate) enum Stopped {
    /// The source has ended them.
    End,
    /// The source failed.
    Source,
    /// The sink takes no more.
    Sink,
}

pub(crate) fn carry(mut from: impl Read, mut to: impl Write) -> Stopped {
    let mut buffer = vec![0; PIECE];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Stopped::End,
            Ok(count) => {
                if to.write_all(&buffer[..count]).is_err() {
                    return Stopped::Sink;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Stopped::Source,
        }
    }
}
