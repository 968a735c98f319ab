//! systemd-machined, over varlink (systemd 257 and later), else over the system's D-Bus (systemd 256 and
//! later has the context id). It lists what runs; it does not see whether a VMM has paused its guest.

mod dbus;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod message;
mod varlink;

use std::env;
use std::path::PathBuf;
use std::time::Instant;

use crate::error::Unavailable;
use crate::kind::ManagerKind;
use crate::machine::Machine;
use crate::manager::Manager;

/// systemd-machined on this machine.
#[derive(Debug)]
pub struct Machined {
    varlink: PathBuf,
    bus: PathBuf,
}

impl Machined {
    /// At the sockets of the system.
    pub fn of_this_machine() -> Self {
        let address = env::var("DBUS_SYSTEM_BUS_ADDRESS").ok();
        let path = |address: String| {
            let path = address.strip_prefix("unix:path=")?;
            Some(PathBuf::from(path.split([',', ';']).next()?))
        };
        Self {
            varlink: "/run/systemd/machine/io.systemd.Machine".into(),
            bus: address
                .and_then(path)
                .unwrap_or_else(|| "/run/dbus/system_bus_socket".into()),
        }
    }

    /// At these sockets: varlink's and the message bus's.
    pub fn at(varlink: PathBuf, bus: PathBuf) -> Self {
        Self { varlink, bus }
    }
}

impl Manager for Machined {
    fn kind(&self) -> ManagerKind {
        ManagerKind::Machined
    }

    fn list(&self, deadline: Instant) -> Result<Vec<Machine>, Unavailable> {
        match varlink::list(&self.varlink, deadline) {
            Ok(Some(machines)) => Ok(machines),
            // An older machined has the socket without the method, or no socket.
            Ok(None) => dbus::list(&self.bus, deadline),
            Err(error) if error.is_absent() => dbus::list(&self.bus, deadline),
            Err(error) => Err(error),
        }
    }
}
