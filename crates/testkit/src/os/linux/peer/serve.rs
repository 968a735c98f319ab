//! What the peer does with one connection.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use hvsock::{Endpoint, HvStream, Interest, VmId};

use super::command::{Command, MAX_LINE};
use super::outcomes::Outcomes;
use super::services::CLIENT_SERVICE;

/// The longest wait for data or for free space. Longer than the wait for a client's other connection.
const TIMEOUT: Duration = Duration::from_secs(30);

pub(super) struct Server {
    pub(super) endpoint: Endpoint,
    pub(super) outcomes: Outcomes,
}

/// The first `count` bytes of the data that every case sends: byte `i` is the exclusive or of the four bytes
/// of `i`, so that a byte that is lost, doubled or moved is seen.
pub fn pattern(count: usize) -> Vec<u8> {
    let byte = |i: usize| (i ^ i >> 8 ^ i >> 16 ^ i >> 24) as u8;
    (0..count).map(byte).collect()
}

/// The CRC-32 of ISO-HDLC, as zlib computes it, as 8 hexadecimal digits.
pub fn checksum(data: &[u8]) -> String {
    format!("{:08x}", !Crc::default().of(data).0)
}

/// A CRC-32 before its final inversion.
#[derive(Clone, Copy)]
struct Crc(u32);

impl Default for Crc {
    fn default() -> Self {
        Self(u32::MAX)
    }
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut value = i as u32;
        let mut bit = 0;
        while bit < 8 {
            let carry = if value & 1 == 1 { 0xedb8_8320 } else { 0 };
            value = value >> 1 ^ carry;
            bit += 1;
        }
        table[i] = value;
        i += 1;
    }
    table
};

impl Crc {
    fn of(self, data: &[u8]) -> Self {
        let next = |crc: u32, byte: &u8| CRC_TABLE[(crc as u8 ^ byte) as usize] ^ crc >> 8;
        Self(data.iter().fold(self.0, next))
    }
}

/// What was read to the end of a connection.
struct Received {
    bytes: usize,
    crc: Crc,
    end: io::Result<()>,
}

impl Received {
    /// `COUNT CHECKSUM`.
    fn summary(&self) -> String {
        format!("{} {:08x}", self.bytes, !self.crc.0)
    }

    /// `clean COUNT CHECKSUM` or `reset COUNT CHECKSUM`.
    fn outcome(&self) -> String {
        let end = match &self.end {
            Ok(()) => "clean",
            // A write may see first that the client reads no more.
            Err(error) if is_broken(error) => "reset",
            Err(_) => "error",
        };
        format!("{end} {}", self.summary())
    }
}

fn is_broken(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

fn read_to_end(mut stream: &HvStream) -> Received {
    let mut received = Received {
        bytes: 0,
        crc: Crc::default(),
        end: Ok(()),
    };
    let mut buffer = vec![0; 65536];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return received,
            Ok(count) => {
                received.bytes += count;
                received.crc = received.crc.of(&buffer[..count]);
            }
            Err(error) => {
                received.end = Err(error);
                return received;
            }
        }
    }
}

fn limit(stream: &HvStream) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))
}

/// Reads the client's line and no byte after it.
fn read_line(mut stream: &HvStream) -> io::Result<String> {
    let mut line = Vec::new();
    while line.len() < MAX_LINE {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        if byte == *b"\n" {
            return String::from_utf8(line).map_err(io::Error::other);
        }
        line.extend_from_slice(&byte);
    }
    Err(io::Error::other("the first line is too long"))
}

