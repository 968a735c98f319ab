//! Incus, and LXD before it: one GET of their REST API. Source: their `doc/rest-api.yaml` and
//! `shared/api/instance.go`.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use crate::error::Unavailable;
use crate::http;
use crate::kind::ManagerKind;
use crate::machine::{Machine, Reach, State};
use crate::manager::Manager;

/// The sockets of Incus, of Incus for users of its group, and of LXD as a snap and as a package.
const SOCKETS: [&str; 4] = [
    "/var/lib/incus/unix.socket",
    "/var/lib/incus/unix.socket.user",
    "/var/snap/lxd/common/lxd/unix.socket",
    "/var/lib/lxd/unix.socket",
];

/// Incus on this machine.
#[derive(Debug)]
pub struct Incus {
    sockets: Vec<PathBuf>,
}

impl Incus {
    /// With the socket of `INCUS_SOCKET`, or of the folder `INCUS_DIR`, or where packages place it.
    pub fn of_this_machine() -> Self {
        let folder = || Some(Path::new(&env::var_os("INCUS_DIR")?).join("unix.socket"));
        let own = env::var_os("INCUS_SOCKET").map(PathBuf::from);
        let sockets = match own.or_else(folder) {
            Some(socket) => vec![socket],
            None => SOCKETS.map(PathBuf::from).into(),
        };
        Self { sockets }
    }

    /// With these sockets, of which the first that answers is asked.
    pub fn at(sockets: Vec<PathBuf>) -> Self {
        Self { sockets }
    }
}

impl Manager for Incus {
    fn kind(&self) -> ManagerKind {
        ManagerKind::Incus
    }

    fn list(&self, deadline: Instant) -> Result<Vec<Machine>, Unavailable> {
        let target = "/1.0/instances?recursion=1&all-projects=true";
        let mut failure = None;
        for socket in &self.sockets {
            match http::get(socket, target, deadline) {
                Ok(document) => return machines(socket, &document),
                // A socket that is there tells more than those that are not.
                Err(error) if failure.is_none() || !error.is_absent() => failure = Some(error),
                Err(_) => {}
            }
        }
        Err(failure.unwrap_or(Unavailable::Absent {
            path: PathBuf::from(SOCKETS[0]),
        }))
    }
}

fn machines(socket: &Path, document: &Value) -> Result<Vec<Machine>, Unavailable> {
    let invalid = |why| Unavailable::Invalid {
        path: socket.to_owned(),
        why,
    };
    let instances = document["metadata"].as_array();
    let instances = instances.ok_or_else(|| invalid("the answer has no list of instances"))?;
    instances
        .iter()
        .filter(|instance| instance["type"] == "virtual-machine")
        .map(|instance| machine(instance).ok_or_else(|| invalid("an instance has no name")))
        .collect()
}

/// Reads an answer.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz(document: &Value) {
    let _ = machines(Path::new("/socket"), document);
}

fn machine(instance: &Value) -> Option<Machine> {
    let name = instance["name"].as_str()?;
    let name = match instance["project"].as_str() {
        None | Some("" | "default") => name.to_owned(),
        Some(project) => format!("{project}/{name}"),
    };
    let state = match instance["status"].as_str() {
        Some("Running" | "Ready") => State::Running,
        Some("Frozen") => State::Paused,
        Some("Stopped") => State::Off,
        _ => State::Unknown,
    };
    let text = |key: &str| instance["config"][key].as_str();
    let cid = text("volatile.vsock_id").and_then(|text| text.parse().ok());
    Some(Machine {
        manager: ManagerKind::Incus,
        name,
        uuid: text("volatile.uuid").map(str::to_owned),
        state,
        pid: None,
        uid: None,
        reach: cid
            .map(|cid| Reach::Kernel { cid, netns: None })
            .into_iter()
            .collect(),
    })
}
