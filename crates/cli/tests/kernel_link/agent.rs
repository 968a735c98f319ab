//! The integration services over the kernel's vhost-vsock.
//!
//! The guest here has no kernel that could run an agent. The agent runs in a container of a second broker,
//! and the guest bridges its ports to that. From the host's broker to the guest's socket everything is as with any
//! VM; between that socket and the agent are a process and a broker more.

use anyhow::{Result, ensure};

use crate::broker::Broker;
use crate::host::Host;
use crate::report::Scenario;

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "exec and cp work through the agent of a guest",
    run: exec,
}];

/// The ports of the services session and copy.
const PORTS: [u32; 2] = [911, 912];

fn exec(host: &Host) -> Result<String> {
    let inside = Broker::start(host)?;
    inside.ok(&["container add inner"])?;
    let endpoint = format!("{}/containers/inner/endpoint", inside.dir());
    let _agent = host.spawn(&format!("env HVSOCK_ENDPOINT={endpoint} hvsock-agent"))?;
    let broker = Broker::start(host)?;
    broker.ok(&["vm add web --kernel-cid 42"])?;
    let vm = host.vm(42)?;
    for port in PORTS {
        let bridge = inside.line(&format!("connect inner {port}"));
        vm.tell(&format!("listen {port} program {bridge}"))?;
    }
    let release = broker.until("exec reaches the agent", || {
        let output = host.sh(&broker.line("exec web -- uname -r"))?;
        Ok(output.success().then(|| output.text()))
    })?;
    ensure!(release == host.release(), "uname -r: {release:?}");
    let ended = host.sh(&broker.line("exec web -- sh -c 'exit 7'"))?;
    ensure!(ended.status == 7, "{ended:?}");
    let upper = host.ok(&format!(
        "echo hello | {}",
        broker.line("exec -i web -- tr a-z A-Z")
    ))?;
    ensure!(upper == "HELLO", "exec -i: {upper:?}");
    broker.ok(&["cp /bin/busybox web:/tmp/copied"])?;
    host.ok("cmp /bin/busybox /tmp/copied")?;
    Ok(format!(
        "hvsock exec web -- uname -r: {release}; exit 7; cp of busybox"
    ))
}
