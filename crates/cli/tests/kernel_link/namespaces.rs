//! Network namespaces with CIDs and ports of their own, which Linux has since 7.0.

use anyhow::{Result, ensure};

use crate::broker::Broker;
use crate::host::{Host, PROGRAM};
use crate::report::Scenario;

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "VMs with the same context id in two network namespaces are two partitions",
    run: namespaces,
}];

const BLUE: &str = "/run/netns/blue";

fn namespaces(host: &Host) -> Result<String> {
    host.ok(
        "echo local >/proc/sys/net/vsock/child_ns_mode; mkdir -p /run/netns; touch /run/netns/blue",
    )?;
    let namespace = host.spawn(&format!(
        "unshare -n sh -c 'mount --bind /proc/self/ns/net {BLUE}; cat /proc/sys/net/vsock/ns_mode; \
         exec sleep 1000'"
    ))?;
    namespace.prints("local")?;
    let broker = Broker::start(host)?;
    broker.ok(&[
        "vm add web --kernel-cid 42",
        &format!("vm add blue --kernel-cid 42 --netns {BLUE}"),
        "service register demo --port 5000",
        "service register guests --port 6000",
    ])?;
    let web = host.vm(42)?;
    let blue = host.vm_in(42, BLUE)?;
    web.tell("listen 6000 program echo I am web")?;
    blue.tell("listen 6000 program echo I am blue")?;
    let _demo = broker.program("demo whoami")?;
    for (name, vm) in [("web", &web), ("blue", &blue)] {
        let seen = vm.tell("connect 5000 x")?;
        ensure!(seen.starts_with(&format!("{name} by vsock")), "{seen}");
        let said = host.ok(&format!(
            "{} </dev/null",
            broker.line(&format!("connect {name} guests"))
        ))?;
        ensure!(said == format!("I am {name}"), "{said}");
    }
    // A plain program reaches those of its own namespace.
    let here = host.plain("connect 42 6000 x")?;
    let there = host.ok(&format!(
        "nsenter --net={BLUE} {PROGRAM} host connect 42 6000 x"
    ))?;
    ensure!(
        here.contains("I am web") && there.contains("I am blue"),
        "{here}, {there}"
    );
    Ok("web and blue, both 42".into())
}
