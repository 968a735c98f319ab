//! Freezing and thawing of real filesystems in a real guest.

use std::time::Instant;

use hvsock_guests::{File, Guest, Kit, Vmm};
use hvsock_testkit::require;
use serde_json::Value;

use crate::fixture::{self, BOX, Fixture};
use crate::util::{TIMEOUT, World, eventually};

/// A freeze timeout in seconds, longer than any step takes: a freeze that ends earlier has another reason.
const FREEZE_TIMEOUT: &str = "300";

/// Mounts a filesystem at /srv/data and one in a file on it at /srv/inner, and installs a hook that logs each
/// call to /hook.log.
const DISKS: &str = "
set -e
insmod /loop.ko
mkdir -p /srv/data /srv/inner /etc/hvsock/freeze.d
dd if=/dev/zero of=/data.img bs=1M count=24
mke2fs -F /data.img
mount -t ext4 -o loop /data.img /srv/data
dd if=/dev/zero of=/srv/data/inner.img bs=1M count=4
mke2fs -F /srv/data/inner.img
mount -t ext4 -o loop /srv/data/inner.img /srv/inner
printf '#!/bin/sh\\necho $1 >>/hook.log\\n' >/etc/hvsock/freeze.d/10-log
chmod +x /etc/hvsock/freeze.d/10-log
";

/// The processes to kill.
#[derive(Clone, Copy)]
enum Victim {
    Agent,
    Freezer,
    Both,
}

/// Kills the agent, its freezer process, or both at once.
fn kill(guest: &Guest, victim: Victim) {
    let test = match victim {
        Victim::Agent => "! grep -q freezer $process/cmdline",
        Victim::Freezer => "grep -q freezer $process/cmdline",
        Victim::Both => "true",
    };
    // Stops them first, so that neither sees the end of the other.
    let script = format!(
        "victims=
        for process in /proc/[0-9]*; do
            case $(readlink $process/exe) in */hvsock-agent) ;; *) continue ;; esac
            {test} && victims=\"$victims ${{process#/proc/}}\"
        done
        kill -STOP $victims && kill -KILL $victims"
    );
    run(guest, &script);
}

fn run(guest: &Guest, script: &str) -> String {
    let output = guest.run(script, TIMEOUT).unwrap();
    assert!(output.success(), "{script}: {}", output.stderr_text());
    output.text()
}

/// Waits until the hook was called with exactly these arguments since the last check.
fn expect_hook_calls(guest: &Guest, calls: &str) {
    eventually("the hook has been called", || {
        run(guest, "cat /hook.log 2>/dev/null; true").replace('\n', " ") == calls
    });
    run(guest, "rm /hook.log");
}

/// Two processes that write to the two filesystems, and thus block while these are frozen.
struct Writers<'a>(Vec<hvsock_guests::Spawned<'a>>);

impl<'a> Writers<'a> {
    fn start(guest: &'a Guest) -> Self {
        let folders = ["/srv/data", "/srv/inner"];
        Self(
            folders
                .map(|folder| guest.spawn(&format!("echo >{folder}/written")).unwrap())
                .into(),
        )
    }

    /// Whether both writers have not ended.
    fn all_blocked(&self) -> bool {
        self.0
            .iter()
            .all(|writer| writer.status().unwrap().is_none())
    }

    fn succeed(self) {
        for writer in &self.0 {
            assert!(writer.wait(TIMEOUT).unwrap().success());
        }
    }
}

/// Waits until both writers block in a write to a frozen filesystem (state `D`). A writer that is not
/// blocked would end.
fn wait_until_blocked(guest: &Guest) {
    eventually("both writers block", || {
        run(guest, "cat /proc/[0-9]*/stat | grep -c ' (sh) D ' || :") == "2"
    });
}

fn mounts(frozen: &Value) -> Vec<&str> {
    let frozen = frozen["frozen"].as_array().unwrap().iter();
    frozen.map(|one| one["mount"].as_str().unwrap()).collect()
}

