//! The broker's link to guests of the kernel's vhost-vsock.

use anyhow::{Result, ensure};

use crate::broker::Broker;
use crate::host::{Host, PROGRAM};
use crate::report::Scenario;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "register, listen, hand over: a guest's connection is the kernel's socket in the service",
        run: hand_over,
    },
    Scenario {
        name: "refuse: unregistered, without a listener, disabled, denied, unknown VM, local process",
        run: refuse,
    },
    Scenario {
        name: "a host's connect reaches a guest's service, or is refused with the reason",
        run: host_to_guest,
    },
    Scenario {
        name: "a process that takes a service's port first is named by why, and followed",
        run: squatter,
    },
    Scenario {
        name: "look-ups of names, also after another process had the broker's own port",
        run: look_ups,
    },
    Scenario {
        name: "the VMM's death resets connections, and the next VM with the CID is served",
        run: death,
    },
    Scenario {
        name: "a guest that connects again and again costs the broker nothing that stays",
        run: flood,
    },
    Scenario {
        name: "a handed over connection has the rate of a plain socket",
        run: rates,
    },
];

/// Adds the VM `web` with the CID 42 and services by their ports.
fn with_services<'a>(host: &'a Host, services: &[(&str, u32)]) -> Result<Broker<'a>> {
    let broker = Broker::start(host)?;
    let mut commands = vec!["vm add web --kernel-cid 42".to_owned()];
    for (name, port) in services {
        commands.push(format!("service register {name} --port {port}"));
    }
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    broker.ok(&commands)?;
    Ok(broker)
}

fn hand_over(host: &Host) -> Result<String> {
    let broker = with_services(host, &[("demo", 5000), ("echo", 5001)])?;
    let shown = broker.json("vm show web")?;
    ensure!(shown["state"] == "unknown", "{shown}");
    let vm = host.vm(42)?;
    let _demo = broker.program("demo whoami")?;
    let seen = vm.tell("connect-from 900 5000 x")?;
    ensure!(
        seen.starts_with("web") && seen.contains("AF_VSOCK, ") && seen.ends_with("peer 42:900"),
        "{seen}"
    );
    let _echo = broker.listen("echo --from web --keep -- cat")?;
    let text = vm.tell("connect 5001 hello")?;
    ensure!(text == "hello", "{text}");
    let checked = vm.tell("echo 5001 1048576")?;
    let held = vm.tell("hold 5001 1")?;
    ensure!(held.starts_with("1 held"), "{held}");
    let listed = broker.json("connections")?;
    ensure!(listed.to_string().contains("web"), "{listed}");
    vm.tell("release")?;
    Ok(format!("{seen}; {checked}"))
}

fn refuse(host: &Host) -> Result<String> {
    let broker = with_services(host, &[("silent", 5001), ("mine", 5002)])?;
    let (vm, other) = (host.vm(42)?, host.vm(43)?);
    let refused = |port: u32| {
        let end = vm.tell_fails(&format!("connect {port} x"))?;
        ensure!(end == "refused", "port {port}: {end}");
        anyhow::Ok(())
    };
    // Not registered; registered, and nobody listens, or only for others.
    refused(5000)?;
    refused(5001)?;
    let _loopback = broker.listen("mine --from loopback --keep -- cat")?;
    refused(5002)?;
    // Only another partition may connect. The port listens for that one, so the kernel accepts, and the broker
    // closes.
    broker.ok(&[
        "vm add other --kernel-cid 44",
        "service register denied --port 5003 --partition other",
    ])?;
    let denied = broker.listen("denied --keep -- cat")?;
    let closed = host.sh(&vm.line("connect 5003 x"))?.text();
    ensure!(!closed.contains('x'), "denied: {closed}");
    broker.ok(&["service allow denied --partition web"])?;
    broker.until("an allowed VM is served", || {
        Ok(vm.tell("connect 5003 x").ok().filter(|text| text == "x"))
    })?;
    broker.ok(&["service disable denied"])?;
    broker.until("a disabled service refuses", || {
        Ok(vm.tell_fails("connect 5003 x").ok())
    })?;
    broker.ok(&["service enable denied"])?;
    broker.until("an enabled service accepts", || {
        Ok(vm.tell("connect 5003 x").ok())
    })?;
    // Both are accepted by the kernel, and closed by the broker before they reach the service.
    let unknown = host.sh(&other.line("connect 5003 x"))?.text();
    ensure!(unknown != "ok x", "a VM without a partition: {unknown}");
    let local = host.sh(&format!("{PROGRAM} host connect 1 5003 x"))?.text();
    ensure!(!local.starts_with("ok x"), "a local process: {local}");
    drop(denied);
    Ok(format!(
        "denied: {closed:?}; a VM without a partition: {unknown:?}; a local process: {local:?}"
    ))
}

