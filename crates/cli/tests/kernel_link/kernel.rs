//! What the kernel itself does, without a broker: the ground that the link stands on.

use anyhow::{Result, ensure};

use crate::host::{Host, PROGRAM, USER};
use crate::report::Scenario;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "the local context id of a host with vhost_vsock is 2",
        run: |host| {
            let cid = host.plain("cid")?;
            ensure!(cid == "2", "{cid}");
            Ok(cid)
        },
    },
    Scenario {
        name: "a port without a socket, and one that does not listen, reset a guest's connect",
        run: resets,
    },
    Scenario {
        name: "a guest's connection has its context id as its peer, and a forged one is dropped",
        run: identity,
    },
    Scenario {
        name: "a host reaches a guest, both ways, with half-closes and every byte",
        run: host_to_guest,
    },
    Scenario {
        name: "a connect to a guest that refuses fails at once, to a silent one after 2 s",
        run: failures,
    },
    Scenario {
        name: "a VM that does not run lets a connect time out, or fail since Linux 7",
        run: not_running,
    },
    Scenario {
        name: "a backlog of N admits N+1 connections, and resets the next",
        run: backlog,
    },
    Scenario {
        name: "loopback is reached at 1 and 2, and its peers have the context id 1",
        run: loopback,
    },
    Scenario {
        name: "a socket of any context id and one of a specific id exclude each other on a port",
        run: any_and_specific,
    },
    Scenario {
        name: "ports below 1024 need a capability",
        run: privileged,
    },
    Scenario {
        name: "a guest's reboot is seen at the next send, its VMM's death at once",
        run: ends,
    },
    Scenario {
        name: "a context id is one VM's at a time, as long as a process holds the device",
        run: one_at_a_time,
    },
    Scenario {
        name: "plain sockets: connects a second, and rates beside loopback's",
        run: rates,
    },
];

fn resets(host: &Host) -> Result<String> {
    let vm = host.vm(42)?;
    let absent = vm.tell_fails("connect 5000 x")?;
    let _bound = host.plain_service("bind any 5001")?;
    let bound = vm.tell_fails("connect 5001 x")?;
    ensure!(
        absent == "refused" && bound == "refused",
        "{absent}, {bound}"
    );
    let _listens = host.plain_service("listen any 5002 whoami")?;
    let kind = vm.tell_fails("connect-seqpacket 5002")?;
    ensure!(kind == "refused", "seqpacket: {kind}");
    Ok("reset; a listener for streams resets a seqpacket connect".into())
}

fn identity(host: &Host) -> Result<String> {
    let (vm, other) = (host.vm(42)?, host.vm(43)?);
    let service = host.plain_service("listen any 5000 whoami")?;
    let seen = vm.tell("connect-from 700 5000 x")?;
    ensure!(seen == "you are 42:700", "{seen}");
    let seen = other.tell("connect 5000 x")?;
    ensure!(seen.starts_with("you are 43:"), "{seen}");
    let forged = vm.tell("forge 5000 1 2 43 99 4294967338")?;
    ensure!(
        forged.starts_with("0 answers") && forged.ends_with("connected"),
        "{forged}"
    );
    vm.tell("packets 5000 2 3 4 5 6 7 0 8 77")?;
    let sibling = vm.tell_fails("connect-to 43 5000 x")?;
    ensure!(sibling == "timed-out" || sibling == "refused", "{sibling}");
    let log = service.output()?;
    ensure!(
        !log.contains("peer 1:") && !log.contains("peer 99:"),
        "{log}"
    );
    Ok(format!("42:700; {forged}; to a sibling: {sibling}"))
}

fn host_to_guest(host: &Host) -> Result<String> {
    let vm = host.vm(42)?;
    vm.tell("listen 6000 echo")?;
    let reply = host.plain("connect 42 6000 hello")?;
    ensure!(reply.starts_with("hello after"), "{reply}");
    let peers = vm.tell("peers 6000")?;
    ensure!(peers.starts_with("2:"), "{peers}");
    let to = host.plain("echo 42 6000 1048576")?;
    let _echo = host.plain_service("listen any 5000 echo")?;
    let from = vm.tell("echo 5000 1048576")?;
    let state = vm.tell("state")?;
    ensure!(state.ends_with("violations []"), "{state}");
    Ok(format!("host to guest {to}, guest to host {from}"))
}

fn failures(host: &Host) -> Result<String> {
    let vm = host.vm(42)?;
    let absent = host.plain_fails("connect 77 6000 x")?;
    ensure!(absent.starts_with("ENODEV "), "{absent}");
    let refused = host.plain_fails("connect 42 6000 x")?;
    ensure!(refused.starts_with("ECONNRESET "), "{refused}");
    vm.tell("hang")?;
    let silent = host.plain_fails("connect-2s 42 6000 x")?;
    ensure!(silent.starts_with("ETIMEDOUT "), "{silent}");
    vm.tell("resume")?;
    Ok(format!(
        "absent {absent}, refused {refused}, silent {silent}"
    ))
}

fn not_running(host: &Host) -> Result<String> {
    let vm = host.vm(42)?;
    vm.tell("listen 6000 echo")?;
    vm.tell("pause")?;
    let failed = host.plain_fails("connect-2s 42 6000 x")?;
    let expected = match host.version() {
        version if version >= (7, 0) => "EHOSTUNREACH ",
        _ => "ETIMEDOUT ",
    };
    ensure!(failed.starts_with(expected), "{failed}");
    vm.tell("resume")?;
    let reply = host.plain("connect 42 6000 again")?;
    ensure!(reply.starts_with("again"), "{reply}");
    Ok(failed)
}

