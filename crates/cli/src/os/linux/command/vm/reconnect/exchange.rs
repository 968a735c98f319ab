//! The steps that exchange the vsock device of a running QEMU. No I/O: the monitor is a seam.
//!
//! QEMU does not reconnect the device to a new back-end, so the guest releases the device, and gets a new one
//! on a new socket. Programs in the guest that listen go on: their sockets do not belong to the device.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

/// The time between two attempts to remove the socket. The guest needs some seconds.
const RETRY: Duration = Duration::from_millis(250);

/// The start of a disconnected socket's name.
const DISCONNECTED: &str = "disconnected:unix:";

/// QEMU's monitor.
pub trait Monitor {
    /// Executes a command.
    fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, Fault>;

    /// Waits. `false` if no time is left.
    fn pause(&mut self, time: Duration) -> bool;
}

/// A command without a result.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// QEMU refused it, in these words.
    Refused(String),
    /// There was no answer: the connection failed, with this cause.
    Lost(String),
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Find the device and its socket.
    Find,
    /// Ask the guest to release the device.
    Unplug,
    /// Remove the device's socket, once the guest has released it.
    RemoveSocket,
    /// Connect a new socket to the broker.
    AddSocket,
    /// Plug a device with that socket.
    Plug,
}

/// Why the exchange ended early.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The monitor did not answer.
    #[error("{0}")]
    Monitor(String),
    /// The guest's processors are stopped, so it can release nothing.
    #[error("the guest is stopped: QEMU says that it is {0:?}")]
    Stopped(String),
    /// There is no such device.
    #[error("this QEMU has no vhost-user-vsock device and no port of this VM")]
    NoDevice,
    /// The device uses the socket of another VM.
    #[error("the vsock device of this QEMU uses another socket, {}", .0.display())]
    OtherSocket(PathBuf),
    /// The device's socket is connected, but not to the broker.
    #[error("the vsock device of this QEMU is connected to another back-end")]
    OtherBackEnd,
    /// The bus of the device takes no exchange.
    #[error("the device cannot be exchanged: {0}")]
    Fixed(String),
    /// The guest did not release the device in time.
    #[error("the guest has not released the device in time: {0}")]
    Held(String),
    /// QEMU refused a step.
    #[error("QEMU refused {command}: {why}")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's words.
        why: String,
        /// Whether the guest has no device now.
        unplugged: bool,
    },
}

/// The place of the device.
#[derive(Debug, PartialEq, Eq)]
struct Device {
    /// Its QOM path, which `device_del` takes, or `None` if it was removed before.
    path: Option<String>,
    id: String,
    driver: String,
    bus: String,
    chardev: String,
    /// The socket, as QEMU reaches it.
    socket: PathBuf,
}

/// Exchanges the device of the VM `name`, whose socket at the broker is `ours`. `progress` is told each step
/// before it begins.
pub fn exchange(
    monitor: &mut dyn Monitor,
    name: &str,
    ours: &Path,
    progress: &mut dyn FnMut(Step),
) -> Result<(), Failed> {
    progress(Step::Find);
    let device = find(monitor, name, ours)?;
    if let Some(path) = &device.path {
        runs(monitor)?;
        progress(Step::Unplug);
        unplug(monitor, path)?;
    }
    progress(Step::RemoveSocket);
    remove_socket(monitor, &device)?;
    progress(Step::AddSocket);
    let refused = |command| {
        move |fault| match fault {
            Fault::Refused(why) => Failed::Refused {
                command,
                why,
                unplugged: true,
            },
            Fault::Lost(why) => Failed::Monitor(why),
        }
    };
    let address = json!({ "type": "unix", "data": { "path": &device.socket } });
    let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
    monitor
        .execute(
            "chardev-add",
            json!({ "id": device.chardev, "backend": backend }),
        )
        .map_err(refused("chardev-add"))?;
    progress(Step::Plug);
    monitor
        .execute(
            "device_add",
            json!({
                "driver": device.driver,
                "id": device.id,
                "chardev": device.chardev,
                "bus": device.bus,
            }),
        )
        .map_err(refused("device_add"))?;
    Ok(())
}

/// A guest whose processors are stopped does not take part.
fn runs(monitor: &mut dyn Monitor) -> Result<(), Failed> {
    let status = ask(monitor, "query-status", json!({}))?;
    match status["running"].as_bool() {
        Some(true) => Ok(()),
        _ => Err(Failed::Stopped(text(&status["status"]))),
    }
}

