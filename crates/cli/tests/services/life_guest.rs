//! The same in a real guest, which has a clock of its own, is paused, and goes down.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hvsock_qemu::{File, Guest};
use serde_json::Value;

use crate::life::{contact, known};
use crate::scene;
use crate::util::{Running, World, eventually, hvsock};

/// For a command in a guest whose processor is emulated.
const LONG: Duration = Duration::from_secs(60);

fn inside(guest: &Guest, command: &str) -> String {
    let output = guest.run(command, LONG).unwrap();
    assert!(output.success(), "{command}: {}", output.stderr_text());
    output.text()
}

/// Starts the agent in a guest, as its service manager would.
fn start_agent(guest: &Guest) {
    guest.spawn("exec hvsock-agent --verbose").unwrap();
}

fn clock(world: &World) -> Value {
    world.json(["vm", "time", "web", "--sync", "--json"])["clock"].take()
}

fn seconds(clock: &Value, name: &str) -> f64 {
    clock[name].as_f64().unwrap()
}

/// How far a guest's clock is ahead by what its `date` says, in seconds; within a quarter of one or
/// so, since that program has to be started.
fn by_date(guest: &Guest) -> f64 {
    let before = since_1970();
    let shown: f64 = inside(guest, "date +%s").parse().unwrap();
    let after = since_1970();
    // `date` cuts off what is less than a second.
    shown + 0.5 - (before + after) / 2.0
}

fn since_1970() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs_f64()
}

#[test]
fn a_guest_is_heard_kept_on_time_through_pauses_and_goes_down_when_asked() {
    let mut world = World::new();
    let program = std::path::PathBuf::from(hvsock().get_program());
    let Some(guest) = scene::guest_with(&world, "web", |config| {
        let files = File::program(&program, "/bin/hvsock").unwrap();
        config.files.extend(files);
    }) else {
        return;
    };
    world.ok(["vm", "wait", "web", "--for", "agent"]);
    world.ok(["vm", "wait", "web"]);
    let shown = world.ok(["vm", "show", "web"]);
    assert!(shown.contains("\nhost name     web\n"), "{shown}");
    assert!(
        world.ok(["status"]).contains(") ready  "),
        "as the tree tells"
    );

    at_rest(&world, &guest);
    set_wrong(&world, &guest);
    paused(&world, &guest);
    lost(&world, &guest);
    notified(&world, &guest);

    // Another broker.
    let boot = known(&world, "vm", "web")["report"]["facts"]["boot_id"].take();
    world.broker().child.kill().unwrap();
    world.broker().child.wait().unwrap();
    world.start_broker();
    guest.replug_vsock().unwrap();
    contact(&world, "vm", "web", "ok");
    assert_eq!(
        known(&world, "vm", "web")["report"]["facts"]["boot_id"],
        boot
    );

    // Rebooted at once, and powered off in an orderly way.
    let arguments = [
        "vm", "shutdown", "web", "--reboot", "--force", "--reason", "a test",
    ];
    let mut rebooting = Running::start(&mut world.command(arguments));
    guest.wait_for_reboot().unwrap();
    play_systemd(&guest);
    start_agent(&guest);
    assert!(rebooting.end().success());
    assert_ne!(
        known(&world, "vm", "web")["report"]["facts"]["boot_id"],
        boot
    );
    starts_as_systemd_says(&world, &guest);
    let down = world.run(["vm", "shutdown", "web"]);
    assert!(
        down.stderr.contains("by: systemctl poweroff"),
        "{}",
        down.stderr
    );
    down.ok();
    guest.wait_for_power_off().unwrap();
    let shown = world.json(["vm", "show", "web", "--json"]);
    assert_eq!(
        (&shown["state"], &shown["guest"]),
        (&"off".into(), &Value::Null)
    );
    let refused = world.run(["vm", "shutdown", "web"]).failed();
    assert!(refused.contains("off"), "{refused}");
}

