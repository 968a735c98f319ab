//! The two devices, each in a process of its own, and the guests on them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use hvsock_testkit::guest::{Guest, Options};

use super::Over;
use super::host::Host;
use crate::broker::BrokerProcess;

/// The context id of the guest on vhost-device-vsock; ours have the broker's.
const PEER_CID: u64 = 42;

/// What the guests are like.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Entries of each queue; QEMU's have 128.
    pub queue: u16,
    /// How long whoever waits in the guest looks before it sleeps.
    pub spin: Duration,
}

impl Kind {
    /// Options of a guest with this context id.
    pub fn options(self, cid: u64) -> Options {
        Options {
            queue_size: self.queue,
            tx_slots: self.queue,
            ..Options::new(cid)
        }
    }
}

/// A device, a guest on it and a program of the host behind it.
#[derive(Debug)]
pub struct Set {
    /// The guest.
    pub guest: Guest,
    host: Host,
    device: Device,
}

#[derive(Debug)]
enum Device {
    Ours(BrokerProcess),
    Peer(Peer),
}

impl Set {
    /// Ours, with a broker of its own.
    pub fn ours(kind: Kind) -> anyhow::Result<Self> {
        let broker = BrokerProcess::with_vms(1)?;
        let host = Host::start(&[Over::Ring, Over::Descriptor], &broker.endpoint())?;
        let options = kind.options(u64::from(BrokerProcess::cid(0)));
        let guest = Guest::with_spin(&broker.vm_socket(0), options, kind.spin);
        Ok(Self {
            guest: guest.context("no guest on our device")?,
            host,
            device: Device::Ours(broker),
        })
    }

    /// vhost-device-vsock, which is this program.
    pub fn peer(program: &Path, kind: Kind) -> anyhow::Result<Self> {
        let peer = Peer::start(program)?;
        let host = Host::start(&[Over::Peer], &peer.base())?;
        let guest = Guest::with_spin(&peer.socket(), kind.options(PEER_CID), kind.spin);
        Ok(Self {
            guest: guest.context("no guest on vhost-device-vsock")?,
            host,
            device: Device::Peer(peer),
        })
    }

    /// The process of the device.
    pub fn device_pid(&self) -> u32 {
        match &self.device {
            Device::Ours(broker) => broker.pid(),
            Device::Peer(peer) => peer.child.id(),
        }
    }

    /// All processes of it but this one.
    pub fn processes(&self) -> [u32; 2] {
        [self.device_pid(), self.host.pid()]
    }
}

/// A running vhost-device-vsock; it ends with this.
#[derive(Debug)]
struct Peer {
    child: Child,
    folder: tempfile::TempDir,
}

impl Peer {
    fn start(program: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("hvp").tempdir()?;
        let child = Command::new(program)
            .args(["--guest-cid", &PEER_CID.to_string()])
            .arg("--socket")
            .arg(folder.path().join("v"))
            .arg("--uds-path")
            .arg(folder.path().join("u"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { child, folder })
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("v")
    }

    fn base(&self) -> PathBuf {
        self.folder.path().join("u")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It has nothing to lose.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
