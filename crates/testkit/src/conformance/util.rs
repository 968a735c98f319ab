//! Steps that many cases are made of. Each fails by a panic that says what happened instead.

use std::io;
use std::time::Duration;

use super::{LONGEST_WAIT, MOST_BUFFERED, Ready, Stream, Transport, pattern};

/// Two ends on which no read or write takes longer than [`LONGEST_WAIT`].
pub fn fresh<T: Transport>(transport: &T) -> (T::Stream, T::Stream) {
    let (connector, acceptor) = transport.pair().expect("a new connection");
    (limited(connector), limited(acceptor))
}

/// Sets the time limits of an end.
pub fn limited<S: Stream>(stream: S) -> S {
    stream
        .set_read_timeout(LONGEST_WAIT)
        .expect("a time limit for reads");
    stream
        .set_write_timeout(LONGEST_WAIT)
        .expect("a time limit for writes");
    stream
}

/// Runs a case twice on new connections: as the end that connected, and as the one that accepted.
pub fn either_end<T: Transport>(transport: &T, body: impl Fn(T::Stream, T::Stream)) {
    let (connector, acceptor) = fresh(transport);
    said_on_failure("as the end that connected", || body(connector, acceptor));
    let (connector, acceptor) = fresh(transport);
    said_on_failure("as the end that accepted", || body(acceptor, connector));
}

/// Adds to the message of a panic in `body`, and says nothing if there is none.
fn said_on_failure(what: &'static str, body: impl FnOnce()) {
    struct Say(&'static str);
    impl Drop for Say {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("{}", self.0);
            }
        }
    }
    let _say = Say(what);
    body();
}

/// Writes all of it.
pub fn send<S: Stream>(stream: &S, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(0) => panic!("a write accepted nothing, with {} bytes to go", bytes.len()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("a write failed with {} bytes to go: {error}", bytes.len()),
        }
    }
}

/// Writes `total` bytes of the pattern, `piece` bytes at a time.
pub fn send_pattern<S: Stream>(stream: &S, seed: u64, total: usize, piece: usize) {
    let mut sent = 0;
    while sent < total {
        let count = piece.min(total - sent);
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
            Ok(0) => panic!("the end came after {filled} of {count} bytes"),
            Ok(more) => filled += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("a read failed after {filled} of {count} bytes: {error}"),
        }
    }
    bytes
}

/// Reads `total` bytes of the pattern, at most `piece` bytes at a time.
pub fn receive_pattern<S: Stream>(stream: &S, seed: u64, total: usize, piece: usize) {
    let mut buffer = vec![0; piece];
    let mut received = 0;
    while received < total {
        let most = piece.min(total - received);
        match stream.read(&mut buffer[..most]) {
            Ok(0) => panic!("the end came after {received} of {total} bytes"),
            Ok(count) => {
                pattern::check(seed, received as u64, &buffer[..count]);
                received += count;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("a read failed after {received} of {total} bytes: {error}"),
        }
    }
}

/// Demands a clean end now, and that it stays.
pub fn expect_end<S: Stream>(stream: &S) {
    let mut buffer = [0; 64];
    for _ in 0..2 {
        match stream.read(&mut buffer) {
            Ok(0) => {}
            Ok(count) => panic!("{count} bytes came where the end should be"),
            Err(error) => panic!("an error came where the end should be: {error}"),
        }
    }
}

/// How a stream of the pattern ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By an end of file.
    Clean,
    /// By this error.
    Error(io::ErrorKind),
}

/// Reads the pattern until it ends in either way: how many bytes came before, and the way.
pub fn read_to_ending<S: Stream>(stream: &S, seed: u64, already: usize) -> (usize, Ending) {
    let mut buffer = vec![0; 65_536];
    let mut received = already;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (received, Ending::Clean),
            Ok(count) => {
                pattern::check(seed, received as u64, &buffer[..count]);
                received += count;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (received, Ending::Error(error.kind())),
        }
    }
}

/// Writes the pattern until an error comes, which must be that of a connection that is gone.
pub fn write_until_refused<S: Stream>(stream: &S, seed: u64, most: usize) {
    let mut sent = 0;
    while sent < most {
        match stream.write(&pattern::bytes(seed, sent as u64, 65_536)) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let gone = is_gone(error.kind());
                assert!(
                    gone,
                    "a write failed after {sent} bytes, but by no dead peer: {error}"
                );
                return;
            }
        }
    }
    panic!("{sent} bytes were accepted for a peer that is gone");
}

/// Whether an error says that the connection is no more.
pub fn is_gone(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
    )
}

/// Whether an error says that the time ran out.
pub fn is_timeout(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

/// Writes the pattern without waiting until nothing more is accepted; how much was.
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
                // What moves the bytes may still make room for more.
                let patience = Duration::from_millis(300);
                let ready = stream.wait(Ready::WRITE, patience).expect("a wait");
                if !ready.write {
                    return sent;
                }
            }
            Err(error) => panic!("a write failed after {sent} bytes: {error}"),
        }
    }
}
