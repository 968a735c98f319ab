//! The vhost-user requests of one VMM's connection, and what they have set up.
//!
//! Requests that concern the queues are passed to the data thread, which replies when they have taken effect.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use hvsock_sys::event::{self, Event, Signal};
use hvsock_virtio::features;
use hvsock_virtio::queue::Layout;
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Backend, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

pub(super) mod snapshot;

use super::command::{Command, DeviceSettings, DeviceState};
use super::device_state::{self, Loading};
use super::memory::{MAX_REGIONS, Ram, RegionSpec};
use super::next_request::Channel;
use super::queues::{QUEUES, QueueCommand};
use super::state_file::StateFile;
use super::worker::Worker;
use crate::gate::Gate;
use crate::loop_waker::LoopWaker;

/// How long to wait for the data thread's reply. It never blocks and replies at once; the timeout
/// keeps a fault in it from blocking the VMM for ever.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// The most entries of a queue.
const MAX_QUEUE_SIZE: u32 = hvsock_virtio::queue::MAX_SIZE as u32;

/// The VMM thread's handle of the data thread.
#[derive(Clone)]
pub(super) struct WorkerHandle {
    pub(super) commands: Sender<Command>,
    pub(super) waker: Arc<LoopWaker>,
    pub(super) state: DeviceState,
    pub(super) gate: Arc<Gate<Worker>>,
}

impl WorkerHandle {
    /// Asks the data thread to leave its state at its gate.
    pub(super) fn freeze(&self) {
        self.gate.close();
        self.waker.wake();
    }

    /// Sends a command to the data thread and waits for its reply.
    pub(super) fn send(&self, command: QueueCommand) -> std::result::Result<u16, String> {
        let gone = || "the VM's data thread has ended".to_owned();
        let (reply, replies) = mpsc::channel();
        self.commands
            .send(Command::Vmm(command, reply))
            .map_err(|_| gone())?;
        self.waker.wake();
        replies.recv_timeout(REPLY_TIMEOUT).map_err(|_| gone())?
    }
}

/// The configuration of one vring, collected until SET_VRING_KICK starts it.
#[derive(Default)]
struct VringConfig {
    size: u16,
    /// Addresses of descriptor table, used ring and available ring in the VMM's address space.
    addresses: Option<[u64; 3]>,
    base: u16,
}

/// What the VMM has negotiated. The crate keeps its own record of it, which nobody can read.
#[derive(Clone, Copy, Debug, Default)]
struct Negotiated {
    /// The VMM has asked for the device's features.
    asked: bool,
    /// The features that it has acknowledged last.
    features: Option<u64>,
    /// The same of the protocol's features.
    protocol: Option<u64>,
}

/// The device's vhost-user state and request handlers.
pub(super) struct Device {
    settings: DeviceSettings,
    worker: WorkerHandle,
    ram: Ram,
    features: u64,
    negotiated: Negotiated,
    rings: [VringConfig; QUEUES],
    /// The saved state that the VMM writes, until it asks whether that was right.
    loading: Option<Loading>,
    /// Whether the transfer of the state has succeeded.
    transferred: bool,
    stop: Arc<Event>,
    /// The channel for requests to the VMM. None is sent, but User-mode Linux has no interrupts for the
    /// queues without it, and takes its close for the end of the device.
    requests: Option<OwnedFd>,
}

/// The virtio features that the device offers.
const FEATURES: u64 = features::VERSION_1
    | features::EVENT_IDX
    | features::INDIRECT_DESC
    | features::STREAM
    | features::SEQPACKET
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

const SEQPACKET: u64 = features::SEQPACKET;

fn spec(region: &VhostUserMemoryRegion) -> RegionSpec {
    RegionSpec {
        base: region.guest_phys_addr,
        vmm_base: region.user_addr,
        len: region.memory_size,
        offset: region.mmap_offset,
    }
}

fn request_error(what: impl Into<String>) -> Error {
    Error::ReqHandlerError(io::Error::other(what.into()))
}

impl Device {
    pub(super) fn new(settings: DeviceSettings, worker: WorkerHandle, stop: Arc<Event>) -> Self {
        worker.state.set_seqpacket(true);
        Self {
            settings,
            worker,
            stop,
            ram: Ram::default(),
            features: 0,
            negotiated: Negotiated::default(),
            rings: Default::default(),
            requests: None,
            loading: None,
            transferred: false,
        }
    }

    /// Whether a request that asks for it is acknowledged.
    pub(super) fn acknowledges(&self) -> bool {
        self.has_negotiated(VhostUserProtocolFeatures::REPLY_ACK)
    }

    fn has_negotiated(&self, feature: VhostUserProtocolFeatures) -> bool {
        self.negotiated.protocol.unwrap_or(0) & feature.bits() != 0
    }

    /// Keeps the channel for requests to the VMM (SET_BACKEND_REQ_FD). Returns whether it is acknowledged if the
    /// VMM asks for that.
    pub(super) fn set_channel(&mut self, channel: &Channel) -> Result<bool> {
        let feature = VhostUserProtocolFeatures::BACKEND_REQ;
        if !self.has_negotiated(feature) {
            return Err(Error::InactiveOperation(feature));
        }
        let socket = channel.socket.try_clone().map_err(Error::SocketError)?;
        self.requests = Some(socket);
        Ok(self.acknowledges())
    }

