//! QEMU. Its control sockets and the guest's serial ports are Unix sockets in the guest's folder.

mod arguments;
mod monitor;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use self::monitor::Monitor;
use super::driver::{Boot, Connected, Control, Driver, Prepared, Started};
use crate::config::PORTS;
use crate::error::{Error, Missing};
use crate::kernel::Kernel;
use crate::lock::locked;
use crate::tools;

/// Polling interval of waits.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The longest wait until the guest has released a device.
const RELEASE_LIMIT: Duration = Duration::from_secs(15);

/// The driver of QEMU.
pub struct Qemu;

impl Driver for Qemu {
    fn name(&self) -> &'static str {
        "QEMU"
    }

    fn install(&self) -> &'static str {
        "apt-get install qemu-system-x86 linux-image-cloud-amd64 busybox-static"
    }

    fn can_pause(&self) -> bool {
        true
    }

    fn find(&self, fetch: bool) -> Result<(PathBuf, Kernel), Missing> {
        let program = tools::program("HVSOCK_GUEST_QEMU", "qemu-system-x86_64")
            .map_err(|why| Missing::package(why, "qemu-system-x86", self.install()))?;
        let kernel = Kernel::find().or_else(|missing| match fetch {
            true => Kernel::fetch(),
            false => Err(missing),
        })?;
        Ok((program, kernel))
    }

    fn modules(&self) -> &'static [&'static str] {
        &["virtio_console", "virtio_pci"]
    }

    fn port_files(&self) -> String {
        "/dev/vport*".to_owned()
    }

    fn has_network(&self) -> bool {
        true
    }

    fn has_machine_files(&self) -> bool {
        false
    }

    fn prepare(&self, boot: &Boot<'_>) -> io::Result<Prepared> {
        let mut command = with_parent(boot.program);
        command.args(arguments::arguments(boot));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let folder = boot.folder.to_owned();
        let network = boot.config.network.clone();
        Ok(Prepared {
            command,
            inherited: Vec::new(),
            connect: Box::new(move |started| {
                // QEMU's standard error explains more than a closed monitor.
                let mut monitor = Monitor::open(connect(&folder, "qmp", started)?)
                    .map_err(|error| (started.ended_soon)().unwrap_or(error))?;
                let ports = (0..PORTS)
                    .map(|index| connect(&folder, &format!("port{index}"), started))
                    .collect::<Result<_, _>>()?;
                let forwarded = match &network {
                    Some(network) => forwards(&mut monitor, &network.forwarded)?,
                    None => Vec::new(),
                };
                Ok(Connected {
                    ports,
                    forwarded,
                    control: Box::new(Running(Mutex::new(monitor))),
                })
            }),
        })
    }
}

/// A running QEMU.
#[derive(Debug)]
struct Running(Mutex<Monitor>);

impl Control for Running {
    fn name(&self) -> &'static str {
        Qemu.name()
    }

    fn pause(&self) -> Result<(), Error> {
        self.monitor("stop", &json!({})).map(drop)
    }

    fn resume(&self) -> Result<(), Error> {
        self.monitor("cont", &json!({})).map(drop)
    }

    fn reset(&self) -> Result<(), Error> {
        self.monitor("system_reset", &json!({})).map(drop)
    }

    fn replug_vsock(&self, socket: &Path) -> Result<(), Error> {
        self.monitor("device_del", &json!({ "id": "vsock-device" }))?;
        // The socket is in use until the guest has released the device.
        let deadline = Instant::now() + RELEASE_LIMIT;
        while let Err(error) = self.monitor("chardev-remove", &json!({ "id": "vsock" })) {
            if Instant::now() >= deadline {
                return Err(error);
            }
            thread::sleep(POLL_INTERVAL * 10);
        }
        let address = json!({ "type": "unix", "data": { "path": socket } });
        let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
        self.monitor("chardev-add", &json!({ "id": "vsock", "backend": backend }))?;
        let device = json!({
            "driver": "vhost-user-vsock-pci",
            "id": "vsock-device",
            "chardev": "vsock",
            "bus": "vsock-port",
        });
        self.monitor("device_add", &device).map(drop)
    }

    fn quit(&self) -> Result<bool, Error> {
        self.monitor("quit", &json!({})).map(|_| true)
    }

    fn monitor(&self, command: &str, arguments: &Value) -> Result<Value, Error> {
        locked(&self.0).execute(command, arguments)
    }
}

/// A QEMU that the kernel kills when the starting thread ends, even if this process is killed
/// (`PR_SET_PDEATHSIG`). That thread must outlive QEMU. Without `setpriv`, a killed process leaves QEMU
/// running.
fn with_parent(qemu: &Path) -> Command {
    match tools::find("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(qemu);
            command
        }
        None => Command::new(qemu),
    }
}

/// Connects to one of QEMU's sockets, which exist shortly after its start.
fn connect(folder: &Path, name: &str, started: &Started<'_>) -> Result<UnixStream, Error> {
    let path = folder.join(name);
    loop {
        match UnixStream::connect(&path) {
            Ok(stream) => return Ok(stream),
            Err(error) if may_appear(&error) && Instant::now() < started.deadline => {}
            Err(error) => return Err(Error::io(format!("cannot connect to QEMU's {name}"))(error)),
        }
        (started.check)()?;
        thread::sleep(POLL_INTERVAL);
    }
}

fn may_appear(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

/// The host's ports that QEMU forwards to the guest's, from the monitor's output:
/// `TCP[HOST_FORWARD]  12       127.0.0.1 40719       10.0.2.15  1234     0     0`.
fn forwards(monitor: &mut Monitor, wanted: &[u16]) -> Result<Vec<(u16, u16)>, Error> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let line = json!({ "command-line": "info usernet" });
    let output = monitor.execute("human-monitor-command", &line)?;
    let output = output.as_str().unwrap_or_default();
    wanted
        .iter()
        .map(|port| {
            forward(output, *port)
                .map(|from| (*port, from))
                .ok_or_else(|| {
                    Error::Protocol(format!("QEMU forwards no port to port {port}: {output}"))
                })
        })
        .collect()
}

fn forward(output: &str, port: u16) -> Option<u16> {
    output.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["TCP[HOST_FORWARD]", _, _, from, _, to, ..] if to.parse() == Ok(port) => {
                from.parse().ok()
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forwarded_port_is_parsed_from_the_monitors_output() {
        let output = "Hub -1 (network):\r\n  Protocol[State]    FD  Source Address  Port   Dest. \
                     Address  Port RecvQ SendQ\r\n  TCP[HOST_FORWARD]  12       127.0.0.1 40719    \
                     10.0.2.15  1234     0     0\r\n";
        assert_eq!(forward(output, 1234), Some(40719));
        assert_eq!(forward(output, 1235), None);
    }
}
