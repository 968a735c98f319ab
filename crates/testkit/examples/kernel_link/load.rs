//! Bytes with a pattern, so that a lost, repeated or changed one is found, and their rate.

use std::io::{self, Read, Write};
use std::time::Instant;

/// Bytes of one write.
const CHUNK: usize = 64 << 10;

/// The byte at this offset of every load. The period is prime, so that no buffer size hides a shift.
fn byte(offset: u64) -> u8 {
    (offset % 251) as u8
}

fn chunk(offset: u64, len: usize) -> Vec<u8> {
    (offset..offset + len as u64).map(byte).collect()
}

/// Writes a load of `total` bytes.
pub fn write(mut to: impl Write, total: u64) -> io::Result<()> {
    // Chunks repeat after a period, and are made once.
    let pattern = chunk(0, CHUNK + 251);
    let mut offset = 0;
    while offset < total {
        let begin = (offset % 251) as usize;
        let len = (total - offset).min(CHUNK as u64) as usize;
        to.write_all(&pattern[begin..begin + len])?;
        offset += len as u64;
    }
    Ok(())
}

/// Reads a load to its end and checks every byte. Returns its length.
pub fn read(mut from: impl Read) -> io::Result<u64> {
    let pattern = chunk(0, CHUNK + 251);
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    loop {
        let len = from.read(&mut buffer)?;
        if len == 0 {
            return Ok(offset);
        }
        let begin = (offset % 251) as usize;
        if buffer[..len] != pattern[begin..begin + len] {
            let text = format!("a wrong byte within {len} bytes at {offset}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        offset += len as u64;
    }
}

/// Reads to the end without a check. Returns the count of bytes.
pub fn count(mut from: impl Read) -> io::Result<u64> {
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(total),
            len => total += len as u64,
        }
    }
}

/// The rate of this many bytes since `start`, for people.
pub fn rate(bytes: u64, start: Instant) -> String {
    let seconds = start.elapsed().as_secs_f64().max(1e-6);
    format!("{bytes} bytes at {:.1} MB/s", bytes as f64 / seconds / 1e6)
}