    /// The descriptor from which a state arrives that the VMM loads.
    pub(super) fn state_file(&self) -> Option<Arc<StateFile>> {
        self.loading.as_ref().and_then(Loading::file)
    }

    /// Reads what has arrived of the state.
    pub(super) fn read_state(&mut self) {
        if let Some(loading) = &mut self.loading {
            loading.read();
        }
    }

    fn send_command(&self, command: QueueCommand) -> Result<u16> {
        self.worker.send(command).map_err(request_error)
    }

    fn ring(&mut self, index: u32) -> Result<&mut VringConfig> {
        let index = usize::try_from(index).map_err(|_| Error::InvalidParam)?;
        self.rings.get_mut(index).ok_or(Error::InvalidParam)
    }

    fn set_ram(&mut self, ram: Ram) -> Result<()> {
        self.send_command(QueueCommand::SetMemory(ram.clone()))?;
        self.ram = ram;
        Ok(())
    }

    /// Replaces the guest's memory (SET_MEM_TABLE).
    pub(super) fn set_regions(&mut self, regions: &[RegionSpec], files: &[File]) -> Result<()> {
        let mut ram = Ram::default();
        for (region, file) in regions.iter().zip(files) {
            ram = self.region(&ram, *region, file)?;
        }
        self.set_ram(ram)
    }

    fn region(&self, ram: &Ram, spec: RegionSpec, file: &File) -> Result<Ram> {
        ram.with(spec, file, self.settings.unsealed_memory)
            .map_err(|error| {
                let help = match error.kind() {
                    // The program that embeds the broker handles SIGBUS itself.
                    io::ErrorKind::ResourceBusy => {
                        "; let the VMM seal it (QEMU: memory-backend-memfd with share=on), or allow \
                         unsealed memory for the VM"
                    }
                    _ => "",
                };
                request_error(format!("cannot map the guest's memory: {error}{help}"))
            })
    }

    /// A ring's layout with its addresses translated to guest physical addresses.
    fn layout(&self, ring: &VringConfig) -> Result<Layout> {
        let addresses = ring
            .addresses
            .ok_or_else(|| request_error("a vring was started before SET_VRING_ADDR"))?;
        let [descriptors, used, available] =
            addresses.map(|address| self.ram.guest_address(address));
        let outside = || request_error("a vring's address is outside the guest's memory");
        Ok(Layout {
            size: ring.size,
            descriptors: descriptors.ok_or_else(outside)?,
            available: available.ok_or_else(outside)?,
            used: used.ok_or_else(outside)?,
            event_idx: self.features & features::EVENT_IDX != 0,
            indirect: self.features & features::INDIRECT_DESC != 0,
        })
    }

    /// Without the negotiated PROTOCOL_FEATURES, SET_VRING_KICK enables a ring as well.
    fn rings_start_enabled(&self) -> bool {
        self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0
    }

    /// Resets the device. The memory table stays: QEMU does not send it again if it has memory slots.
    fn reset(&mut self) -> Result<()> {
        self.send_command(QueueCommand::Reset)?;
        self.rings = Default::default();
        Ok(())
    }
}

/// Validates that a kick descriptor is an eventfd and makes it nonblocking.
fn eventfd(file: File) -> Result<OwnedFd> {
    let fd = OwnedFd::from(file);
    if !event::is_eventfd(&fd) {
        return Err(request_error("a kick descriptor is not an eventfd"));
    }
    hvsock_sys::set_nonblocking(&fd, true).map_err(Error::ReqHandlerError)?;
    Ok(fd)
}