fn host_to_guest(host: &Host) -> Result<String> {
    let broker = with_services(host, &[("guests", 6000)])?;
    let off = broker.fails("connect web guests </dev/null")?;
    ensure!(off.contains("off"), "an absent CID: {off}");
    let vm = host.vm(42)?;
    let refused = broker.fails("connect web guests </dev/null")?;
    ensure!(refused.contains("no listener"), "{refused}");
    vm.tell("listen 6000 echo")?;
    let reply = host.ok(&format!(
        "echo hello | {}",
        broker.line("connect web guests")
    ))?;
    ensure!(reply == "hello", "{reply}");
    let peers = vm.tell("peers 6000")?;
    ensure!(peers.starts_with("2:"), "{peers}");
    let digest = "head -c 1048576 /bin/hvsock";
    let there = host.ok(&format!(
        "{digest} | {} | sha256sum",
        broker.line("connect web guests")
    ))?;
    let here = host.ok(&format!("{digest} | sha256sum"))?;
    ensure!(there == here, "1 MiB came back changed");
    vm.tell("hang")?;
    let silent = broker.fails("connect web guests </dev/null")?;
    ensure!(silent.contains("timed out"), "{silent}");
    vm.tell("resume")?;
    let first = |text: &str| text.lines().next().unwrap_or_default().to_owned();
    Ok(format!(
        "{}; {}; {}",
        first(&off),
        first(&refused),
        first(&silent)
    ))
}

fn squatter(host: &Host) -> Result<String> {
    let broker = with_services(host, &[])?;
    let vm = host.vm(42)?;
    let squatter = host.plain_service("listen any 5000 whoami")?;
    broker.ok(&["service register demo --port 5000"])?;
    let _demo = broker.listen("demo --keep -- cat")?;
    let why = broker.until("why names the process", || {
        let why = broker.prints("why parent demo --from web")?;
        Ok(why.contains(PROGRAM).then_some(why))
    })?;
    let stolen = vm.tell("connect 5000 x")?;
    ensure!(stolen.starts_with("you are"), "{stolen}");
    squatter.kill()?;
    broker.until("the broker gets the port", || {
        Ok(vm
            .tell("connect 5000 mine")
            .ok()
            .filter(|text| text == "mine"))
    })?;
    let named = why.lines().find(|line| line.contains(PROGRAM));
    Ok(named.unwrap_or_default().trim().to_owned())
}

fn look_ups(host: &Host) -> Result<String> {
    let squatter = host.plain_service("listen any 920 whoami")?;
    let broker = with_services(host, &[("echo", 5001)])?;
    let vm = host.vm(42)?;
    let problem = broker.until("a problem names the process", || {
        let status = broker.prints("status")?;
        let problem = status.lines().find(|line| line.contains("look up names"));
        Ok(problem
            .filter(|line| line.contains(PROGRAM))
            .map(str::to_owned))
    })?;
    squatter.kill()?;
    let found = broker.until("the broker gets its port", || {
        Ok(vm.tell("lookup echo").ok())
    })?;
    ensure!(found.starts_with("00001389-facb"), "{found}");
    let unknown = vm.tell_fails("lookup nothing")?;
    ensure!(unknown.contains("code 1"), "{unknown}");
    broker.ok(&["service unregister echo"])?;
    let gone = vm.tell_fails("lookup echo")?;
    ensure!(gone.contains("code 1"), "{gone}");
    Ok(problem.trim().to_owned())
}

