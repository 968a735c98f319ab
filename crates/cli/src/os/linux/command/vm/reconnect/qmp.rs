//! A connection to QEMU's monitor protocol (QMP). Everything is bounded: the time of all calls together, and
//! the length of a line.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use hvsock_text::printable;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::{Value, json};

use super::exchange::{Fault, Monitor};

/// The longest line that is read. A list of devices has some kilobytes.
const MAX_LINE: usize = 1 << 20;

/// Lines that answer nothing, such as events, before a reply.
const MAX_OTHERS: usize = 10_000;

/// The time within which a monitor that is free greets.
const GREETING: Duration = Duration::from_secs(3);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    /// Nothing listens there.
    #[error("nothing listens there")]
    Absent,
    /// This user may not connect.
    #[error("permission denied")]
    Forbidden,
    /// It accepts, and says nothing: QEMU serves one client at a time.
    #[error("no greeting: another client uses this monitor")]
    Busy,
    /// It is no monitor of QEMU.
    #[error("this is no QMP socket: {0}")]
    Foreign(String),
    /// Something else.
    #[error("{0}")]
    Io(io::Error),
}

/// A connection, after the greeting.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    deadline: Instant,
    buffer: Vec<u8>,
    serial: u64,
}

impl Qmp {
    /// Connects and leaves the negotiation of capabilities.
    pub fn connect(path: &Path, deadline: Instant) -> Result<Self, Unreachable> {
        let greeted = deadline.min(Instant::now() + GREETING);
        let mut qmp = Self {
            stream: connect(path, greeted)?,
            deadline: greeted,
            buffer: Vec::new(),
            serial: 0,
        };
        let greeting = qmp.line().map_err(|error| match error {
            Lost::Time => Unreachable::Busy,
            other => Unreachable::Foreign(other.to_string()),
        })?;
        if greeting.get("QMP").is_none() {
            return Err(Unreachable::Foreign("it sent another greeting".to_owned()));
        }
        qmp.deadline = deadline;
        let foreign = |fault| match fault {
            Fault::Refused(why) | Fault::Lost(why) => Unreachable::Foreign(why),
        };
        qmp.execute("qmp_capabilities", json!({}))
            .map_err(foreign)?;
        Ok(qmp)
    }

    fn left(&self) -> Option<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        Some(left).filter(|left| !left.is_zero())
    }

    fn line(&mut self) -> Result<Value, Lost> {
        let mut seen = 0;
        loop {
            let end = self.buffer[seen..].iter().position(|byte| *byte == b'\n');
            if let Some(end) = end {
                let rest = self.buffer.split_off(seen + end + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                return serde_json::from_slice(&line).map_err(|_| Lost::Garbage);
            }
            seen = self.buffer.len();
            if seen > MAX_LINE {
                return Err(Lost::Endless);
            }
            let left = self.left().ok_or(Lost::Time)?;
            let mut chunk = [0; 16 << 10];
            let read = self
                .stream
                .set_read_timeout(Some(left))
                .and_then(|()| self.stream.read(&mut chunk));
            match read {
                Ok(0) => return Err(Lost::Closed),
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Lost::from(error)),
            }
        }
    }

    fn send(&mut self, mut bytes: &[u8]) -> Result<(), Lost> {
        while !bytes.is_empty() {
            let left = self.left().ok_or(Lost::Time)?;
            let wrote = self
                .stream
                .set_write_timeout(Some(left))
                .and_then(|()| self.stream.write(bytes));
            match wrote {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Lost::from(error)),
            }
        }
        Ok(())
    }

    fn reply(&mut self, command: &str, arguments: &Value) -> Result<Result<Value, String>, Lost> {
        self.serial += 1;
        let id = self.serial;
        let call = json!({ "execute": command, "arguments": arguments, "id": id });
        self.send(format!("{call}\n").as_bytes())?;
        for _ in 0..MAX_OTHERS {
            let mut line = self.line()?;
            if line["id"] != id {
                continue;
            }
            if let Some(value) = line.get_mut("return") {
                return Ok(Ok(value.take()));
            }
            if let Some(error) = line.get("error") {
                let why = error["desc"].as_str().unwrap_or("no reason given");
                return Ok(Err(printable(why).to_string()));
            }
        }
        Err(Lost::Garbage)
    }
}

impl Monitor for Qmp {
    fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, Fault> {
        match self.reply(command, &arguments) {
            Ok(reply) => reply.map_err(Fault::Refused),
            Err(lost) => Err(Fault::Lost(format!(
                "QEMU's monitor gave no answer to {command}: {lost}"
            ))),
        }
    }

    fn pause(&mut self, time: Duration) -> bool {
        // The next command needs time, too.
        let has_time = self.left().is_some_and(|left| left > time * 2);
        if has_time {
            thread::sleep(time);
        }
        has_time
    }
}

/// Why a line did not come.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("the time is over")]
    Time,
    #[error("it closed the connection")]
    Closed,
    #[error("it sent a line without end")]
    Endless,
    #[error("it sent a line that is no JSON")]
    Garbage,
    #[error("{0}")]
    Io(io::Error),
}

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Time,
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

/// Connects within a time limit: connect(2) has none while the backlog is full, as it is if others wait.
fn connect(path: &Path, deadline: Instant) -> Result<UnixStream, Unreachable> {
    let io = |error: Errno| Unreachable::Io(error.into());
    let address = SocketAddrUnix::new(path).map_err(io)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(io)?;
    loop {
        match rustix::net::connect(&socket, &address) {
            Ok(()) => break,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(20));
            }
            Err(Errno::AGAIN) => return Err(Unreachable::Busy),
            Err(Errno::NOENT | Errno::CONNREFUSED) => return Err(Unreachable::Absent),
            Err(Errno::ACCESS | Errno::PERM) => return Err(Unreachable::Forbidden),
            Err(error) => return Err(io(error)),
        }
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false).map_err(Unreachable::Io)?;
    Ok(stream)
}