impl VhostUserBackendReqHandlerMut for Device {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset()
    }

    fn reset_device(&mut self) -> Result<()> {
        self.reset()
    }

    fn get_features(&mut self) -> Result<u64> {
        self.negotiated.asked = true;
        Ok(FEATURES)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        self.negotiated.features = Some(features);
        if features & !FEATURES != 0 {
            return Err(Error::InvalidParam);
        }
        self.features = features;
        // Cloud Hypervisor passes on none of the device's own features. The guest then has streams only.
        let seqpacket = features & SEQPACKET != 0;
        self.worker.state.set_seqpacket(seqpacket);
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let regions: Vec<RegionSpec> = regions.iter().map(spec).collect();
        self.set_regions(&regions, &files)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        if num == 0 || num > MAX_QUEUE_SIZE {
            return Err(Error::InvalidParam);
        }
        self.ring(index)?.size = u16::try_from(num).map_err(|_| Error::InvalidParam)?;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        self.ring(index)?.addresses = Some([descriptor, used, available]);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.ring(index)?.base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let queue = usize::try_from(index).map_err(|_| Error::InvalidParam)?;
        self.ring(index)?;
        let base = self.send_command(QueueCommand::Stop { queue })?;
        self.ring(index)?.base = base;
        Ok(VhostUserVringState::new(index, u32::from(base)))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let queue = usize::from(index);
        self.ring(u32::from(index))?;
        let Some(file) = file else {
            return Err(request_error(
                "a vring without a kick eventfd is not supported",
            ));
        };
        let (kick, ring) = (eventfd(file)?, &self.rings[queue]);
        let (layout, base) = (self.layout(ring)?, ring.base);
        self.send_command(QueueCommand::Start {
            queue,
            layout,
            base,
            kick,
        })?;
        if self.rings_start_enabled() {
            self.send_command(QueueCommand::SetEnabled {
                queue,
                enabled: true,
            })?;
        }
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let queue = usize::from(index);
        self.ring(u32::from(index))?;
        let call = file.map(|file| Signal::new(file.into())).transpose();
        let call =
            call.map_err(|error| request_error(format!("invalid call descriptor: {error}")))?;
        self.send_command(QueueCommand::SetCall { queue, call })
            .map(drop)
    }

    fn set_vring_err(&mut self, index: u8, _file: Option<File>) -> Result<()> {
        self.ring(u32::from(index)).map(drop)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::DEVICE_STATE)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        self.negotiated.protocol = Some(features);
        Ok(())
    }

    /// [`set_channel`](Self::set_channel) is called in its place.
    fn set_backend_req_fd(&mut self, _requests: Backend) {}

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(QUEUES as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let queue = usize::try_from(index).map_err(|_| Error::InvalidParam)?;
        self.ring(index)?;
        let enabled = enable;
        self.send_command(QueueCommand::SetEnabled { queue, enabled })
            .map(drop)
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        Ok(config(self.settings.cid.get(), offset, size))
    }

    /// Nothing in it can be written, so it stays as it is. Cloud Hypervisor ends at an error.
    fn set_config(
        &mut self,
        _offset: u32,
        _config: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> Result<()> {
        Ok(())
    }

    fn set_gpu_socket(&mut self, _backend: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("no GPU"))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("no shared objects"))
    }

    fn get_inflight_fd(
        &mut self,
        _inflight: &VhostUserInflight,
    ) -> Result<(VhostUserInflight, File)> {
        Err(Error::InvalidOperation("no in-flight tracking"))
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("no in-flight tracking"))
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let ram = self.region(&self.ram, spec(region), &file)?;
        self.set_ram(ram)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let ram = self.ram.without(region.guest_phys_addr, region.memory_size);
        let ram = ram.ok_or_else(|| request_error("no memory region has this address and size"))?;
        self.set_ram(ram)
    }

    fn set_device_state_fd(
        &mut self,
        direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        file: File,
    ) -> Result<Option<File>> {
        self.transferred = false;
        self.loading = None;
        match direction {
            VhostTransferStateDirection::SAVE => {
                let cid = self.settings.cid.get();
                device_state::save(&file, cid, self.stop.as_fd())
                    .map_err(|error| transfer_error("save", &error))?;
                self.transferred = true;
            }
            // The VMM writes after the reply to this request.
            VhostTransferStateDirection::LOAD => {
                let loading = Loading::new(file).map_err(|error| transfer_error("load", &error))?;
                self.loading = Some(loading);
            }
        }
        Ok(None)
    }

    fn check_device_state(&mut self) -> Result<()> {
        if let Some(loading) = self.loading.take() {
            loading
                .finish(self.stop.as_fd())
                .map_err(|error| transfer_error("load", &error))?;
            self.send_command(QueueCommand::Load)?;
            self.transferred = true;
        }
        match self.transferred {
            true => Ok(()),
            false => Err(request_error("the device's state was not transferred")),
        }
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("no shared memory regions"))
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("migration is not supported"))
    }
}

/// A part of the configuration space, struct virtio_vsock_config (virtio 1.2 §5.10.4): guest_cid, little-endian.
/// Bytes beyond it are zero, since some front ends read more or end at an error.
fn config(cid: u32, offset: u32, size: u32) -> Vec<u8> {
    let config = u64::from(cid).to_le_bytes();
    let rest = config.get(offset as usize..).unwrap_or_default();
    // The crate has limited `size`.
    let mut part = rest[..rest.len().min(size as usize)].to_vec();
    part.resize(size as usize, 0);
    part
}

fn transfer_error(what: &str, error: &io::Error) -> Error {
    let text = format!("cannot {what} the device's state: {error}");
    tracing::warn!("{text}");
    request_error(text)
}

#[cfg(test)]
mod tests {
    use super::config;

    #[test]
    fn every_part_of_the_configuration_can_be_read() {
        let whole = config(0x0403_0201, 0, 8);
        assert_eq!(whole, [1, 2, 3, 4, 0, 0, 0, 0]);
        for offset in 0..20 {
            for size in 1..20 {
                let mut padded = [0; 64];
                padded[..8].copy_from_slice(&whole);
                let expected = &padded[offset as usize..][..size as usize];
                assert_eq!(
                    config(0x0403_0201, offset, size),
                    expected,
                    "{offset} {size}"
                );
            }
        }
        assert_eq!(config(3, u32::MAX, 4), [0; 4]);
    }
}
