//! Steps shared by the cases. A step that fails panics with what happened instead.

use std::io;
use std::time::Duration;

use super::pattern;
use super::stream::{LONGEST_WAIT, MOST_BUFFERED, Ready, Stream};
use super::transport::Transport;

/// A new connection whose reads and writes time out after [`LONGEST_WAIT`].
pub fn fresh<T: Transport>(transport: &T) -> (T::Stream, T::Stream) {
    let (connector, acceptor) = transport.pair().expect("a new connection");
    (with_timeouts(connector), with_timeouts(acceptor))
}

/// Sets the timeouts of one end to [`LONGEST_WAIT`].
pub fn with_timeouts<S: Stream>(stream: S) -> S {
    stream
        .set_read_timeout(LONGEST_WAIT)
        .expect("a read timeout");
    stream
        .set_write_timeout(LONGEST_WAIT)
        .expect("a write timeout");
    stream
}

/// Runs `body` twice on new connections: once from the end that connected, once from the other.
pub fn either_end<T: Transport>(transport: &T, body: impl Fn(T::Stream, T::Stream)) {
    let (connector, acceptor) = fresh(transport);
    with_context("as the end that connected", || body(connector, acceptor));
    let (connector, acceptor) = fresh(transport);
    with_context("as the end that accepted", || body(acceptor, connector));
}

/// Runs `body` and prints `context` if it panics.
fn with_context(context: &'static str, body: impl FnOnce()) {
    struct PrintOnPanic(&'static str);
    impl Drop for PrintOnPanic {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("{}", self.0);
            }
        }
    }
    let _print = PrintOnPanic(context);
    body();
}

/// Writes all bytes.
pub fn send<S: Stream>(stream: &S, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(0) => panic!("a write accepted 0 bytes, with {} bytes left", bytes.len()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("a write failed with {} bytes left: {error}", bytes.len()),
        }
    }
}

/// Writes `total` bytes of the pattern in chunks of `chunk` bytes.
pub fn send_pattern<S: Stream>(stream: &S, seed: u64, total: usize, chunk: usize) {
    let mut sent = 0;
    while sent < total {
        let count = chunk.min(total - sent);
        send(stream, &pattern::bytes(seed, sent as u64, count));
        sent += count;
    }
}

/// Reads exactly `count` bytes.
pub fn receive<S: Stream>(stream: &S, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    let mut filled = 0;
    while filled < count {
        match stream.read(&mut bytes[filled..]) {
            Ok(0) => panic!("end of file after {filled} of {count} bytes"),
            Ok(more) => filled += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("a read failed after {filled} of {count} bytes: {error}"),
        }
    }
    bytes
}

/// Reads and checks the first `total` bytes of the pattern, at most `chunk` bytes at a time.
pub fn receive_pattern<S: Stream>(stream: &S, seed: u64, total: usize, chunk: usize) {
    let mut buffer = vec![0; chunk];
    let mut received = 0;
    while received < total {
        let most = chunk.min(total - received);
        match stream.read(&mut buffer[..most]) {
            Ok(0) => panic!("end of file after {received} of {total} bytes"),
            Ok(count) => {
                pattern::check(seed, received as u64, &buffer[..count]);
                received += count;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("a read failed after {received} of {total} bytes: {error}"),
        }
    }
}

/// Asserts end of file, twice: it must persist.
pub fn expect_end<S: Stream>(stream: &S) {
    let mut buffer = [0; 64];
    for _ in 0..2 {
        match stream.read(&mut buffer) {
            Ok(0) => {}
            Ok(count) => panic!("{count} bytes instead of end of file"),
            Err(error) => panic!("an error instead of end of file: {error}"),
        }
    }
}

/// How a stream ended for its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// By end of file.
    EndOfFile,
    /// By this error.
    Error(io::ErrorKind),
}

/// Reads and checks the pattern until end of file or an error. The first `already` bytes were read
/// before. Returns the count of all bytes received, and how the stream ended.
pub fn read_to_end<S: Stream>(stream: &S, seed: u64, already: usize) -> (usize, StreamEnd) {
    let mut buffer = vec![0; 65_536];
    let mut received = already;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (received, StreamEnd::EndOfFile),
            Ok(count) => {
                pattern::check(seed, received as u64, &buffer[..count]);
                received += count;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (received, StreamEnd::Error(error.kind())),
        }
    }
}

/// Writes the pattern until a write fails, which must report a dead connection. Panics if `most` bytes
/// are accepted.
pub fn write_until_error<S: Stream>(stream: &S, seed: u64, most: usize) {
    let mut sent = 0;
    while sent < most {
        match stream.write(&pattern::bytes(seed, sent as u64, 65_536)) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let gone = is_gone(error.kind());
                assert!(
                    gone,
                    "a write failed after {sent} bytes, but not because the peer is gone: {error}"
                );
                return;
            }
        }
    }
    panic!("{sent} bytes were accepted for a peer that is gone");
}

/// Whether an error reports a dead connection.
pub fn is_gone(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
    )
}

/// Whether an error is a timeout.
pub fn is_timeout(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

/// Writes the pattern, nonblocking, until all buffers are full. Returns the count of accepted bytes.
///
/// The buffers are full once the stream stays unwritable for 300 ms.
pub fn fill<S: Stream>(stream: &S, seed: u64) -> usize {
    stream.set_nonblocking(true).expect("nonblocking");
    let mut sent = 0;
    loop {
        assert!(
            sent < MOST_BUFFERED,
            "{sent} bytes were accepted and none was read"
        );
        match stream.write(&pattern::bytes(seed, sent as u64, 8192)) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // A relay may still move bytes and so free space.
                let settle = Duration::from_millis(300);
                if stream.wait(Ready::WRITE, settle).expect("a wait") == Ready::NONE {
                    return sent;
                }
            }
            Err(error) => panic!("a write failed after {sent} bytes: {error}"),
        }
    }
}