/// Answers, and waits for the client's end: a close before that would race with the client's half-close.
fn reply(mut stream: &HvStream, line: &str) -> io::Result<()> {
    stream.write_all(format!("{line}\n").as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    read_to_end(stream).end
}

impl Server {
    /// Serves one connection of a client in the partition `from`. An error ends only this connection.
    pub(super) fn serve(&self, stream: &HvStream, from: VmId) {
        let served = limit(stream).and_then(|()| match read_line(stream)?.parse() {
            Ok(command) => self.run(stream, from, command),
            Err(error) => reply(stream, &format!("error {error}")),
        });
        if let Err(error) = served {
            eprintln!("connection {}: {error}", stream.connection_id());
        }
    }

    fn run(&self, mut stream: &HvStream, from: VmId, command: Command) -> io::Result<()> {
        match command {
            Command::Echo => {
                let mut writer = stream;
                io::copy(&mut stream, &mut writer)?;
                stream.shutdown(Shutdown::Write)
            }
            Command::Sink => answer_summary(stream),
            Command::Source { bytes, write } => {
                for chunk in pattern(bytes).chunks(write) {
                    stream.write_all(chunk)?;
                }
                stream.shutdown(Shutdown::Write)?;
                read_to_end(stream).end
            }
            Command::EndFirst { token } => {
                stream.shutdown(Shutdown::Write)?;
                self.outcomes.record(token, read_to_end(stream).outcome());
                Ok(())
            }
            Command::CloseUnread { bytes } => {
                stream.write_all(&pattern(bytes))?;
                stream.poll(Interest::READABLE, Some(TIMEOUT))?;
                // The stream closes with this data unread.
                Ok(())
            }
            Command::SendRecord { token, bytes } => {
                let written = stream.write_all(&pattern(bytes));
                let mut received = read_to_end(stream);
                received.end = written.and(received.end);
                self.outcomes.record(token, received.outcome());
                Ok(())
            }
            Command::Hold { token } => {
                self.outcomes.wait_for_release(&token);
                answer_summary(stream)
            }
            Command::Release { token } => {
                self.outcomes.release(token);
                reply(stream, "ok")
            }
            Command::Outcome { token } => {
                let outcome = self.outcomes.take(&token);
                reply(stream, outcome.as_deref().unwrap_or("unknown"))
            }
            Command::Dial { connections, bytes } => match self.dial(from, connections, bytes) {
                Ok(()) => reply(stream, "ok"),
                Err(error) => reply(stream, &format!("error {error}")),
            },
        }
    }

    /// Opens connections to the client's listener, all at once, and expects each to return the data.
    fn dial(&self, client: VmId, connections: usize, bytes: usize) -> io::Result<()> {
        let one = || {
            let options = HvStream::options().endpoint(self.endpoint.clone());
            let stream = options.timeout(TIMEOUT).connect((client, CLIENT_SERVICE))?;
            limit(&stream)?;
            exchange(&stream, &pattern(bytes))
        };
        thread::scope(|scope| {
            let all: Vec<_> = (0..connections).map(|_| scope.spawn(one)).collect();
            let ended = all.into_iter().map(thread::ScopedJoinHandle::join);
            let ended = ended.map(|end| end.unwrap_or_else(|_| Err(io::Error::other("a panic"))));
            ended.collect()
        })
    }
}

fn answer_summary(stream: &HvStream) -> io::Result<()> {
    let received = read_to_end(stream);
    received.end.as_ref().map_err(io::Error::kind)?;
    reply(stream, &received.summary())
}

/// Sends data and half-closes, while it reads the same data and a clean end.
fn exchange(mut stream: &HvStream, data: &[u8]) -> io::Result<()> {
    thread::scope(|scope| {
        let sender = scope.spawn(move || {
            stream.write_all(data)?;
            stream.shutdown(Shutdown::Write)
        });
        let mut returned = Vec::new();
        stream.read_to_end(&mut returned)?;
        let sent = sender.join();
        sent.unwrap_or_else(|_| Err(io::Error::other("a panic")))?;
        match returned == data {
            true => Ok(()),
            false => Err(io::Error::other(format!(
                "{} bytes came back, not the {} that were sent",
                returned.len(),
                data.len()
            ))),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_crc_of_zlib() {
        assert_eq!(checksum(b""), "00000000");
        assert_eq!(checksum(b"123456789"), "cbf43926");
    }

    #[test]
    fn the_pattern_does_not_repeat_within_64_kib() {
        let data = pattern(70_000);
        assert_eq!(data[..4], [0, 1, 2, 3]);
        assert_eq!(data[256..259], [1, 0, 3]);
        assert_ne!(data[..1000], data[65536..66536]);
    }
}
