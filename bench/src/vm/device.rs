//! The two devices, each in a separate process, and their guests.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use hvsock_testkit::guest::{Guest, Options};

use super::GuestLaneKind;
use super::host::Host;
use crate::broker::BrokerProcess;

/// Context id of the guest on vhost-device-vsock.
const PEER_CID: u64 = 42;

/// Configuration of a guest.
#[derive(Clone, Copy, Debug)]
pub struct GuestConfig {
    /// Size of each virtqueue. QEMU's is 128.
    pub queue: u16,
    /// How long a blocked guest thread spins before it parks.
    pub spin: Duration,
}

impl GuestConfig {
    /// Driver options of a guest with this context id.
    pub fn options(self, cid: u64) -> Options {
        Options {
            queue_size: self.queue,
            tx_slots: self.queue,
            ..Options::new(cid)
        }
    }
}

/// A device with its guest and its host program.
#[derive(Debug)]
pub struct TestBed {
    /// The guest.
    pub guest: Guest,
    host: Host,
    device: Device,
}

#[derive(Debug)]
enum Device {
    Hvsock(BrokerProcess),
    VhostDeviceVsock(VhostDeviceVsock),
}

impl TestBed {
    /// Starts hvsock's device in a new broker.
    pub fn hvsock(config: GuestConfig) -> anyhow::Result<Self> {
        Self::hvsock_of(&std::env::current_exe()?, config)
    }

    /// As [`hvsock`](Self::hvsock), with the broker and the host program of this build of the bench.
    pub fn hvsock_of(build: &Path, config: GuestConfig) -> anyhow::Result<Self> {
        let broker = BrokerProcess::of_build(build, 1)?;
        let host = Host::start_of(
            build,
            &[GuestLaneKind::Ring, GuestLaneKind::Descriptor],
            &broker.endpoint(),
        )?;
        let options = config.options(u64::from(BrokerProcess::cid(0)));
        let guest = Guest::with_spin(&broker.vm_socket(0), options, config.spin);
        Ok(Self {
            guest: guest.context("cannot start a guest on hvsock's device")?,
            host,
            device: Device::Hvsock(broker),
        })
    }

    /// Starts vhost-device-vsock from this path.
    pub fn vhost_device_vsock(program: &Path, config: GuestConfig) -> anyhow::Result<Self> {
        let peer = VhostDeviceVsock::start(program)?;
        let host = Host::start(&[GuestLaneKind::Peer], &peer.base())?;
        let guest = Guest::with_spin(&peer.socket(), config.options(PEER_CID), config.spin);
        Ok(Self {
            guest: guest.context("cannot start a guest on vhost-device-vsock")?,
            host,
            device: Device::VhostDeviceVsock(peer),
        })
    }

    /// Process id of the device.
    pub fn device_pid(&self) -> u32 {
        match &self.device {
            Device::Hvsock(broker) => broker.pid(),
            Device::VhostDeviceVsock(peer) => peer.child.id(),
        }
    }

    /// Process ids of the device and the host program.
    pub fn processes(&self) -> [u32; 2] {
        [self.device_pid(), self.host.pid()]
    }
}

/// A running vhost-device-vsock. Dropping it kills the process.
#[derive(Debug)]
pub(super) struct VhostDeviceVsock {
    child: Child,
    folder: tempfile::TempDir,
}

impl VhostDeviceVsock {
    pub(super) fn start(program: &Path) -> anyhow::Result<Self> {
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

    pub(super) fn socket(&self) -> PathBuf {
        self.folder.path().join("v")
    }

    /// The process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn base(&self) -> PathBuf {
        self.folder.path().join("u")
    }
}

impl Drop for VhostDeviceVsock {
    fn drop(&mut self) {
        // It has no state to save.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
