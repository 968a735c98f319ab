//! QEMU's monitor protocol (QMP): one line of JSON for a command and one for its reply.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::deadline::until;
use crate::error::Error;

/// Time limit of a reply. `stop` waits for the device's back-end.
const LIMIT: Duration = Duration::from_secs(30);

/// A connection to the monitor, after the greeting.
#[derive(Debug)]
pub struct Monitor {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Monitor {
    pub fn open(stream: UnixStream) -> Result<Self, Error> {
        let reader = stream
            .try_clone()
            .map_err(Error::io("cannot read QEMU's monitor"))?;
        let mut monitor = Self {
            stream,
            lines: BufReader::new(reader),
        };
        let deadline = Instant::now() + LIMIT;
        let greeting = monitor.line(deadline)?;
        if greeting.get("QMP").is_none() {
            return Err(Error::Protocol(format!(
                "QEMU's monitor sent no greeting but {greeting}"
            )));
        }
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Executes a command and returns its reply. Events are ignored.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, Error> {
        let failed = || format!("cannot send {command} to QEMU's monitor");
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.stream
            .write_all(line.as_bytes())
            .map_err(Error::io(failed()))?;
        let deadline = Instant::now() + LIMIT;
        loop {
            let mut reply = self.line(deadline)?;
            if let Some(value) = reply.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = reply.get("error") {
                let why = error["desc"].as_str().unwrap_or("no reason given");
                return Err(Error::Protocol(format!("QEMU refused {command}: {why}")));
            }
        }
    }

    fn line(&mut self, deadline: Instant) -> Result<Value, Error> {
        self.stream
            .set_read_timeout(Some(until(deadline)))
            .map_err(Error::io("cannot read QEMU's monitor"))?;
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => Err(Error::Ended {
                what: "QEMU closed its monitor".into(),
                seen: String::new(),
            }),
            Ok(_) => serde_json::from_str(&line)
                .map_err(|error| Error::Protocol(format!("QEMU's monitor sent {line:?}: {error}"))),
            Err(error) => Err(Error::io("QEMU's monitor does not reply")(error)),
        }
    }
}