fn death(host: &Host) -> Result<String> {
    let broker = with_services(host, &[("echo", 5001), ("guests", 6000)])?;
    let vm = host.vm(42)?;
    vm.tell("listen 6000 idle")?;
    let held = host.spawn(&format!(
        "sh -c 'sleep 100 | {}'",
        broker.line("connect web guests")
    ))?;
    broker.until("it is connected", || {
        let listed = broker.json("connections")?;
        Ok(listed.to_string().contains("web").then_some(()))
    })?;
    vm.kill()?;
    broker.until("the connection ends", || {
        let listed = broker.json("connections")?;
        Ok((!listed.to_string().contains("web")).then_some(()))
    })?;
    let said = held.output()?;
    drop(held);
    let off = broker.fails("connect web guests </dev/null")?;
    ensure!(off.contains("off"), "{off}");
    let next = host.vm(42)?;
    next.tell("listen 6000 echo")?;
    let reply = host.ok(&format!("echo new | {}", broker.line("connect web guests")))?;
    ensure!(reply == "new", "{reply}");
    let _echo = broker.listen("echo --keep -- cat")?;
    let text = next.tell("connect 5001 again")?;
    ensure!(text == "again", "{text}");
    Ok(format!("the connected command: {said:?}"))
}

fn flood(host: &Host) -> Result<String> {
    let broker = with_services(host, &[("echo", 5001), ("silent", 5002)])?;
    let vm = host.vm(42)?;
    let _echo = broker.listen("echo --keep --at-once 4 -- true")?;
    vm.tell("connect 5001 ''")?;
    let before = broker.usage()?;
    let count = host.amount(30, 2000);
    let served = vm.tell(&format!("flood 5001 {count}"))?;
    let refusals = host.amount(300, 100_000);
    let refused = vm.tell(&format!("flood 5002 {refusals}"))?;
    ensure!(
        refused.starts_with(&format!("{refusals} refused")),
        "{refused}"
    );
    broker.until("its connections end", || {
        let listed = broker.json("connections")?;
        Ok((!listed.to_string().contains("web")).then_some(()))
    })?;
    let after = broker.usage()?;
    ensure!(
        after.0 <= before.0 + 8 && after.1 <= before.1 + 16_384,
        "descriptors and KiB before {before:?}, after {after:?}"
    );
    let state = vm.tell("state")?;
    ensure!(state.ends_with("violations []"), "{state}");
    Ok(format!(
        "served: {served}; refused: {refused}; descriptors and KiB {before:?}, then {after:?}"
    ))
}

fn rates(host: &Host) -> Result<String> {
    let broker = with_services(host, &[("sink", 5001), ("guests", 6000)])?;
    let vm = host.vm(42)?;
    let bytes = host.amount(4, 64) << 20;
    let _sink = broker.program("sink sink")?;
    let _plain = host.plain_service("listen any 5009 sink")?;
    // Alternating, since the machine's speed varies.
    let mut handed = Vec::new();
    let mut plain = Vec::new();
    for _ in 0..host.amount(1, 3) {
        handed.push(vm.tell(&format!("send 5001 {bytes}"))?);
        plain.push(vm.tell(&format!("send 5009 {bytes}"))?);
    }
    let loopback = host.plain(&format!("send 1 5009 {bytes}"))?;
    Ok(format!(
        "guest to host: handed over {handed:?}, plain {plain:?}; loopback {loopback}"
    ))
}
