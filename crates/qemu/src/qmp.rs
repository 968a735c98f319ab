//! QEMU's monitor: a line of JSON each way for a command.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::Error;
use crate::machine::until;

/// How long an answer may take. `stop` waits for the device's back-end.
const LIMIT: Duration = Duration::from_secs(30);

/// A connection to it, past the greeting.
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
            return Err(Error::Protocol(format!("no greeting of QEMU: {greeting}")));
        }
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Gives a command, and its answer; events that come meanwhile are dropped.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, Error> {
        let failed = || format!("QEMU's monitor, at {command}");
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.stream
            .write_all(line.as_bytes())
            .map_err(Error::io(failed()))?;
        let deadline = Instant::now() + LIMIT;
        loop {
            let mut answer = self.line(deadline)?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                let why = error["desc"].as_str().unwrap_or("it does not say why");
                return Err(Error::Protocol(format!("QEMU refuses {command}: {why}")));
            }
        }
    }

    fn line(&mut self, deadline: Instant) -> Result<Value, Error> {
        self.stream
            .set_read_timeout(Some(until(deadline)))
            .map_err(Error::io("QEMU's monitor"))?;
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => Err(Error::Ended {
                what: "QEMU has closed its monitor".into(),
                seen: String::new(),
            }),
            Ok(_) => serde_json::from_str(&line)
                .map_err(|error| Error::Protocol(format!("QEMU's monitor said {line:?}: {error}"))),
            Err(error) => Err(Error::io("QEMU's monitor does not answer")(error)),
        }
    }
}
