//! The kernel without the modules of a host. These scenarios unload them, so they are the last.

use anyhow::{Result, ensure};

use crate::host::Host;
use crate::report::Scenario;

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "without vhost_vsock the local context id is 1, and without loopback there is none",
    run: |host| {
        unload(host, "vhost_vsock")?;
        let loopback = host.plain("cid")?;
        ensure!(loopback == "1", "{loopback}");
        unload(host, "vsock_loopback")?;
        let none = host.plain("cid")?;
        ensure!(none == "-1", "{none}");
        Ok(format!("{loopback}, then {none}"))
    },
}];

/// Unloads a module, once the kernel has ended the last connections of the scenarios before: it keeps a socket for as long
/// as its connect might have taken, also if that has succeeded.
fn unload(host: &Host, module: &str) -> Result<()> {
    let attempts = format!(
        "i=0; until rmmod {module} || [ $i = 400 ]; do sleep 0.2; i=$((i+1)); done 2>/dev/null; \
         ! grep '^{module} ' /proc/modules"
    );
    host.ok(&attempts).map(drop)
}
