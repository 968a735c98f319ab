//! Liveness of a real guest, which has its own clock, is paused, rebooted and powered off.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hvsock_guests::{File, Guest};
use serde_json::Value;

use crate::fixture;
use crate::liveness::{guest_info, wait_for_agent};
use crate::util::{Running, World, eventually, hvsock};

/// The timeout of a command in a guest, whose processor is emulated.
const GUEST_TIMEOUT: Duration = Duration::from_secs(60);

fn run_in_guest(guest: &Guest, command: &str) -> String {
    let output = guest.run(command, GUEST_TIMEOUT).unwrap();
    assert!(output.success(), "{command}: {}", output.stderr_text());
    output.text()
}

/// Starts the agent in a guest, as its service manager does.
fn start_agent(guest: &Guest) {
    guest.spawn("exec hvsock-agent --verbose").unwrap();
}

fn clock(world: &World) -> Value {
    world.json(["vm", "time", "web", "--sync", "--json"])["clock"].take()
}

fn seconds(clock: &Value, name: &str) -> f64 {
    clock[name].as_f64().unwrap()
}

/// The offset of the guest's clock by its program `date`, in seconds: positive if it is ahead. The error is
/// about 0.5 s plus half the duration of the command.
fn date_offset(guest: &Guest) -> f64 {
    let before = since_1970();
    let shown: f64 = run_in_guest(guest, "date +%s").parse().unwrap();
    let after = since_1970();
    // `date` truncates to seconds.
    shown + 0.5 - (before + after) / 2.0
}

fn since_1970() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs_f64()
}

#[test]
fn a_real_guest_reports_heartbeats_keeps_time_and_shuts_down() {
    let mut world = World::new();
    let program = std::path::PathBuf::from(hvsock().get_program());
    let Some(guest) = fixture::qemu_guest(&world, "web", |config| {
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
        "status does not show that it is ready"
    );

    the_clock_is_exact(&world, &guest);
    a_wrong_clock_is_corrected(&world, &guest);
    the_clock_is_corrected_after_a_pause(&world, &guest);
    a_silent_agent_is_reported_lost(&world, &guest);
    a_notification_is_shown(&world, &guest);

    // The next broker.
    let boot = guest_info(&world, "vm", "web")["report"]["facts"]["boot_id"].take();
    world.broker().kill();
    world.start_broker();
    guest.replug_vsock().unwrap();
    wait_for_agent(&world, "vm", "web", "connected");
    assert_eq!(
        guest_info(&world, "vm", "web")["report"]["facts"]["boot_id"],
        boot
    );

    // A forced reboot, and later an orderly power-off.
    let arguments = [
        "vm", "shutdown", "web", "--reboot", "--force", "--reason", "a test",
    ];
    let mut rebooting = Running::start(&mut world.command(arguments));
    guest.wait_for_reboot().unwrap();
    install_fake_systemd(&guest);
    start_agent(&guest);
    assert!(rebooting.end().success());
    assert_ne!(
        guest_info(&world, "vm", "web")["report"]["facts"]["boot_id"],
        boot
    );
    readiness_follows_systemd(&world, &guest);
    let down = world.run(["vm", "shutdown", "web"]);
    assert!(
        down.stderr.contains("is shutting down: systemctl poweroff"),
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

/// Installs a fake `systemctl` in the guest, with the two subcommands that the agent uses.
fn install_fake_systemd(guest: &Guest) {
    let systemctl = "#!/bin/sh\n\
        case $1 in\n\
        is-system-running) cat /tmp/word;;\n\
        poweroff) exec poweroff -f;;\n\
        esac\n";
    guest.push("/bin/systemctl", systemctl.as_bytes()).unwrap();
    run_in_guest(
        guest,
        "chmod +x /bin/systemctl; mkdir -p /run/systemd/system; echo starting >/tmp/word",
    );
}

fn readiness_follows_systemd(world: &World, guest: &Guest) {
    eventually("the guest is starting", || {
        let guest = guest_info(world, "vm", "web");
        guest["report"]["manager"] == "starting" && guest["ready"] == false
    });
    let shown = world.run(["vm", "wait", "web", "--timeout", "0"]).failed();
    assert!(shown.contains("it is running, starting"), "{shown}");
    run_in_guest(guest, "echo degraded >/tmp/word");
    world.ok(["vm", "wait", "web"]);
    let shown = world.ok(["vm", "show", "web"]);
    assert!(
        shown.contains("guest         ready (degraded), heartbeat "),
        "{shown}"
    );
}

/// Prints the offsets; the bound is loose, because a busy machine delays the measurements.
fn the_clock_is_exact(world: &World, guest: &Guest) {
    let mut best = f64::MAX;
    for _ in 0..5 {
        let clock = clock(world);
        let (offset, error) = (
            seconds(&clock, "offset_seconds"),
            seconds(&clock, "error_seconds"),
        );
        println!("idle: {:.3} ms ± {:.3} ms", offset * 1e3, error * 1e3);
        assert_eq!(clock["keeper"], "agent");
        best = best.min(offset.abs());
        thread::sleep(Duration::from_secs(1));
    }
    assert!(best < 0.05, "best offset {best} s");
    let date = date_offset(guest);
    assert!(date.abs() < 3.0, "{date} s by `date`");
}

fn a_wrong_clock_is_corrected(world: &World, guest: &Guest) {
    run_in_guest(guest, "date -s '2001-01-01 00:00:00'");
    let began = Instant::now();
    eventually("the clock is right again", || {
        date_offset(guest).abs() < 3.0
    });
    println!("wrong clock: corrected after {:.1?}", began.elapsed());
    assert!(seconds(&clock(world), "offset_seconds").abs() < 0.5);
}

fn the_clock_is_corrected_after_a_pause(world: &World, guest: &Guest) {
    guest.pause().unwrap();
    wait_for_agent(world, "vm", "web", "paused");
    thread::sleep(Duration::from_secs(8));
    wait_for_agent(world, "vm", "web", "paused");
    guest.resume().unwrap();
    let began = Instant::now();
    wait_for_agent(world, "vm", "web", "connected");
    let connected = began.elapsed();
    // The guest's clock was stopped for eight seconds, and no command requests a measurement.
    eventually("the clock is right again", || {
        date_offset(guest).abs() < 3.0
    });
    println!(
        "resumed: connected after {connected:.1?}, clock corrected after {:.1?}",
        began.elapsed()
    );
    assert!(seconds(&clock(world), "offset_seconds").abs() < 0.5);
}

fn a_silent_agent_is_reported_lost(world: &World, guest: &Guest) {
    for (signal, back) in [("STOP", "kill -CONT $(pidof hvsock-agent)"), ("KILL", "")] {
        let pid = run_in_guest(guest, "pidof hvsock-agent");
        run_in_guest(guest, &format!("kill -{signal} {pid}"));
        let began = Instant::now();
        wait_for_agent(world, "vm", "web", "lost");
        println!("SIG{signal}: lost after {:.1?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(60));
        match back {
            "" => start_agent(guest),
            command => drop(run_in_guest(guest, command)),
        }
        wait_for_agent(world, "vm", "web", "connected");
    }
}

fn a_notification_is_shown(world: &World, guest: &Guest) {
    run_in_guest(
        guest,
        "printf 'READY=1\\nSTATUS=as systemd\\n' | hvsock connect parent 903",
    );
    let notice = guest_info(world, "vm", "web")["notice"].take();
    assert_eq!(
        (&notice["ready"], &notice["status"]),
        (&true.into(), &"as systemd".into())
    );
}
