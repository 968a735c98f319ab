//! `io.systemd.Machine.List` over varlink: one JSON object and a NUL byte for each message. Source: systemd's
//! `src/shared/varlink-io.systemd.Machine.c` and varlink.org.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use crate::error::Unavailable;
use crate::kind::ManagerKind;
use crate::machine::{Machine, Reach, State};
use crate::text::hyphenated;
use crate::wire::Wire;

/// The length of a message, and the number of machines.
const MAX_MESSAGE: usize = 1 << 20;
const MAX_MACHINES: usize = 16_384;

/// The virtual machines, or `None` if this machined does not have the method.
pub fn list(socket: &Path, deadline: Instant) -> Result<Option<Vec<Machine>>, Unavailable> {
    let mut wire = Wire::connect(socket, deadline)?;
    let call = json!({ "method": "io.systemd.Machine.List", "parameters": {}, "more": true });
    let mut message = call.to_string().into_bytes();
    message.push(0);
    wire.write(&message)?;
    let mut machines = Vec::new();
    loop {
        let reply = wire.line(0, MAX_MESSAGE)?;
        let reply = serde_json::from_slice::<Value>(&reply);
        let reply = reply.map_err(|_| wire.invalid("a message is no JSON"))?;
        match reply["error"].as_str() {
            None => {}
            Some("io.systemd.Machine.NoSuchMachine") => return Ok(Some(machines)),
            Some(
                "org.varlink.service.MethodNotFound" | "org.varlink.service.InterfaceNotFound",
            ) => return Ok(None),
            Some("org.varlink.service.PermissionDenied") => return Err(wire.forbidden()),
            Some(why) => return Err(wire.refused(why)),
        }
        machines.extend(machine(&reply["parameters"]));
        if machines.len() > MAX_MACHINES {
            return Err(wire.invalid("it lists too many machines"));
        }
        if reply["continues"] != true {
            return Ok(Some(machines));
        }
    }
}

/// Reads a message.
#[cfg(feature = "fuzzing")]
pub(super) fn fuzz(reply: &Value) {
    let _ = machine(&reply["parameters"]);
}

/// A virtual machine, unless it is a container or the host.
fn machine(parameters: &Value) -> Option<Machine> {
    let name = parameters["name"].as_str()?;
    let cid = u32::try_from(parameters["vSockCid"].as_u64().unwrap_or_default());
    let cid = cid.ok().filter(|cid| *cid > 2);
    if parameters["class"] != "vm" && cid.is_none() {
        return None;
    }
    // A process is a number, or in later versions an object that has it.
    let leader = &parameters["leader"];
    let pid = leader.as_u64().or_else(|| leader["pid"].as_u64());
    Some(Machine {
        manager: ManagerKind::Machined,
        name: name.to_owned(),
        uuid: parameters["id"].as_str().and_then(hyphenated),
        state: State::Running,
        pid: pid.and_then(|pid| u32::try_from(pid).ok()),
        uid: None,
        reach: cid
            .map(|cid| Reach::Kernel { cid, netns: None })
            .into_iter()
            .collect(),
    })
}
