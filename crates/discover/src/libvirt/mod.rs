//! libvirt, by its RPC protocol, which its daemons have kept compatible since 2008: five calls over the
//! read-only socket, which any user may use. Source: libvirt's `src/rpc/virnetprotocol.x` and
//! `src/remote/remote_protocol.x`.

mod client;
mod domain;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod xdr;
mod xml;

use std::env;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::error::Unavailable;
use crate::kind::ManagerKind;
use crate::machine::Machine;
use crate::manager::Manager;
use client::Client;

/// The number of domains that are asked about.
const MAX_DOMAINS: usize = 4096;

/// A daemon's socket and the driver that it is asked for.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// The socket.
    pub socket: PathBuf,
    /// The URI, such as `qemu:///system`.
    pub uri: String,
}

/// libvirt on this machine.
#[derive(Debug)]
pub struct Libvirt {
    /// Daemons that serve the same domains, in groups: of each group the first that answers is asked.
    groups: Vec<Vec<Daemon>>,
}

impl Libvirt {
    /// The daemons of the system, and those of this user's session: the modular one, else the old one.
    pub fn of_this_machine() -> Self {
        let group = |folder: &Path, suffix: &str, uri: &str| {
            ["virtqemud", "libvirt"]
                .map(|name| Daemon {
                    socket: folder.join(format!("{name}-sock{suffix}")),
                    uri: uri.to_owned(),
                })
                .into()
        };
        let mut groups = vec![group(Path::new("/run/libvirt"), "-ro", "qemu:///system")];
        if let Some(folder) = env::var_os("XDG_RUNTIME_DIR") {
            let folder = PathBuf::from(folder).join("libvirt");
            groups.push(group(&folder, "", "qemu:///session"));
        }
        Self { groups }
    }

    /// These daemons only.
    pub fn at(daemons: Vec<Daemon>) -> Self {
        let groups = daemons.into_iter().map(|daemon| vec![daemon]).collect();
        Self { groups }
    }
}

impl Manager for Libvirt {
    fn kind(&self) -> ManagerKind {
        ManagerKind::Libvirt
    }

    fn list(&self, deadline: Instant) -> Result<Vec<Machine>, Unavailable> {
        let mut found = Vec::new();
        let mut answered = false;
        let mut failure: Option<Unavailable> = None;
        for group in &self.groups {
            for daemon in group {
                match list(daemon, deadline) {
                    Ok(machines) => {
                        answered = true;
                        found.extend(machines);
                        break;
                    }
                    Err(error) if error.is_absent() => failure = failure.or(Some(error)),
                    Err(error) => {
                        failure = Some(error);
                        break;
                    }
                }
            }
        }
        match failure {
            // A daemon that cannot be asked is told, even if another one answers.
            Some(error) if !(answered && error.is_absent()) => Err(error),
            _ => Ok(found),
        }
    }
}

fn list(daemon: &Daemon, deadline: Instant) -> Result<Vec<Machine>, Unavailable> {
    let mut client = Client::open(&daemon.socket, &daemon.uri, deadline)?;
    let mut machines = Vec::new();
    for domain in client.domains(MAX_DOMAINS)? {
        // A domain that was removed since is left out.
        let Some(state) = client.state(&domain)? else {
            continue;
        };
        let Some(xml) = client.xml(&domain)? else {
            continue;
        };
        machines.push(domain::machine(&domain, state, &xml));
    }
    Ok(machines)
}
