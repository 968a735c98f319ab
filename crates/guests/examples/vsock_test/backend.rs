//! The back-ends of the guests' vsock devices.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hvsock_address::{ElementName, PartitionName, ServiceId};
use hvsock_broker::model::{LinkSpec, NewService, NewVm};
use hvsock_broker::{Broker, BrokerConfig};
use hvsock_endpoint::Dirs;
use tempfile::TempDir;

/// Names and context ids of the guests, which are in one group.
pub const NAMES: [&str; 2] = ["a", "b"];
pub const CIDS: [u32; 2] = [101, 102];
const GROUP: &str = "vsock-test";

/// The ports that the suite listens on, each registered as a service.
const PORTS: std::ops::Range<u32> = 1234..1244;

/// One device for each of the two guests.
pub struct Backend {
    folder: TempDir,
    device: Device,
}

enum Device {
    Broker { _running: Box<Broker>, dirs: Dirs },
    Program { child: Child, name: String },
}

impl Backend {
    /// Starts the broker or the given program as the back-end.
    pub fn start(program: Option<&Path>) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("hvsock-vt-").tempdir()?;
        let device = match program {
            Some(program) => start_program(program, folder.path())?,
            None => start_broker(folder.path())?,
        };
        Ok(Self { folder, device })
    }

    pub fn name(&self) -> String {
        match &self.device {
            Device::Broker { .. } => "the broker's".to_owned(),
            Device::Program { name, .. } => name.clone(),
        }
    }

    /// The socket of a guest's device.
    pub fn socket(&self, guest: usize) -> PathBuf {
        match &self.device {
            Device::Broker { dirs, .. } => dirs.vm_socket(NAMES[guest]),
            Device::Program { .. } => program_socket(self.folder.path(), guest),
        }
    }
}

impl Backend {
    /// The folder of the broker.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if let Device::Program { child, .. } = &mut self.device {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn start_broker(folder: &Path) -> Result<Device> {
    let dirs = Dirs {
        run: folder.to_owned(),
        config: folder.to_owned(),
    };
    let mut config = BrokerConfig::new(dirs.clone());
    config.partition = PartitionName::new("vsock-test-host")?;
    let running = Broker::start(config)?;
    let handle = running.handle();
    for port in PORTS {
        let service = NewService {
            name: ElementName::new(format!("vsock_test {port}"))?,
            id: Some(ServiceId::from_port(port)),
            enabled: true,
            bind: Default::default(),
            connect: Default::default(),
            allow_wildcard_binds: None,
            only_root_binds: None,
            transport: None,
            vm: Default::default(),
            creator: None,
            purpose: Some("the kernel's vsock_test".into()),
        };
        handle.register(service, "root".into())?;
    }
    for (name, cid) in NAMES.iter().zip(CIDS) {
        handle.add_vm(NewVm {
            name: PartitionName::new(*name)?,
            cid: Some(cid),
            id: None,
            groups: vec![GROUP.into()],
            link: LinkSpec::default(),
            unsealed_memory: false,
            user: None,
        })?;
    }
    Ok(Device::Broker {
        _running: Box::new(running),
        dirs,
    })
}

fn start_program(program: &Path, folder: &Path) -> Result<Device> {
    let mut command = Command::new(program);
    for (index, cid) in CIDS.iter().enumerate() {
        let socket = program_socket(folder, index);
        let hybrid = folder.join(format!("{}.uds", NAMES[index]));
        command.arg("--vm").arg(format!(
            "guest-cid={cid},socket={},uds-path={},groups={GROUP}",
            socket.display(),
            hybrid.display()
        ));
    }
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !(0..CIDS.len()).all(|guest| program_socket(folder, guest).exists()) {
        if Instant::now() > deadline {
            bail!("{} does not create its sockets", program.display());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let name = program.display().to_string();
    Ok(Device::Program { child, name })
}

fn program_socket(folder: &Path, guest: usize) -> PathBuf {
    folder.join(format!("{}.sock", NAMES[guest]))
}
