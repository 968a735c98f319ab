//! `org.freedesktop.machine1` over the system's message bus. Source: machine1's manual page, and the D-Bus
//! Specification's "Authentication Protocol" (EXTERNAL).

use std::path::Path;
use std::time::Instant;

use super::message::{ERROR, METHOD_RETURN, Message, Value, call, lengths};
use crate::error::Unavailable;
use crate::kind::ManagerKind;
use crate::machine::{Machine, Reach, State};
use crate::text::hyphenated;
use crate::wire::Wire;

const SERVICE: &str = "org.freedesktop.machine1";
const PROPERTIES: [&str; 2] = ["org.freedesktop.DBus.Properties", "GetAll"];

/// Virtual machines, and messages between an answer and its call.
const MAX_MACHINES: usize = 4096;
const MAX_OTHERS: usize = 1000;

/// The length of a line of the authentication.
const MAX_LINE: usize = 16 << 10;

/// The virtual machines that machined knows.
pub fn list(socket: &Path, deadline: Instant) -> Result<Vec<Machine>, Unavailable> {
    let mut bus = Bus::connect(socket, deadline)?;
    let machines = bus.call(
        "/org/freedesktop/machine1",
        ["org.freedesktop.machine1.Manager", "ListMachines"],
        &[],
    )?;
    let machines = machines.first().cloned().unwrap_or(Value::Other);
    if machines.list().len() > MAX_MACHINES {
        return Err(bus.wire.invalid("it lists too many machines"));
    }
    let mut found = Vec::new();
    for entry in machines.list() {
        let [name, class, _service, path] = entry.list() else {
            return Err(bus.wire.invalid("a machine is malformed"));
        };
        let (Some(name), Some("vm"), Some(path)) = (name.text(), class.text(), path.text()) else {
            continue;
        };
        let interface = ["org.freedesktop.machine1.Machine"];
        match bus.call(path, PROPERTIES, &interface) {
            Ok(properties) => found.extend(properties.first().map(|all| machine(name, all))),
            // It ended since.
            Err(Unavailable::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Reads a machine's properties.
#[cfg(feature = "fuzzing")]
pub(super) fn fuzz(properties: &Value) {
    let _ = machine("web", properties);
}

fn machine(name: &str, properties: &Value) -> Machine {
    let number = |key: &str| {
        let number = properties.get(key).and_then(Value::number);
        number.and_then(|number| u32::try_from(number).ok())
    };
    let id: Option<String> = properties.get("Id").map(|bytes| {
        let byte = |value: &Value| format!("{:02x}", value.number().unwrap_or_default() & 0xff);
        bytes.list().iter().map(byte).collect()
    });
    let state = match properties.get("State").and_then(Value::text) {
        Some("running") => State::Running,
        Some("closing") => State::Off,
        _ => State::Unknown,
    };
    // A machine without one has VMADDR_CID_ANY.
    let cid = number("VSockCID").filter(|cid| (3..u32::MAX).contains(cid));
    Machine {
        manager: ManagerKind::Machined,
        name: name.to_owned(),
        uuid: id.as_deref().and_then(hyphenated),
        state,
        pid: number("Leader").filter(|pid| *pid > 0),
        uid: None,
        reach: cid
            .map(|cid| Reach::Kernel { cid, netns: None })
            .into_iter()
            .collect(),
    }
}

/// A connection to a message bus.
struct Bus {
    wire: Wire,
    serial: u32,
}

impl Bus {
    fn connect(socket: &Path, deadline: Instant) -> Result<Self, Unavailable> {
        let mut wire = Wire::connect(socket, deadline)?;
        let uid = rustix::process::geteuid().as_raw().to_string();
        let hex: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
        wire.write(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())?;
        let line = wire.line(b'\n', MAX_LINE)?;
        if line.starts_with(b"REJECTED") {
            return Err(wire.forbidden());
        }
        if !line.starts_with(b"OK ") {
            return Err(wire.invalid("it does not speak D-Bus"));
        }
        wire.write(b"BEGIN\r\n")?;
        let mut bus = Self { wire, serial: 0 };
        let name = "org.freedesktop.DBus";
        bus.send(name, "/org/freedesktop/DBus", [name, "Hello"], &[])?;
        Ok(bus)
    }

    /// Calls a method of machined. The bus starts it if it does not run.
    fn call(
        &mut self,
        path: &str,
        method: [&str; 2],
        arguments: &[&str],
    ) -> Result<Vec<Value>, Unavailable> {
        self.send(SERVICE, path, method, arguments)
    }

    fn send(
        &mut self,
        destination: &str,
        path: &str,
        method: [&str; 2],
        arguments: &[&str],
    ) -> Result<Vec<Value>, Unavailable> {
        self.serial += 1;
        let message = call(self.serial, destination, path, method, arguments);
        self.wire.write(&message)?;
        for _ in 0..MAX_OTHERS {
            let message = self.receive()?;
            if message.reply_to != Some(self.serial) {
                continue;
            }
            return match message.kind {
                METHOD_RETURN => Ok(message.body),
                ERROR => Err(self.refusal(&message)),
                _ => Err(self.wire.invalid("an answer has no kind")),
            };
        }
        Err(self.wire.invalid("it sends messages that nobody asked for"))
    }

    fn receive(&mut self) -> Result<Message, Unavailable> {
        let mut bytes = self.wire.read(16)?;
        let (fields, body) = lengths(&bytes).map_err(|why| self.wire.invalid(why))?;
        bytes.extend(self.wire.read(fields + body)?);
        Message::parse(&bytes).map_err(|why| self.wire.invalid(why))
    }

    fn refusal(&self, message: &Message) -> Unavailable {
        let name = message.error.as_deref().unwrap_or_default();
        match name {
            // The bus runs, and machined is not installed.
            "org.freedesktop.DBus.Error.ServiceUnknown"
            | "org.freedesktop.DBus.Error.NameHasNoOwner" => Unavailable::Absent {
                path: SERVICE.into(),
            },
            "org.freedesktop.DBus.Error.AccessDenied" => self.wire.forbidden(),
            _ => {
                let words = message.body.first().and_then(Value::text);
                self.wire.refused(words.unwrap_or(name))
            }
        }
    }
}
