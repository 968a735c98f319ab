//! Filesystems at rest: real ones, in a real guest.

use std::time::{Duration, Instant};

use hvsock_qemu::{File, Guest, Kit};
use hvsock_testkit::require;
use serde_json::Value;

use crate::scene::{self, BOX, Scene};
use crate::util::{PATIENCE, World, eventually};

/// Longer than any of this takes, so that what ends earlier ended for another reason.
const LONG: &str = "300";

/// A filesystem at /srv/data, and one in a file on it at /srv/inner; and a hook that keeps a diary.
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
printf '#!/bin/sh\\necho $1 >>/diary\\n' >/etc/hvsock/freeze.d/10-diary
chmod +x /etc/hvsock/freeze.d/10-diary
";

/// Whom to kill.
#[derive(Clone, Copy)]
enum Victim {
    Agent,
    Freezer,
    Both,
}

/// Kills the agent, the process that freezes for it, or both at once.
fn kill(guest: &Guest, victim: Victim) {
    let test = match victim {
        Victim::Agent => "! grep -q freezer $process/cmdline",
        Victim::Freezer => "grep -q freezer $process/cmdline",
        Victim::Both => "true",
    };
    // Stopped first, so that none sees the other go.
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
    let output = guest.run(script, PATIENCE).unwrap();
    assert!(output.success(), "{script}: {}", output.stderr_text());
    output.text()
}

/// Waits until the hook has heard so much since the last time.
fn heard(guest: &Guest, errands: &str) {
    eventually("the hook has heard of it", || {
        run(guest, "cat /diary 2>/dev/null; true").replace('\n', " ") == errands
    });
    run(guest, "rm /diary");
}

/// Writes to both filesystems, which takes until they are thawed. It says when it has.
struct Writers<'a>(Vec<hvsock_qemu::Spawned<'a>>);

impl<'a> Writers<'a> {
    fn start(guest: &'a Guest) -> Self {
        let places = ["/srv/data", "/srv/inner"];
        Self(
            places
                .map(|place| guest.spawn(&format!("echo >{place}/written")).unwrap())
                .into(),
        )
    }

    fn all_wait(&self) -> bool {
        self.0
            .iter()
            .all(|writer| writer.status().unwrap().is_none())
    }

    fn succeed(self) {
        for writer in &self.0 {
            assert!(writer.wait(PATIENCE).unwrap().success());
        }
    }
}

/// Long enough for a writer to write, were it let.
fn a_while() {
    std::thread::sleep(Duration::from_millis(700));
}

fn mounts(frozen: &Value) -> Vec<&str> {
    let frozen = frozen["frozen"].as_array().unwrap().iter();
    frozen.map(|one| one["mount"].as_str().unwrap()).collect()
}

