//! Processes with the command lines of VMMs.

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use hvsock_discover::{HybridStyle, Machine, Manager, Processes, Reach, State};
use serde_json::json;

use super::incus::daemon;
use super::server::Server;
use super::{answer, kernel};

/// A process that calls itself `program`, and ends with its standard input.
struct Fake(Child);

impl Fake {
    fn new(program: &str, arguments: &[&str], folder: &Path) -> Self {
        Self::of(Path::new("/bin/sh"), program, arguments, folder)
    }

    /// The same by this shell.
    fn of(shell: &Path, program: &str, arguments: &[&str], folder: &Path) -> Self {
        let child = Command::new(shell)
            .arg0(program)
            .args(["-c", "echo ready; read line", program])
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = child.unwrap();
        let mut line = String::new();
        let stdout = child.stdout.as_mut().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        Self(child)
    }

    /// The virtual machine that it is.
    fn machine(&self) -> Machine {
        let machines = answer(&Processes::of_this_machine() as &dyn Manager);
        let own = machines
            .into_iter()
            .find(|one| one.pid == Some(self.0.id()));
        own.expect("the process is found")
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn vhost_user(socket: &str) -> Reach {
    let socket = socket.into();
    Reach::VhostUser { socket }
}

fn hybrid(path: &Path, style: HybridStyle) -> Reach {
    let path = path.to_owned();
    Reach::Hybrid { path, style }
}

#[test]
fn the_vsock_devices_of_each_vmm_are_read_from_its_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    for (program, arguments, name, reach) in [
        (
            "/usr/bin/qemu-system-x86_64",
            vec![
                "-name",
                "guest=web,debug-threads=on",
                "-device",
                r#"{"driver":"vhost-vsock-pci","guest-cid":77}"#,
            ],
            "web",
            vec![kernel(77)],
        ),
        (
            "crosvm",
            vec![
                "run",
                "--name",
                "cr",
                "--vsock",
                "cid=78",
                "--vhost-user",
                "vsock,socket=/s",
            ],
            "cr",
            vec![kernel(78), vhost_user("/s")],
        ),
        (
            "linux.uml",
            vec!["mem=64M", "umid=um", "virtio_uml.device=/s:19"],
            "um",
            vec![vhost_user("/s")],
        ),
        (
            "openvmm",
            vec![
                "--virtio-vsock-path",
                "v.sock",
                "--vhost-user",
                "/s,device_id=19",
            ],
            "",
            vec![
                hybrid(&folder.join("v.sock"), HybridStyle::OpenVmm),
                vhost_user("/s"),
            ],
        ),
        (
            "cloud-hypervisor",
            vec![
                "--vsock",
                "cid=3,socket=v.sock",
                "--generic-vhost-user=socket=\"/a b\",device_type=19",
            ],
            "",
            vec![
                hybrid(&folder.join("v.sock"), HybridStyle::CloudHypervisor),
                vhost_user("/a b"),
            ],
        ),
        ("qemu-system-aarch64", vec!["-nodefaults"], "", vec![]),
    ] {
        let fake = Fake::new(program, &arguments, &folder);
        let machine = fake.machine();
        assert_eq!(machine.reach, reach, "{program}");
        assert_eq!(machine.state, State::Unknown, "{program}");
        if !name.is_empty() {
            assert_eq!(machine.name, name);
        }
    }
}

#[test]
fn firecracker_is_asked_for_its_state_and_device_or_its_configuration_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let config = json!({ "vsock": { "guest_cid": 3, "uds_path": "./v.sock" } });
    std::fs::write(folder.join("config"), config.to_string()).unwrap();
    let want = vec![hybrid(&folder.join("./v.sock"), HybridStyle::Firecracker)];

    let fake = Fake::new(
        "firecracker",
        &["--no-api", "--config-file", "config"],
        &folder,
    );
    assert_eq!(
        (fake.machine().state, fake.machine().reach),
        (State::Unknown, want.clone())
    );