fn find(monitor: &mut dyn Monitor, name: &str, ours: &Path) -> Result<Device, Failed> {
    let chardevs = ask(monitor, "query-chardev", json!({}))?;
    let filename = |label: &str| {
        let chardevs = chardevs.as_array()?;
        let found = chardevs.iter().find(|one| one["label"] == label)?;
        found["filename"].as_str()
    };
    let mut other = None;
    let mut ports = Vec::new();
    for parent in ["/machine/peripheral", "/machine/peripheral-anon"] {
        let children = ask(monitor, "qom-list", json!({ "path": parent }))?;
        for child in children.as_array().into_iter().flatten() {
            let (id, kind) = (text(&child["name"]), text(&child["type"]));
            if kind == "child<pcie-root-port>" {
                ports.push(id.clone());
            }
            let driver = kind
                .strip_prefix("child<")
                .and_then(|kind| kind.strip_suffix('>'));
            let Some(driver) = driver.filter(|driver| driver.starts_with("vhost-user-vsock-"))
            else {
                continue;
            };
            let path = format!("{parent}/{id}");
            let property = |monitor: &mut dyn Monitor, property: &str| {
                let arguments = json!({ "path": path, "property": property });
                Ok(text(&ask(monitor, "qom-get", arguments)?))
            };
            let chardev = property(monitor, "chardev")?;
            let socket = filename(&chardev).and_then(|name| name.strip_prefix(DISCONNECTED));
            let Some(socket) = socket.map(PathBuf::from) else {
                other = Some(Failed::OtherBackEnd);
                continue;
            };
            if !is_same(&socket, ours) {
                other = Some(Failed::OtherSocket(socket));
                continue;
            }
            let bus = property(monitor, "parent_bus")?;
            // One without an id of its own gets the id that our options have.
            let id = match parent {
                "/machine/peripheral" => id,
                _ => "hvsock-device".to_owned(),
            };
            return Ok(Device {
                id,
                driver: driver.to_owned(),
                bus: bus.rsplit('/').next().unwrap_or_default().to_owned(),
                path: Some(path),
                chardev,
                socket,
            });
        }
    }
    if let Some(other) = other {
        return Err(other);
    }
    // An earlier exchange ended after it had unplugged the device. The port has the VM's name.
    let bus = format!("hvsock-port-{name}");
    match ports.contains(&bus) {
        true => Ok(Device {
            path: None,
            id: "hvsock-device".to_owned(),
            driver: "vhost-user-vsock-pci".to_owned(),
            bus,
            chardev: format!("hvsock-{name}"),
            socket: ours.to_owned(),
        }),
        false => Err(Failed::NoDevice),
    }
}

fn unplug(monitor: &mut dyn Monitor, path: &str) -> Result<(), Failed> {
    match monitor.execute("device_del", json!({ "id": path })) {
        Ok(_) => Ok(()),
        // By an earlier exchange, or the guest was faster.
        Err(Fault::Refused(why)) if why.contains("already in the process of unplug") => Ok(()),
        Err(Fault::Refused(why)) if why.contains("not found") => Ok(()),
        Err(Fault::Refused(why)) if why.contains("hotplug") || why.contains("hot-unplug") => {
            Err(Failed::Fixed(why))
        }
        Err(Fault::Refused(why)) => Err(Failed::Refused {
            command: "device_del",
            why,
            unplugged: false,
        }),
        Err(Fault::Lost(why)) => Err(Failed::Monitor(why)),
    }
}

/// Removes the socket, which QEMU refuses while the guest has the device.
fn remove_socket(monitor: &mut dyn Monitor, device: &Device) -> Result<(), Failed> {
    loop {
        match monitor.execute("chardev-remove", json!({ "id": device.chardev })) {
            Ok(_) => return Ok(()),
            Err(Fault::Refused(why)) if why.contains("not found") => return Ok(()),
            Err(Fault::Refused(why)) => {
                if !monitor.pause(RETRY) {
                    return Err(Failed::Held(why));
                }
            }
            Err(Fault::Lost(why)) => return Err(Failed::Monitor(why)),
        }
    }
}