#[test]
fn filesystems_of_a_real_guest_are_frozen_and_always_thawed() {
    let Some(kit) = require::found(Kit::find_for(Vmm::Qemu)) else {
        return;
    };
    let world = World::new();
    let module = kit.module("loop").expect("the kernel has loop devices");
    let guest = fixture::qemu_guest(&world, "web", |config| {
        config.files.push(File::bytes("/loop.ko", 0o644, module));
    });
    let Some(guest) = guest else {
        return;
    };
    let nothing = world.run(["vm", "freeze", "web"]).failed();
    assert!(
        nothing.contains("no filesystem here can be frozen"),
        "{nothing}"
    );
    run(&guest, DISKS);
    eventually("the agent reports that it offers freeze", || {
        let all = world.json(["vm", "integration", "web", "--json"]);
        let mut all = all.as_array().unwrap().iter();
        all.any(|one| one["key"] == "freeze" && one["offered"] == true)
    });

    a_snapshot_is_consistent(&world, &guest);
    the_host_thaws(&world, &guest);
    the_timeout_thaws(&world, &guest);
    a_freeze_around_a_command(&world, &guest);
    a_killed_freezer_thaws(&world, &guest);
    a_failing_hook_thaws(&world, &guest);
    a_killed_agent_thaws(&world, &guest);
    the_next_agent_thaws(&world, &guest);
}

/// A copy of the disk during a freeze contains the data that was written just before.
fn a_snapshot_is_consistent(world: &World, guest: &Guest) {
    run(guest, "seq 1000 >/srv/data/before");
    world.ok(["vm", "freeze", "web", "--timeout", FREEZE_TIMEOUT]);
    run(guest, "cp /data.img /copy.img");
    world.ok(["vm", "thaw", "web"]);
    let found = "mkdir /copy && mount -t ext4 -o ro,loop /copy.img /copy && tail -n 1 /copy/before";
    assert_eq!(run(guest, found), "1000");
    run(guest, "umount /copy && rm /copy.img");
    expect_hook_calls(guest, "freeze thaw");
}

fn the_host_thaws(world: &World, guest: &Guest) {
    let frozen = world.json(["vm", "freeze", "web", "--timeout", FREEZE_TIMEOUT, "--json"]);
    // The filesystem in a file is frozen before the one that has the file.
    assert_eq!(mounts(&frozen), ["/srv/inner", "/srv/data"]);
    expect_hook_calls(guest, "freeze");
    let writers = Writers::start(guest);
    wait_until_blocked(guest);
    assert!(writers.all_blocked());
    let again = world.run(["vm", "freeze", "web"]).failed();
    assert!(again.contains("a freeze is active"), "{again}");
    // The agent refuses to write meanwhile.
    let pair = world.run(["kvp", "set", "web", "a", "b"]).failed();
    assert!(pair.contains("frozen"), "{pair}");
    let other = world.run(["vm", "thaw", "web", "--id", "1"]).failed();
    assert!(other.contains("nothing is frozen"), "{other}");
    assert!(writers.all_blocked());

    let id = frozen["id"].to_string();
    world.ok(["vm", "thaw", "web", "--id", &id]);
    writers.succeed();
    expect_hook_calls(guest, "thaw");
    world.ok(["kvp", "set", "web", "a", "b"]);
    let again = world.run(["vm", "thaw", "web", "--id", &id]).failed();
    assert!(again.contains("another command"), "{again}");

    let only = world.json(["vm", "freeze", "web", "--mount", "/srv/inner", "--json"]);
    assert_eq!(mounts(&only), ["/srv/inner"]);
    world.ok(["vm", "thaw", "web"]);
    let not = world
        .run(["vm", "freeze", "web", "--mount", "/proc"])
        .failed();
    assert!(not.contains("/proc is not the mount point"), "{not}");
    expect_hook_calls(guest, "freeze thaw freeze thaw");
}

fn the_timeout_thaws(world: &World, guest: &Guest) {
    world.ok(["vm", "freeze", "web", "--timeout", "3"]);
    let writers = Writers::start(guest);
    let blocked = writers.all_blocked();
    writers.succeed();
    // On a slow machine the timeout may elapse before the writers start.
    println!("the writers were blocked: {blocked}");
    let late = world.run(["vm", "thaw", "web"]).failed();
    assert!(late.contains("the time limit"), "{late}");
    expect_hook_calls(guest, "freeze thaw");
}