fn backlog(host: &Host) -> Result<String> {
    let vm = host.vm(42)?;
    let _full = host.plain_service("listen any 5000 backlog 2 no-accept")?;
    let held = vm.tell("hold 5000 5")?;
    ensure!(held == "3 held, 2 refused", "{held}");
    // Accepted, and closed at once: to the guest a success.
    let _closes = host.plain_service("listen any 5001 close")?;
    let closed = vm.tell("connect 5001 ''")?;
    ensure!(closed.is_empty(), "{closed}");
    Ok(format!("with a backlog of 2: {held}"))
}

fn loopback(host: &Host) -> Result<String> {
    let _service = host.plain_service("listen any 5000 whoami")?;
    for cid in [1, 2] {
        let seen = host.plain(&format!("connect {cid} 5000 x"))?;
        ensure!(seen.starts_with("you are 1:"), "{seen}");
    }
    Ok("1".into())
}

fn any_and_specific(host: &Host) -> Result<String> {
    let refuses = |first: &str, then: &str| {
        let _first = host.plain_service(&format!("bind {first} 5000"))?;
        let refused = host.plain_fails(&format!("bind {then} 5000"))?;
        ensure!(refused == "EADDRINUSE", "{first}, then {then}: {refused}");
        Ok(())
    };
    refuses("any", "any")?;
    refuses("any", "2")?;
    refuses("2", "any")?;
    // A service of CID 2 is not reached by loopback's CID 1, and one of CID 1 not by guests.
    let vm = host.vm(42)?;
    let _two = host.plain_service("listen 2 5001 whoami")?;
    let _one = host.plain_service("listen 1 5002 whoami")?;
    let one = host.sh(&format!("{PROGRAM} host connect 1 5001 x"))?.text();
    let guest = vm.tell("connect 5001 x")?;
    ensure!(guest.starts_with("you are 42:"), "{guest}");
    let local = host.sh(&format!(
        "{PROGRAM} tell /run/none x; {PROGRAM} host connect 1 5002 x"
    ))?;
    let from_guest = host.sh(&vm.line("connect 5002 x"))?.text();
    Ok(format!(
        "bound to 2: from loopback {one:?}, from a guest {guest:?}; bound to 1: from loopback {:?}, from a \
         guest {from_guest:?}",
        local.text().lines().last().unwrap_or_default()
    ))
}

fn privileged(host: &Host) -> Result<String> {
    let command = format!("su {USER} -c '{PROGRAM} host bind any 1023'");
    let refused = host.fails(&command)?;
    ensure!(refused == "error EACCES", "{refused}");
    let _allowed = host.plain_service("bind any 1023")?;
    Ok("EACCES".into())
}

fn ends(host: &Host) -> Result<String> {
    let vm = host.vm(42)?;
    vm.tell("listen 6000 idle")?;
    let idle = host.spawn(&format!("{PROGRAM} host hold 42 6000"))?;
    idle.prints("connected")?;
    vm.tell("reboot")?;
    // Time for the kernel to tell, if it did.
    let still: String = host
        .sh(&format!("sleep 0.5; ps | grep -c '{PROGRAM} host hol[d]'"))?
        .text();
    ensure!(still != "0", "the reboot was told: {}", idle.output()?);
    let start = std::time::Instant::now();
    vm.kill()?;
    let end = idle.end()?;
    ensure!(end.contains("ECONNRESET"), "{end}");
    let died = start.elapsed().as_millis();
    Ok(format!(
        "no end at the reboot; at the death ECONNRESET within {died} ms of the kill's start"
    ))
}

fn one_at_a_time(host: &Host) -> Result<String> {
    let vm = host.vm_with(42, "--child")?;
    vm.tell("listen 6000 echo")?;
    let second = host
        .spawn(&format!("{PROGRAM} guest --cid 42 --control /run/second"))?
        .end()?;
    ensure!(
        second.contains("Address in use") || second.contains("in use"),
        "{second}"
    );
    // The VMM dies; a child of it has inherited the device.
    vm.tell_fails("die")?;
    let held = host
        .spawn(&format!("{PROGRAM} guest --cid 42 --control /run/third"))?
        .end()?;
    ensure!(held.contains("in use"), "{held}");
    let zombie = host.plain_fails("connect-2s 42 6000 x")?;
    host.ok(&format!("kill -9 $(cat {}.child)", vm.control()))?;
    let next = host.vm(42)?;
    next.tell("listen 6000 echo")?;
    let reply = host.plain("connect 42 6000 new")?;
    ensure!(reply.starts_with("new"), "{reply}");
    Ok(format!(
        "in use; while only a child holds it, a connect gets {zombie}"
    ))
}

fn rates(host: &Host) -> Result<String> {
    let vm = host.vm(42)?;
    let _closes = host.plain_service("listen any 5000 close")?;
    let count = host.amount(100, 5000);
    let flood = vm.tell(&format!("flood 5000 {count}"))?;
    let refused = vm.tell(&format!("flood 5009 {count}"))?;
    ensure!(
        refused.starts_with(&format!("{count} refused")),
        "{refused}"
    );
    let _sink = host.plain_service("listen any 5001 sink")?;
    vm.tell("listen 6000 sink")?;
    let bytes = host.amount(4, 64) << 20;
    let up = vm.tell(&format!("send 5001 {bytes}"))?;
    let down = host.plain(&format!("send 42 6000 {bytes}"))?;
    let local = host.plain(&format!("send 1 5001 {bytes}"))?;
    Ok(format!(
        "{flood}; {refused}; guest to host {up}; host to guest {down}; loopback {local}"
    ))
}
