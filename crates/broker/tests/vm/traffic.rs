//! Data for connections between the host and a guest, and its check.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::LazyLock;

use hvsock::HvStream;
use hvsock_testkit::guest::GuestStream;

/// A pattern with a prime period, so that lost or repeated bytes are detected.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let byte = |at: u64| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    (0..65_521).map(byte).collect()
});

/// The segments of the repeated pattern for `len` bytes from offset `at`.
fn segments(at: u64, len: usize) -> impl Iterator<Item = &'static [u8]> {
    let first = (at % PATTERN.len() as u64) as usize;
    let mut left = len;
    std::iter::successors(Some(&PATTERN[first..]), |_| Some(&PATTERN[..])).map_while(move |all| {
        let part = &all[..all.len().min(left)];
        left -= part.len();
        (!part.is_empty()).then_some(part)
    })
}

/// Writes `bytes` bytes of the pattern in chunks of `size`.
pub fn write_all(mut to: impl Write, bytes: u64, size: usize) -> io::Result<()> {
    let mut at = 0;
    while at < bytes {
        let len = size.min(usize::try_from(bytes - at).unwrap_or(size));
        let chunk: Vec<&[u8]> = segments(at, len).collect();
        to.write_all(&chunk.concat())?;
        at += len as u64;
    }
    Ok(())
}

/// Reads until end of file and checks the bytes against the pattern. Returns their count.
pub fn read_all(mut from: impl Read, size: usize) -> io::Result<u64> {
    let mut buffer = vec![0; size];
    let mut at = 0;
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok(at);
        }
        let mut rest = &buffer[..read];
        for wanted in segments(at, read) {
            let (now, later) = rest.split_at(wanted.len());
            assert!(now == wanted, "wrong bytes after offset {at}");
            rest = later;
        }
        at += read as u64;
    }
}

/// Sends `bytes` bytes each way at once, then half-closes each way.
#[track_caller]
pub fn exchange(inside: &GuestStream, outside: &HvStream, bytes: u64, size: usize) {
    std::thread::scope(|scope| {
        let out = scope.spawn(move || {
            write_all(inside, bytes, size).expect("the guest writes");
            inside.shutdown(Shutdown::Write).expect("it ends");
        });
        let back = scope.spawn(move || {
            write_all(outside, bytes, size).expect("the host writes");
            outside.shutdown(Shutdown::Write).expect("it ends");
        });
        let at_host = scope.spawn(move || read_all(outside, size.max(4096)));
        let at_guest = scope.spawn(move || read_all(inside, size.max(4096)));
        assert_eq!(
            at_host.join().expect("no panic").expect("the host reads"),
            bytes
        );
        assert_eq!(
            at_guest.join().expect("no panic").expect("the guest reads"),
            bytes
        );
        out.join().expect("no panic");
        back.join().expect("no panic");
    });
}

/// Sends a few bytes each way.
#[track_caller]
pub fn ping(inside: &GuestStream, outside: &HvStream) {
    let (mut inside, mut outside) = (inside, outside);
    let mut buffer = [0; 4];
    inside.write_all(b"ping").expect("the guest writes");
    outside.read_exact(&mut buffer).expect("the host reads");
    assert_eq!(&buffer, b"ping");
    outside.write_all(b"pong").expect("the host writes");
    inside.read_exact(&mut buffer).expect("the guest reads");
    assert_eq!(&buffer, b"pong");
}
