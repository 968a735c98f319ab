//! The agent of a real guest over hybrid Unix sockets: a guest of QEMU, whose vsock device is
//! vhost-device-vsock's.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hvsock_guests::{Config, File, Guest, Kit, Vmm, Vsock};
use hvsock_testkit::require;

use crate::util::{World, eventually};

/// Time limit of a command in the guest.
const LIMIT: Duration = Duration::from_secs(30);

/// A running vhost-device-vsock. Dropping it kills the process.
struct Muxer(Child);

impl Drop for Muxer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A VM behind the Unix socket of its VMM.
struct HybridVm {
    world: World,
    guest: Guest,
    path: PathBuf,
    _muxer: Muxer,
}

/// The VM `web`, whose agent answers. Skips the test (`None`) without vhost-device-vsock, QEMU or the static
/// agent.
fn start() -> Option<HybridVm> {
    let program = require::vhost_device_vsock()?;
    let agent = require::static_agent()?;
    let kit = require::found(Kit::find_for(Vmm::Qemu))?;
    let world = World::new();
    let folder = world.dir().join("vmm");
    fs::create_dir(&folder).expect("a folder");
    let (path, socket) = (folder.join("v.sock"), folder.join("device"));
    let at = path.to_str().expect("a path in UTF-8");
    world.ok([
        "-q",
        "vm",
        "add",
        "web",
        "--hybrid",
        at,
        "--style",
        "firecracker",
    ]);
    let mut muxer = Command::new(program);
    muxer.args(["--guest-cid", "42"]);
    muxer.arg("--socket").arg(&socket);
    muxer.arg("--uds-path").arg(&path);
    muxer.stdin(Stdio::null()).stderr(Stdio::null());
    let muxer = Muxer(muxer.spawn().expect("vhost-device-vsock"));
    eventually("vhost-device-vsock listens", || socket.exists());
    let mut config = Config::new("web");
    config.files = File::program(&agent, "/bin/hvsock-agent").expect("the agent");
    config.vsock = Some(Vsock { socket });
    let guest = Guest::boot(&kit, &config).expect("booted");
    guest.spawn("exec hvsock-agent").expect("started");
    eventually("the agent in the guest answers", || {
        world.run(["exec", "web", "--", "true"]).code == Some(0)
    });
    Some(HybridVm {
        world,
        guest,
        path,
        _muxer: muxer,
    })
}

#[test]
fn the_agent_runs_commands_and_copies_files_behind_the_socket_of_another_vmm() {
    let Some(vm) = start() else { return };
    let world = &vm.world;
    let release = vm.guest.run("uname -a", LIMIT).expect("run").text();
    let told = world.ok(["exec", "web", "--", "uname", "-a"]);
    assert_eq!(told.trim_end(), release);
    let ended = world.run([
        "exec",
        "web",
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
    ]);
    let seen = (ended.code, &*ended.stdout, &*ended.stderr);
    assert_eq!(seen, (Some(7), "out\n", "err\n"));

    let shown = world.ok(["vm", "show", "web"]);
    assert!(shown.contains("running"), "{shown}");
    assert!(shown.contains("hybrid sockets of firecracker"), "{shown}");
    assert!(shown.contains(vm.path.to_str().expect("UTF-8")), "{shown}");

    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let content: Vec<u8> = (0..3_000_000_u32)
        .map(|at| (at.wrapping_mul(at) >> 7) as u8)
        .collect();
    fs::write(at("sent"), &content).expect("written");
    world.ok(["cp", &at("sent"), "web:/tmp/copied"]);
    let sum = |text: &str| text.split(' ').next().map(str::to_owned);
    let inside = vm
        .guest
        .run("sha256sum /tmp/copied", LIMIT)
        .expect("run")
        .text();
    let outside = Command::new("sha256sum").arg(at("sent")).output();
    let outside = String::from_utf8(outside.expect("sha256sum").stdout).expect("UTF-8");
    assert_eq!(sum(&inside), sum(&outside));
    // By `exec`, whose frames have 16 KiB: vhost-device-vsock 0.3 drops the packets of more than 32 KiB that a
    // guest of recent Linux sends, and with them a copy of this size.
    let mut command = world.command(["exec", "web", "--", "cat", "/tmp/copied"]);
    let told = command.output();
    let told = told.expect("hvsock exec");
    assert!(
        told.status.success(),
        "{}",
        String::from_utf8_lossy(&told.stderr)
    );
    assert!(told.stdout == content, "the output differs");
    let head = "head -c 30000 /tmp/copied > /tmp/head";
    assert!(vm.guest.run(head, LIMIT).expect("run").success());
    world.ok(["cp", "web:/tmp/head", &at("back")]);
    assert!(
        fs::read(at("back")).expect("read") == content[..30_000],
        "the copy differs"
    );
}