/// Puts a program into the guest that speaks for systemd, as far as the agent asks it.
fn play_systemd(guest: &Guest) {
    let systemctl = "#!/bin/sh\n\
        case $1 in\n\
        is-system-running) cat /tmp/word;;\n\
        poweroff) exec poweroff -f;;\n\
        esac\n";
    guest.push("/bin/systemctl", systemctl.as_bytes()).unwrap();
    inside(
        guest,
        "chmod +x /bin/systemctl; mkdir -p /run/systemd/system; echo starting >/tmp/word",
    );
}

fn starts_as_systemd_says(world: &World, guest: &Guest) {
    eventually("it starts", || {
        let guest = known(world, "vm", "web");
        guest["report"]["manager"] == "starting" && guest["ready"] == false
    });
    let shown = world.run(["vm", "wait", "web", "--timeout", "0"]).failed();
    assert!(shown.contains("it is running, starting"), "{shown}");
    inside(guest, "echo degraded >/tmp/word");
    world.ok(["vm", "wait", "web"]);
    let shown = world.ok(["vm", "show", "web"]);
    assert!(
        shown.contains("guest         ready (degraded), heartbeat "),
        "{shown}"
    );
}

/// The figures are printed: what they are at rest no busy machine can be held to.
fn at_rest(world: &World, guest: &Guest) {
    let mut best = f64::MAX;
    for _ in 0..5 {
        let clock = clock(world);
        let (offset, error) = (
            seconds(&clock, "offset_seconds"),
            seconds(&clock, "error_seconds"),
        );
        println!("at rest: {:.3} ms ± {:.3} ms", offset * 1e3, error * 1e3);
        assert_eq!(clock["keeper"], "agent");
        best = best.min(offset.abs());
        thread::sleep(Duration::from_secs(1));
    }
    assert!(best < 0.05, "{best} s at the best");
    let date = by_date(guest);
    assert!(date.abs() < 3.0, "{date} s by its date");
}

fn set_wrong(world: &World, guest: &Guest) {
    inside(guest, "date -s '2001-01-01 00:00:00'");
    let began = Instant::now();
    eventually("the clock is right again", || by_date(guest).abs() < 3.0);
    println!("set wrong: right again after {:.1?}", began.elapsed());
    assert!(seconds(&clock(world), "offset_seconds").abs() < 0.5);
}

fn paused(world: &World, guest: &Guest) {
    guest.pause().unwrap();
    contact(world, "vm", "web", "paused");
    thread::sleep(Duration::from_secs(8));
    contact(world, "vm", "web", "paused");
    guest.resume().unwrap();
    let began = Instant::now();
    contact(world, "vm", "web", "ok");
    let heard = began.elapsed();
    // It stood still for eight seconds, and nobody asks for a measurement.
    eventually("the clock is right again", || by_date(guest).abs() < 3.0);
    println!(
        "resumed: heard after {heard:.1?}, right by its date after {:.1?}",
        began.elapsed()
    );
    assert!(seconds(&clock(world), "offset_seconds").abs() < 0.5);
}

fn lost(world: &World, guest: &Guest) {
    for (signal, back) in [("STOP", "kill -CONT $(pidof hvsock-agent)"), ("KILL", "")] {
        let pid = inside(guest, "pidof hvsock-agent");
        inside(guest, &format!("kill -{signal} {pid}"));
        let began = Instant::now();
        contact(world, "vm", "web", "lost");
        println!("SIG{signal}: noticed after {:.1?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(10));
        match back {
            "" => start_agent(guest),
            command => drop(inside(guest, command)),
        }
        contact(world, "vm", "web", "ok");
    }
}

fn notified(world: &World, guest: &Guest) {
    inside(
        guest,
        "printf 'READY=1\\nSTATUS=as systemd\\n' | hvsock connect parent 903",
    );
    let notice = known(world, "vm", "web")["notice"].take();
    assert_eq!(
        (&notice["ready"], &notice["status"]),
        (&true.into(), &"as systemd".into())
    );
}
