//! Commands over a serial port of the guest.
//!
//! The host sends one line, `VERB ID NUMBER TEXT`, where the shell's `printf %b` decodes the text. When the command is finished, the guest replies with
//! `done ID STATUS SIZE SIZE` and that many bytes of standard output and standard error. A port handles
//! one command at a time. Replies to an earlier, timed-out request are recognized by their ID and dropped.
//! After a boot the guest first sends `ready` and its boot id.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::deadline::until;
use crate::error::Error;

/// Maximum bytes of a command's output.
const MAX_OUTPUT: usize = 256 << 20;

/// The host's side of a port.
#[derive(Debug)]
pub struct Port {
    stream: UnixStream,
    buffer: Vec<u8>,
    id: u64,
}

/// A message from the guest.
#[derive(Debug, PartialEq, Eq)]
enum Message {
    Ready(String),
    Attached(u64),
    Done(u64, Answer),
}

/// The result of a command.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// A request to the guest.
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

    /// Waits for the `ready` of a boot and returns its boot id; `None` on a timeout.
    pub fn ready(&mut self, deadline: Instant) -> Result<Option<String>, Error> {
        loop {
            match self.receive(deadline)? {
                Some(Message::Ready(boot)) => return Ok(Some(boot)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Sends a request and waits for its answer; `None` on a timeout.
    pub fn request(
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
            match self.receive(deadline)? {
                Some(Message::Done(id, answer)) if id == self.id => return Ok(Some(answer)),
                Some(Message::Ready(_)) => return Err(Error::Rebooted),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Starts a command with the port as its stdin and stdout.
    pub fn attach(mut self, command: &str, deadline: Instant) -> Result<Attached, Error> {
        self.send("attach", 0, command, deadline)?;
        loop {
            match self.receive(deadline)? {
                Some(Message::Attached(id)) if id == self.id => break,
                Some(Message::Ready(_)) => return Err(Error::Rebooted),
                Some(_) => {}
                None => {
                    return Err(Error::Protocol(
                        "the guest did not start the command".into(),
                    ));
                }
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
        let line = format!("{verb} {} {number} {}\n", self.id, escaped(text.as_bytes()));
        self.write(line.as_bytes(), deadline)
    }

    fn write(&mut self, bytes: &[u8], deadline: Instant) -> Result<(), Error> {
        self.stream
            .set_write_timeout(Some(until(deadline)))
            .and_then(|()| self.stream.write_all(bytes))
            .map_err(Error::io("cannot write to the guest's port"))
    }

    fn receive(&mut self, deadline: Instant) -> Result<Option<Message>, Error> {
        loop {
            if let Some((message, size)) = parse(&self.buffer)? {
                self.buffer.drain(..size);
                return Ok(Some(message));
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

/// Parses the first message in `bytes` and its length; `None` if it is incomplete.
fn parse(bytes: &[u8]) -> Result<Option<(Message, usize)>, Error> {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        return Ok(None);
    };
    let line = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let invalid = || Error::Protocol(format!("the guest sent {line:?}"));
    let words: Vec<&str> = line.split(' ').collect();
    let number = |word: &str| {
        word.parse::<usize>()
            .ok()
            .filter(|number| *number <= MAX_OUTPUT)
    };
    let (message, size) = match words[..] {
        ["ready", boot] => (Message::Ready(boot.to_owned()), 0),
        ["attached", id] => (Message::Attached(id.parse().map_err(|_| invalid())?), 0),
        ["done", id, status, out, err] => {
            let (out, err) = number(out).zip(number(err)).ok_or_else(invalid)?;
            let payload = &bytes[end + 1..];
            let Some(payload) = payload.get(..out + err) else {
                return Ok(None);
            };
            let answer = Answer {
                status: status.parse().map_err(|_| invalid())?,
                stdout: payload[..out].to_vec(),
                stderr: payload[out..].to_vec(),
            };
            let id = id.parse().map_err(|_| invalid())?;
            (Message::Done(id, answer), out + err)
        }
        _ => return Err(invalid()),
    };
    Ok(Some((message, end + 1 + size)))
}

/// The stdin and stdout of a command in the guest, as raw bytes. Dropping it closes the command's stdin.
#[derive(Debug)]
pub struct Attached {
    stream: UnixStream,
    early: Vec<u8>,
}

impl Attached {
    /// Sets the timeout of reads, after which they fail with `WouldBlock`.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the timeout is zero.
    pub fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(limit)
    }

    /// Creates a second handle, to read with one and write with the other. Data received before this call
    /// is read by the first.
    ///
    /// # Errors
    ///
    /// Those of `dup`.
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

/// The text for `printf %b`: a backslash, and what is not printable in ASCII, as `\0` and three octal digits.
fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b' '..=b'~' if *byte != b'\\' => text.push(char::from(*byte)),
            _ => text.push_str(&format!("\\0{byte:03o}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_survives_the_shells_printf() {
        let text: Vec<u8> = (1..=255).chain(*b" \\n%s $x `y` 'z' \"\n").collect();
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", "read -r verb text; printf %b \"$text\""]);
        shell.stdin(std::process::Stdio::piped());
        shell.stdout(std::process::Stdio::piped());
        let mut shell = shell.spawn().expect("a shell");
        let mut stdin = shell.stdin.take().expect("its input");
        stdin
            .write_all(format!("run {}\n", escaped(&text)).as_bytes())
            .expect("written");
        drop(stdin);
        let printed = shell.wait_with_output().expect("its output").stdout;
        assert_eq!(printed, text);
    }

    #[test]
    fn a_message_is_parsed_when_it_is_complete() {
        let bytes = b"done 7 3 2 1\nabcready x\n";
        for short in 0..16 {
            assert_eq!(parse(&bytes[..short]).expect("nothing wrong"), None);
        }
        let (message, size) = parse(bytes).expect("well").expect("complete");
        assert_eq!(size, 16);
        let answer = Answer {
            status: 3,
            stdout: b"ab".into(),
            stderr: b"c".into(),
        };
        assert_eq!(message, Message::Done(7, answer));
        let (message, _) = parse(&bytes[16..]).expect("well").expect("complete");
        assert_eq!(message, Message::Ready("x".into()));
    }

    #[test]
    fn an_invalid_message_is_an_error() {
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
    fn a_late_answer_is_dropped() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let mut port = Port::new(ours);
        let within = |seconds| Instant::now() + Duration::from_secs(seconds);
        let request = Request::Run {
            seconds: 1,
            command: "x",
        };
        assert_eq!(port.request(&request, within(0)).expect("well"), None);
        theirs
            .write_all(b"done 1 0 4 0\nlatedone 2 0 2 0\nok")
            .expect("written");
        let answer = port
            .request(&request, within(60))
            .expect("well")
            .expect("in time");
        assert_eq!(answer.stdout, b"ok");
        theirs.write_all(b"ready again\n").expect("written");
        assert!(matches!(
            port.request(&request, within(60)),
            Err(Error::Rebooted)
        ));
    }
}