fn ask(
    monitor: &mut dyn Monitor,
    command: &'static str,
    arguments: Value,
) -> Result<Value, Failed> {
    monitor
        .execute(command, arguments)
        .map_err(|fault| match fault {
            Fault::Refused(why) => Failed::Refused {
                command,
                why,
                unplugged: false,
            },
            Fault::Lost(why) => Failed::Monitor(why),
        })
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Whether two paths lead to one socket: QEMU may have been given a link.
fn is_same(theirs: &Path, ours: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    theirs == ours || real(theirs).is_some_and(|theirs| real(ours) == Some(theirs))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "/run/hvsock/vm/web.sock";

    /// A QEMU that answers from a model of its devices, and fails the commands of a script.
    struct Scripted {
        device: bool,
        filename: &'static str,
        status: &'static str,
        /// The attempts of `chardev-remove` that fail before the guest has released the device.
        busy: u32,
        refuse: Option<(&'static str, &'static str)>,
        executed: Vec<&'static str>,
        pauses: u32,
    }

    impl Scripted {
        fn new() -> Self {
            Self {
                device: true,
                filename: "disconnected:unix:/run/hvsock/vm/web.sock",
                status: "running",
                busy: 2,
                refuse: None,
                executed: Vec::new(),
                pauses: 10,
            }
        }

        fn run(&mut self) -> (Result<(), Failed>, Vec<Step>) {
            let mut steps = Vec::new();
            let result = exchange(self, "web", Path::new(OURS), &mut |step| steps.push(step));
            (result, steps)
        }
    }

    impl Monitor for Scripted {
        fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, Fault> {
            self.executed.push(command);
            if let Some((refused, why)) = self.refuse
                && refused == command
            {
                return Err(Fault::Refused(why.to_owned()));
            }
            let device = json!({ "name": "hvsock-device", "type": "child<vhost-user-vsock-pci>" });
            Ok(match command {
                "query-status" => {
                    json!({ "running": self.status == "running", "status": self.status })
                }
                "query-chardev" => json!([{ "label": "hvsock-web", "filename": self.filename }]),
                "qom-list" if arguments["path"] == "/machine/peripheral" => {
                    let port =
                        json!({ "name": "hvsock-port-web", "type": "child<pcie-root-port>" });
                    match self.device {
                        true => json!([port, device]),
                        false => json!([port]),
                    }
                }
                "qom-get" if arguments["property"] == "chardev" => json!("hvsock-web"),
                "qom-get" => json!("/machine/peripheral/hvsock-port-web/hvsock-port-web"),
                "chardev-remove" if self.busy > 0 => {
                    self.busy -= 1;
                    return Err(Fault::Refused("Chardev 'hvsock-web' is busy".to_owned()));
                }
                "device_add" => {
                    assert_eq!(arguments["bus"], "hvsock-port-web");
                    assert_eq!(arguments["chardev"], "hvsock-web");
                    json!({})
                }
                _ => json!({}),
            })
        }

        fn pause(&mut self, _time: Duration) -> bool {
            let more = self.pauses > 0;
            self.pauses = self.pauses.saturating_sub(1);
            more
        }
    }

    #[test]
    fn the_device_is_unplugged_and_plugged_once_the_guest_has_released_it() {
        let mut qemu = Scripted::new();
        let (result, steps) = qemu.run();
        result.expect("exchanged");
        use Step::{AddSocket, Find, Plug, RemoveSocket, Unplug};
        assert_eq!(steps, [Find, Unplug, RemoveSocket, AddSocket, Plug]);
        let removals = qemu.executed.iter().filter(|one| **one == "chardev-remove");
        assert_eq!(removals.count(), 3);
        assert_eq!(qemu.executed.last(), Some(&"device_add"));
    }

    #[test]
    fn an_exchange_that_ended_after_the_unplugging_is_continued() {
        let mut qemu = Scripted::new();
        qemu.device = false;
        // A stopped guest takes a device, too.
        qemu.status = "paused";
        let (result, steps) = qemu.run();
        result.expect("exchanged");
        assert!(!steps.contains(&Step::Unplug));
    }

    #[test]
    fn each_failing_step_ends_the_exchange_with_its_own_error() {
        let fails = |change: &dyn Fn(&mut Scripted)| {
            let mut qemu = Scripted::new();
            change(&mut qemu);
            let (result, _) = qemu.run();
            let added = qemu.executed.contains(&"device_add");
            (result.expect_err("a failure"), added)
        };
        let (error, _) = fails(&|qemu| qemu.filename = "disconnected:unix:/run/hvsock/vm/db.sock");
        assert!(matches!(error, Failed::OtherSocket(_)), "{error}");
        let (error, _) = fails(&|qemu| qemu.filename = "unix:");
        assert!(matches!(error, Failed::OtherBackEnd), "{error}");
        let (error, added) = fails(&|qemu| qemu.status = "paused");
        assert!(matches!(error, Failed::Stopped(_)) && !added, "{error}");
        let (error, _) = fails(&|qemu| {
            qemu.refuse = Some(("device_del", "Bus 'pcie.0' does not support hotplugging"));
        });
        assert!(matches!(error, Failed::Fixed(_)), "{error}");
        let (error, added) = fails(&|qemu| qemu.busy = 100);
        assert!(matches!(error, Failed::Held(_)) && !added, "{error}");
        for command in ["chardev-add", "device_add"] {
            let (error, _) = fails(&|qemu| qemu.refuse = Some((command, "no")));
            let unplugged = matches!(
                error,
                Failed::Refused {
                    unplugged: true,
                    ..
                }
            );
            assert!(unplugged, "{error}");
        }
        for command in ["query-chardev", "qom-list", "qom-get", "query-status"] {
            let (error, added) = fails(&|qemu| qemu.refuse = Some((command, "no")));
            let untouched = matches!(
                error,
                Failed::Refused {
                    unplugged: false,
                    ..
                }
            );
            assert!(untouched && !added, "{error}");
        }
    }
}