#[test]
fn a_guests_filesystems_are_frozen_and_always_thawed_again() {
    let Some(kit) = require::found(Kit::find()) else {
        return;
    };
    let world = World::new();
    let module = kit.module("loop").expect("the kernel has loop devices");
    let guest = scene::guest_with(&world, "web", |config| {
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
    eventually("the agent says that it offers it", || {
        let all = world.json(["vm", "integration", "web", "--json"]);
        let mut all = all.as_array().unwrap().iter();
        all.any(|one| one["key"] == "freeze" && one["offered"] == true)
    });

    a_snapshot_is_whole(&world, &guest);
    by_the_host(&world, &guest);
    by_the_time_limit(&world, &guest);
    around_a_command(&world, &guest);
    when_the_freezer_is_killed(&world, &guest);
    when_a_hook_fails(&world, &guest);
    when_the_agent_is_killed(&world, &guest);
    when_both_are_killed(&world, &guest);
}

/// What was written just before is in a copy of the disk that was made meanwhile.
fn a_snapshot_is_whole(world: &World, guest: &Guest) {
    run(guest, "seq 1000 >/srv/data/before");
    world.ok(["vm", "freeze", "web", "--timeout", LONG]);
    run(guest, "cp /data.img /copy.img");
    world.ok(["vm", "thaw", "web"]);
    let found = "mkdir /copy && mount -t ext4 -o ro,loop /copy.img /copy && tail -n 1 /copy/before";
    assert_eq!(run(guest, found), "1000");
    run(guest, "umount /copy && rm /copy.img");
    heard(guest, "freeze thaw");
}

fn by_the_host(world: &World, guest: &Guest) {
    let frozen = world.json(["vm", "freeze", "web", "--timeout", LONG, "--json"]);
    // What lies on the other comes first.
    assert_eq!(mounts(&frozen), ["/srv/inner", "/srv/data"]);
    heard(guest, "freeze");
    let writers = Writers::start(guest);
    a_while();
    assert!(writers.all_wait());
    let again = world.run(["vm", "freeze", "web"]).failed();
    assert!(again.contains("a freeze is active"), "{again}");
    // Nothing of the agent's writes meanwhile.
    let pair = world.run(["kvp", "set", "web", "a", "b"]).failed();
    assert!(pair.contains("frozen"), "{pair}");
    let other = world.run(["vm", "thaw", "web", "--id", "1"]).failed();
    assert!(other.contains("nothing is frozen"), "{other}");
    assert!(writers.all_wait());

    let id = frozen["id"].to_string();
    world.ok(["vm", "thaw", "web", "--id", &id]);
    writers.succeed();
    heard(guest, "thaw");
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
    heard(guest, "freeze thaw freeze thaw");
}

fn by_the_time_limit(world: &World, guest: &Guest) {
    world.ok(["vm", "freeze", "web", "--timeout", "3"]);
    let writers = Writers::start(guest);
    a_while();
    let waited = writers.all_wait();
    writers.succeed();
    // On a machine so slow that the limit was over before they began there is nothing to see.
    println!("the writers had to wait: {waited}");
    let late = world.run(["vm", "thaw", "web"]).failed();
    assert!(late.contains("the time limit"), "{late}");
    heard(guest, "freeze thaw");
}

fn around_a_command(world: &World, guest: &Guest) {
    let freeze = ["vm", "freeze", "web", "--timeout", LONG, "--", "sh", "-c"];
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
    heard(guest, "freeze thaw");
    let done = world.run(freeze.into_iter().chain(["exit 7"]));
    assert_eq!(done.code, Some(7), "{}", done.stderr);
    Writers::start(guest).succeed();
    heard(guest, "freeze thaw");

    let slow = world.run(["vm", "freeze", "web", "--timeout", "1", "--", "sleep", "3"]);
    let slow = slow.failed();
    assert!(slow.contains("not consistent"), "{slow}");
    heard(guest, "freeze thaw");
}

fn when_the_freezer_is_killed(world: &World, guest: &Guest) {
    world.ok(["vm", "freeze", "web", "--timeout", LONG]);
    let writers = Writers::start(guest);
    a_while();
    assert!(writers.all_wait());
    kill(guest, Victim::Freezer);
    writers.succeed();
    let lost = world.run(["vm", "thaw", "web"]).failed();
    assert!(lost.contains("had been killed"), "{lost}");
    heard(guest, "freeze thaw");
}

fn when_a_hook_fails(world: &World, guest: &Guest) {
    let hook = "/etc/hvsock/freeze.d/20-no";
    run(
        guest,
        &format!("printf '#!/bin/sh\\n[ $1 = thaw ]\\n' >{hook}; chmod +x {hook}"),
    );
    let refused = world.run(["vm", "freeze", "web"]).failed();
    assert!(refused.contains("20-no failed"), "{refused}");
    Writers::start(guest).succeed();
    heard(guest, "freeze thaw");
    run(guest, &format!("rm {hook}"));
}

fn when_the_agent_is_killed(world: &World, guest: &Guest) {
    world.ok(["vm", "freeze", "web", "--timeout", LONG]);
    let writers = Writers::start(guest);
    a_while();
    assert!(writers.all_wait());
    let begin = Instant::now();
    kill(guest, Victim::Agent);
    writers.succeed();
    println!("thawed {:?} after the agent's end", begin.elapsed());
    // Its hooks hear of it all the same.
    heard(guest, "freeze thaw");
}

fn when_both_are_killed(world: &World, guest: &Guest) {
    guest.spawn("exec hvsock-agent").unwrap();
    eventually("the next agent freezes", || {
        let frozen = world.run(["vm", "freeze", "web", "--timeout", LONG]);
        frozen.code == Some(0)
    });
    let writers = Writers::start(guest);
    kill(guest, Victim::Both);
    a_while();
    assert!(writers.all_wait());
    guest.spawn("exec hvsock-agent").unwrap();
    writers.succeed();
    heard(guest, "freeze thaw");
}

#[test]
fn a_container_has_no_filesystems_of_its_own_to_freeze() {
    let scene = Scene::new();
    let refused = scene.run(["vm", "freeze", BOX]).failed();
    assert!(refused.contains("its host's"), "{refused}");
    let thawed = scene.run(["vm", "thaw", BOX]).failed();
    assert!(thawed.contains("nothing is frozen"), "{thawed}");
}
