//! Copies bytes from a reader to a writer until one of them ends.

use std::io::{self, Read, Write};

/// Bytes per read.
const CHUNK: usize = 64 * 1024;

/// Why copying ended.
pub(crate) enum CopyEnd {
    /// The reader has reached its end.
    Finished,
    /// The reader failed.
    ReadError(io::Error),
    /// The writer failed.
    WriteError,
}

pub(crate) fn copy(mut from: impl Read, mut to: impl Write) -> CopyEnd {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return CopyEnd::Finished,
            Ok(count) => {
                if to.write_all(&buffer[..count]).is_err() {
                    return CopyEnd::WriteError;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return CopyEnd::ReadError(error),
        }
    }
}