    let server = Server::new(move |mut stream| {
        let mut request = String::new();
        BufReader::new(stream.try_clone().unwrap())
            .read_line(&mut request)
            .unwrap();
        let body = match request.split(' ').nth(1) {
            Some("/") => json!({ "id": "fc1", "state": "Paused" }),
            Some("/vm/config") => config.clone(),
            other => panic!("{other:?}"),
        };
        let body = body.to_string();
        let length = body.len();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all((head + &body).as_bytes()).unwrap();
        // It stays connected until the client closes.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let socket = server.path();
    let socket = socket.to_str().unwrap();
    let fake = Fake::new(
        "firecracker",
        &["--api-sock", socket, "--id", "fc1"],
        &folder,
    );
    let machine = fake.machine();
    assert_eq!(
        (machine.name.as_str(), machine.state),
        ("fc1", State::Paused)
    );
    assert_eq!(machine.reach, want);
}

#[test]
fn cloud_hypervisor_is_asked_for_a_device_that_was_added_over_its_api() {
    let folder = tempfile::tempdir().unwrap();
    let info = json!({
        "state": "Running",
        "config": {
            "vsock": { "cid": 3, "socket": "/v.sock" },
            "generic_vhost_user": [
                { "socket": "/s", "device_type": 19 },
                { "socket": "/fs", "device_type": 26 },
            ],
        },
    });
    let server = daemon(format!("HTTP/1.1 200 OK\r\n\r\n{info}"));
    let option = format!("path={}", server.path().display());
    let fake = Fake::new(
        "cloud-hypervisor",
        &["--api-socket", &option],
        folder.path(),
    );
    let machine = fake.machine();
    assert_eq!(machine.state, State::Running);
    let own = hybrid(Path::new("/v.sock"), HybridStyle::CloudHypervisor);
    assert_eq!(machine.reach, [own, vhost_user("/s")]);
}

#[test]
fn an_unprivileged_user_sees_the_sockets_of_another_users_vmm_by_their_own_paths() {
    // Its links in /proc may be read by root only, and this folder stands for them.
    let proc = tempfile::tempdir().unwrap();
    let process = proc.path().join("4711");
    std::fs::create_dir(&process).unwrap();
    let line = "linux.uml\0mem=64M\0virtio_uml.device=/run/web.sock:19\0";
    std::fs::write(process.join("cmdline"), line).unwrap();
    let machines = answer(&Processes::at(proc.path().to_owned()));
    assert_eq!(machines[0].reach, [vhost_user("/run/web.sock")]);
}

#[test]
fn the_arguments_of_a_set_user_id_program_are_not_its_users_words() {
    let folder = tempfile::tempdir().unwrap();
    let shell = folder.path().join("shell");
    for (mode, is_known) in [(0o755, true), (0o4755, false), (0o2755, false)] {
        std::fs::copy("/bin/sh", &shell).unwrap();
        std::fs::set_permissions(&shell, Permissions::from_mode(mode)).unwrap();
        let fake = Fake::of(
            &shell,
            "qemu-system-x86_64",
            &["-name", "web", "-device", "vhost-vsock-pci,guest-cid=77"],
            folder.path(),
        );
        let machine = fake.machine();
        assert_eq!(machine.name, "web");
        assert_eq!(machine.uid.is_some(), is_known, "{mode:o}");
        drop(fake);
        std::fs::remove_file(&shell).unwrap();
    }
}

#[test]
fn the_root_of_a_container_is_not_root_of_this_machine() {
    let proc = tempfile::tempdir().unwrap();
    for (name, ids) in [("self", "5"), ("7", "7"), ("8", "8\t1"), ("9", "")] {
        let process = proc.path().join(name);
        std::fs::create_dir(&process).unwrap();
        let line = "qemu-system-x86_64\0-device\0vhost-vsock-pci,guest-cid=77\0";
        std::fs::write(process.join("cmdline"), line).unwrap();
        symlink("/bin/sh", process.join("exe")).unwrap();
        if !ids.is_empty() {
            let status = format!("Name:\tx\nNSpid:\t{ids}\nNSpgid:\t1\n");
            std::fs::write(process.join("status"), status).unwrap();
        }
    }
    let machines = answer(&Processes::at(proc.path().to_owned()) as &dyn Manager);
    let known = machines.iter().map(|one| (one.pid, one.uid.is_some()));
    let known: Vec<_> = known.collect();
    assert_eq!(known, [(Some(7), true), (Some(8), false), (Some(9), false)]);
}

#[test]
fn one_user_with_very_many_vmms_hides_nobody_elses() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let proc = tempfile::tempdir().unwrap();
    let long = format!("qemu-system-x86_64{}", "\0".repeat(1 << 20));
    for pid in 1..=1200 {
        let process = proc.path().join(pid.to_string());
        std::fs::create_dir(&process).unwrap();
        let line = "qemu-system-x86_64\0-device\0vhost-vsock-pci,guest-cid=77\0";
        let line = if pid % 100 == 0 { &long } else { line };
        std::fs::write(process.join("cmdline"), line).unwrap();
        let uid = if pid == 1199 { 64_055 } else { 1000 };
        std::os::unix::fs::chown(&process, Some(uid), None).unwrap();
    }
    let processes = Processes::at(proc.path().to_owned());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let (machines, why) = processes.list_found(deadline);
    assert!(machines.iter().any(|one| one.pid == Some(1199)));
    assert_eq!(machines.len(), 1025);
    let why = why.unwrap().to_string();
    assert!(why.contains("those of the user 1000 are too many"), "{why}");
    // A virtual machine that is not in such a list is not known to be off.
    let limit = std::time::Duration::from_secs(20);
    assert!(hvsock_discover::state_of_cid(&processes, 78, limit).is_err());
}
