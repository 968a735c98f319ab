//! Commands over a port of the virtio-serial device.
//!
//! The host sends one line, `VERB ID NUMBER BASE64`, and the guest answers when it is done with
//! `done ID STATUS SIZE SIZE` and as many bytes of output and of complaints. A port does one thing at
//! a time; an answer for which nobody waits any more is known by its ID and dropped. A guest that has
//! begun anew says `ready` and its boot's id, first of all.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::machine::until;

/// The most that a command may print.
const MOST: usize = 256 << 20;

/// The host's side of a port.
#[derive(Debug)]
pub struct Port {
    stream: UnixStream,
    buffer: Vec<u8>,
    id: u64,
}

/// What a guest says.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Ready(String),
    Attached(u64),
    Done(u64, Answer),
}

/// What came of a command.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// What the guest is asked to do.
pub enum Request<'a> {
    Run { seconds: u64, command: &'a str },
    Spawn { number: u64, command: &'a str },
    Push { path: &'a str, content: &'a [u8] },
}

impl Port {
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            id: 0,
        }
    }

    /// Waits until the guest has begun, and gives its boot's id; none when the time is up.
    pub fn ready(&mut self, deadline: Instant) -> Result<Option<String>, Error> {
        loop {
            match self.heard(deadline)? {
                Some(Said::Ready(boot)) => return Ok(Some(boot)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Asks and waits for the answer; none when the time is up.
    pub fn ask(
        &mut self,
        request: &Request<'_>,
        deadline: Instant,
    ) -> Result<Option<Answer>, Error> {
        match *request {
            Request::Run { seconds, command } => self.send("run", seconds, command, deadline)?,
            Request::Spawn { number, command } => self.send("spawn", number, command, deadline)?,
            Request::Push { path, content } => {
                self.send("push", content.len() as u64, path, deadline)?;
                self.write(content, deadline)?;
            }
        }
        loop {
            match self.heard(deadline)? {
                Some(Said::Done(id, answer)) if id == self.id => return Ok(Some(answer)),
                Some(Said::Ready(_)) => return Err(Error::Rebooted),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Hands the port over to a command as its stdin and stdout.
    pub fn attach(mut self, command: &str, deadline: Instant) -> Result<Attached, Error> {
        self.send("attach", 0, command, deadline)?;
        loop {
            match self.heard(deadline)? {
                Some(Said::Attached(id)) if id == self.id => break,
                Some(Said::Ready(_)) => return Err(Error::Rebooted),
                Some(_) => {}
                None => return Err(Error::Protocol("the guest starts no command".into())),
            }
        }
        Ok(Attached {
            stream: self.stream,
            early: self.buffer,
        })
    }

    fn send(
        &mut self,
        verb: &str,
        number: u64,
        text: &str,
        deadline: Instant,
    ) -> Result<(), Error> {
        self.id += 1;
        let line = format!("{verb} {} {number} {}\n", self.id, base64(text.as_bytes()));
        self.write(line.as_bytes(), deadline)
    }

    fn write(&mut self, bytes: &[u8], deadline: Instant) -> Result<(), Error> {
        self.stream
            .set_write_timeout(Some(until(deadline)))
            .and_then(|()| self.stream.write_all(bytes))
            .map_err(Error::io("cannot write to the guest's port"))
    }

    fn heard(&mut self, deadline: Instant) -> Result<Option<Said>, Error> {
        loop {
            if let Some((said, size)) = parse(&self.buffer)? {
                self.buffer.drain(..size);
                return Ok(Some(said));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            let failed = || Error::io("cannot read from the guest's port");
            self.stream
                .set_read_timeout(Some(until(deadline)))
                .map_err(failed())?;
            let mut bytes = [0; 16384];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(failed()(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => self.buffer.extend_from_slice(&bytes[..count]),
                Err(error) if is_timeout(&error) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed()(error)),
            }
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// The first thing said in these bytes and how many of them it takes; none if it is not complete.
fn parse(bytes: &[u8]) -> Result<Option<(Said, usize)>, Error> {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        return Ok(None);
    };
    let line = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let strange = || Error::Protocol(format!("the guest said {line:?}"));
    let words: Vec<&str> = line.split(' ').collect();
    let number = |word: &str| word.parse::<usize>().ok().filter(|number| *number <= MOST);
    let (said, size) = match words[..] {
        ["ready", boot] => (Said::Ready(boot.to_owned()), 0),
        ["attached", id] => (Said::Attached(id.parse().map_err(|_| strange())?), 0),
        ["done", id, status, out, err] => {
            let (out, err) = number(out).zip(number(err)).ok_or_else(strange)?;
            let payload = &bytes[end + 1..];
            let Some(payload) = payload.get(..out + err) else {
                return Ok(None);
            };
            let answer = Answer {
                status: status.parse().map_err(|_| strange())?,
                stdout: payload[..out].to_vec(),
                stderr: payload[out..].to_vec(),
            };
            let id = id.parse().map_err(|_| strange())?;
            (Said::Done(id, answer), out + err)
        }
        _ => return Err(strange()),
    };
    Ok(Some((said, end + 1 + size)))
}

/// A command in the guest whose stdin and stdout are this. It reads the end of its stdin when this is
/// dropped. Bytes pass as they are.
#[derive(Debug)]
pub struct Attached {
    stream: UnixStream,
    early: Vec<u8>,
}

impl Attached {
    /// The most that a read may take; its error is `WouldBlock` then.
    pub fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(limit)
    }

    /// A second handle, to read by the one and write by the other. What has come before this call is
    /// read by the first.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            stream: self.stream.try_clone()?,
            early: Vec::new(),
        })
    }
}

impl Read for Attached {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.early.is_empty() {
            return self.stream.read(buffer);
        }
        let count = buffer.len().min(self.early.len());
        buffer[..count].copy_from_slice(&self.early[..count]);
        self.early.drain(..count);
        Ok(count)
    }
}

impl Write for Attached {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Base 64 as in RFC 4648, §4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for place in 0..4 {
            if place <= chunk.len() {
                let digit = DIGITS[(bits >> (18 - 6 * place)) as usize & 63];
                text.push(char::from(digit));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_as_in_the_rfc() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn what_is_said_is_taken_when_it_is_complete() {
        let bytes = b"done 7 3 2 1\nabcready x\n";
        for short in 0..16 {
            assert_eq!(parse(&bytes[..short]).expect("nothing wrong"), None);
        }
        let (said, size) = parse(bytes).expect("well").expect("complete");
        assert_eq!(size, 16);
        let answer = Answer {
            status: 3,
            stdout: b"ab".into(),
            stderr: b"c".into(),
        };
        assert_eq!(said, Said::Done(7, answer));
        let (said, _) = parse(&bytes[16..]).expect("well").expect("complete");
        assert_eq!(said, Said::Ready("x".into()));
    }

    #[test]
    fn nonsense_is_an_error() {
        for line in [
            "what\n",
            "done 1 2 3\n",
            "done 1 2 3 99999999999\n",
            "ready\n",
        ] {
            parse(line.as_bytes()).expect_err(line);
        }
    }

    #[test]
    fn an_answer_that_comes_too_late_is_dropped() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let mut port = Port::new(ours);
        let soon = || Instant::now() + Duration::from_millis(50);
        let request = Request::Run {
            seconds: 1,
            command: "x",
        };
        assert_eq!(port.ask(&request, soon()).expect("well"), None);
        theirs
            .write_all(b"done 1 0 4 0\nlatedone 2 0 2 0\nok")
            .expect("written");
        let answer = port.ask(&request, soon()).expect("well").expect("in time");
        assert_eq!(answer.stdout, b"ok");
        theirs.write_all(b"ready again\n").expect("written");
        assert!(matches!(port.ask(&request, soon()), Err(Error::Rebooted)));
    }
}