fn a_freeze_around_a_command(world: &World, guest: &Guest) {
    let freeze = [
        "vm",
        "freeze",
        "web",
        "--timeout",
        FREEZE_TIMEOUT,
        "--",
        "sh",
        "-c",
    ];
    let during = format!(
        "{} --dir {} vm freeze web",
        env!("CARGO_BIN_EXE_hvsock"),
        world.dir().display()
    );
    let done = world.run(freeze.into_iter().chain([during.as_str()]));
    assert_eq!(done.code, Some(1));
    assert!(
        done.stderr.contains("a freeze is active"),
        "{}",
        done.stderr
    );
    Writers::start(guest).succeed();
    expect_hook_calls(guest, "freeze thaw");
    let done = world.run(freeze.into_iter().chain(["exit 7"]));
    assert_eq!(done.code, Some(7), "{}", done.stderr);
    Writers::start(guest).succeed();
    expect_hook_calls(guest, "freeze thaw");

    let slow = world.run(["vm", "freeze", "web", "--timeout", "1", "--", "sleep", "3"]);
    let slow = slow.failed();
    assert!(slow.contains("not consistent"), "{slow}");
    expect_hook_calls(guest, "freeze thaw");
}

fn a_killed_freezer_thaws(world: &World, guest: &Guest) {
    world.ok(["vm", "freeze", "web", "--timeout", FREEZE_TIMEOUT]);
    let writers = Writers::start(guest);
    wait_until_blocked(guest);
    assert!(writers.all_blocked());
    kill(guest, Victim::Freezer);
    writers.succeed();
    let lost = world.run(["vm", "thaw", "web"]).failed();
    assert!(lost.contains("was killed"), "{lost}");
    expect_hook_calls(guest, "freeze thaw");
}

fn a_failing_hook_thaws(world: &World, guest: &Guest) {
    let hook = "/etc/hvsock/freeze.d/20-no";
    run(
        guest,
        &format!("printf '#!/bin/sh\\n[ $1 = thaw ]\\n' >{hook}; chmod +x {hook}"),
    );
    let refused = world.run(["vm", "freeze", "web"]).failed();
    assert!(refused.contains("20-no failed"), "{refused}");
    Writers::start(guest).succeed();
    expect_hook_calls(guest, "freeze thaw");
    run(guest, &format!("rm {hook}"));
}

fn a_killed_agent_thaws(world: &World, guest: &Guest) {
    world.ok(["vm", "freeze", "web", "--timeout", FREEZE_TIMEOUT]);
    let writers = Writers::start(guest);
    wait_until_blocked(guest);
    assert!(writers.all_blocked());
    let begin = Instant::now();
    kill(guest, Victim::Agent);
    writers.succeed();
    println!("thawed {:?} after the agent's end", begin.elapsed());
    // The freezer calls the thaw hooks all the same.
    expect_hook_calls(guest, "freeze thaw");
}

/// Nothing thaws the filesystems if the agent and its freezer are killed at once, until an agent starts.
fn the_next_agent_thaws(world: &World, guest: &Guest) {
    guest.spawn("exec hvsock-agent").unwrap();
    eventually("the next agent accepts a freeze", || {
        let frozen = world.run(["vm", "freeze", "web", "--timeout", FREEZE_TIMEOUT]);
        frozen.code == Some(0)
    });
    let writers = Writers::start(guest);
    wait_until_blocked(guest);
    kill(guest, Victim::Both);
    eventually("agent and freezer have ended", || {
        run(guest, "pidof hvsock-agent || :").is_empty()
    });
    assert!(writers.all_blocked());
    guest.spawn("exec hvsock-agent").unwrap();
    writers.succeed();
    expect_hook_calls(guest, "freeze thaw");
}

#[test]
fn a_container_has_no_own_filesystems_to_freeze() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let refused = fixture.run(["vm", "freeze", BOX]).failed();
    assert!(refused.contains("its host's"), "{refused}");
    let thawed = fixture.run(["vm", "thaw", BOX]).failed();
    assert!(thawed.contains("nothing is frozen"), "{thawed}");
}
