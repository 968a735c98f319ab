//! The thread that serves a VM's VMM over vhost-user.
//!
//! It serves one VMM at a time and rejects a second connection. Requests that concern the queues
//! are passed to the data thread, which replies when they have taken effect. So once the VMM has
//! the reply to `GET_VRING_BASE` for a queue, the broker accesses no buffer of that queue and
//! sends no more notifications for it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hvsock_sys::event::{self, Event, Signal};
use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_sys::sync::lock;
use hvsock_virtio::features;
use hvsock_virtio::queue::Layout;
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Backend, BackendReqHandler, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut,
};

use super::command::{Command, DeviceSettings};
use super::mem_table;
use super::memory::{MAX_REGIONS, Ram, RegionSpec};
use super::queues::{QUEUES, QueueCommand};
use crate::loop_waker::LoopWaker;

/// How long to wait for the data thread's reply. It never blocks and replies at once; the timeout
/// keeps a fault in it from blocking the VMM for ever.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// Queues of the device, including the event queue.
const NUM_QUEUES: usize = QUEUES + 1;
/// The most entries of a queue.
const MAX_QUEUE_SIZE: u32 = hvsock_virtio::queue::MAX_SIZE as u32;
/// The most failed requests of one VMM connection before it is closed.
const MAX_FAILURES: u32 = 32;
/// Backoff after an `accept` that failed.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The VMM thread's handle of the data thread.
#[derive(Clone)]
pub(super) struct WorkerHandle {
    pub(super) commands: Sender<Command>,
    pub(super) waker: Arc<LoopWaker>,
}

/// The owner's handle of the VMM thread.
#[derive(Default)]
pub(super) struct VmmThread {
    thread: Option<std::thread::JoinHandle<()>>,
    stop: Option<Arc<StopSignal>>,
}

/// Wakes the thread from every wait, and stops it.
struct StopSignal {
    event: Event,
    stopping: AtomicBool,
    /// The VMM's connection, if one is open. Shutting it down wakes a blocked read.
    connection: Mutex<Option<UnixStream>>,
}

impl VmmThread {
    /// A handle of no thread.
    pub(super) fn none() -> Self {
        Self::default()
    }

    pub(super) fn start(
        settings: DeviceSettings,
        listener: UnixListener,
        worker: WorkerHandle,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let stop = Arc::new(StopSignal {
            event: Event::new()?,
            stopping: AtomicBool::new(false),
            connection: Mutex::new(None),
        });
        let seen = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name(format!("hvsock-vmm-{}", settings.cid))
            .spawn(move || serve(settings, &listener, &worker, &seen))?;
        Ok(Self {
            thread: Some(thread),
            stop: Some(stop),
        })
    }

    /// Makes the thread end. Does not wait for it.
    pub(super) fn stop(&self) {
        if let Some(stop) = &self.stop {
            stop.stopping.store(true, Ordering::SeqCst);
            stop.event.set();
            if let Some(connection) = &*stop.connection() {
                let _ = connection.shutdown(std::net::Shutdown::Both);
            }
        }
    }

    /// Waits until the thread has ended.
    pub(super) fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl StopSignal {
    fn connection(&self) -> std::sync::MutexGuard<'_, Option<UnixStream>> {
        lock(&self.connection)
    }

    fn is_set(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}

/// Accepts and serves one VMM after the other.
fn serve(
    settings: DeviceSettings,
    listener: &UnixListener,
    worker: &WorkerHandle,
    stop: &StopSignal,
) {
    while !stop.is_set() {
        match wait(&[listener.as_fd(), stop.event.as_fd()], None) {
            Ok(_) if stop.is_set() => return,
            Ok(ready) if ready.contains(&0) => {}
            Ok(_) => continue,
            // A lack of memory, which passes.
            Err(_) => {
                std::thread::sleep(ACCEPT_RETRY);
                continue;
            }
        }
        match listener.accept() {
            Ok((connection, _)) => {
                let served = serve_one(settings, listener, connection, worker, stop);
                *stop.connection() = None;
                if let Err(error) = served
                    && !stop.is_set()
                {
                    tracing::warn!(cid = %settings.cid, %error, "VMM connection failed");
                }
                let _ = send_command(worker, QueueCommand::Disconnected);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(cid = %settings.cid, %error, "cannot accept a VMM connection");
                let _ = wait(&[stop.event.as_fd()], Some(Instant::now() + ACCEPT_RETRY));
            }
        }
    }
}

/// Serves one VMM until it disconnects.
fn serve_one(
    settings: DeviceSettings,
    listener: &UnixListener,
    connection: UnixStream,
    worker: &WorkerHandle,
    stop: &StopSignal,
) -> Result<()> {
    connection
        .set_nonblocking(false)
        .map_err(Error::SocketError)?;
    let polled = connection.try_clone().map_err(Error::SocketError)?;
    *stop.connection() = Some(connection.try_clone().map_err(Error::SocketError)?);
    let device = Arc::new(Mutex::new(Device::new(settings, worker.clone())));
    let mut handler = BackendReqHandler::from_stream(connection, Arc::clone(&device));
    tracing::info!(cid = %settings.cid, "VMM connected");
    let mut failures = 0;
    loop {
        let fds = [polled.as_fd(), listener.as_fd(), stop.event.as_fd()];
        let ready = wait(&fds, None).map_err(Error::SocketError)?;
        if stop.is_set() {
            return Ok(());
        }
        // Requests of the first VMM are handled first: it may have disconnected so that the second
        // can connect.
        if ready.contains(&1) && !ready.contains(&0) {
            match listener.accept() {
                Ok((second, _)) => {
                    tracing::warn!(cid = %settings.cid, "a second VMM connection is rejected");
                    drop(second);
                }
                // It stays in the queue. Without this wait, the loop would spin until it can be accepted.
                Err(_) => {
                    let fds = [polled.as_fd(), stop.event.as_fd()];
                    let _ = wait(&fds, Some(Instant::now() + ACCEPT_RETRY));
                }
            }
        }
        if ready.contains(&0) {
            let handled = match mem_table::is_next(&polled).map_err(Error::SocketError)? {
                true => set_mem_table(&polled, &device),
                false => handler.handle_request(),
            };
            match handled {
                Ok(()) => {}
                Err(Error::Disconnected | Error::PartialMessage) => return Ok(()),
                // The VMM has received a failure reply and may continue without this request.
                Err(Error::ReqHandlerError(error)) if failures < MAX_FAILURES => {
                    failures += 1;
                    tracing::warn!(cid = %settings.cid, %error, "vhost-user request failed");
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Handles SET_MEM_TABLE.
fn set_mem_table(connection: &UnixStream, device: &Mutex<Device>) -> Result<()> {
    let table = mem_table::receive(connection)?;
    let mut device = lock(device);
    let handled = device.set_regions(&table.regions, &table.files);
    if table.need_reply && device.acknowledges {
        mem_table::acknowledge(connection, handled.is_ok()).map_err(Error::SocketError)?;
    }
    handled
}

/// Waits until one of `fds` is ready. Returns the indices of those that are.
fn wait(fds: &[std::os::fd::BorrowedFd<'_>], deadline: Option<Instant>) -> io::Result<Vec<usize>> {
    let mut polled: Vec<_> = fds
        .iter()
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    poll::wait(&mut polled, deadline)?;
    let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
    let ready = polled.iter().enumerate().filter(|(_, fd)| is_ready(fd));
    Ok(ready.map(|(index, _)| index).collect())
}

/// Sends a command to the data thread and waits for its reply.
fn send_command(worker: &WorkerHandle, command: QueueCommand) -> std::result::Result<u16, String> {
    let gone = || "the VM's data thread has ended".to_owned();
    let (reply, replies) = mpsc::channel();
    worker
        .commands
        .send(Command::Vmm(command, reply))
        .map_err(|_| gone())?;
    worker.waker.wake();
    replies.recv_timeout(REPLY_TIMEOUT).map_err(|_| gone())?
}

/// The configuration of one vring, collected until SET_VRING_KICK starts it.
#[derive(Default)]
struct VringConfig {
    size: u16,
    /// Addresses of descriptor table, used ring and available ring in the VMM's address space.
    addresses: Option<[u64; 3]>,
    base: u16,
    is_running: bool,
}

/// The device's vhost-user state and request handlers.
struct Device {
    settings: DeviceSettings,
    worker: WorkerHandle,
    ram: Ram,
    features: u64,
    /// Whether REPLY_ACK is negotiated. The crate keeps its own record of it.
    acknowledges: bool,
    rings: [VringConfig; NUM_QUEUES],
    /// The call descriptor of the event queue, which never signals. User-mode Linux takes the close of its
    /// other end for a fault.
    event_call: Option<Signal>,
    /// The channel for requests to the VMM. None is sent, but User-mode Linux has no interrupts for the
    /// queues without it, and takes its close for the end of the device.
    requests: Option<Backend>,
}

const FEATURES: u64 = features::VERSION_1
    | features::EVENT_IDX
    | features::INDIRECT_DESC
    | features::STREAM
    | features::SEQPACKET
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

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
    fn new(settings: DeviceSettings, worker: WorkerHandle) -> Self {
        Self {
            settings,
            worker,
            ram: Ram::default(),
            features: 0,
            acknowledges: false,
            rings: Default::default(),
            event_call: None,
            requests: None,
        }
    }

    fn send_command(&self, command: QueueCommand) -> Result<u16> {
        send_command(&self.worker, command).map_err(request_error)
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

    fn set_regions(&mut self, regions: &[RegionSpec], files: &[File]) -> Result<()> {
        let mut ram = Ram::default();
        for (region, file) in regions.iter().zip(files) {
            ram = self.region(&ram, *region, file)?;
        }
        self.set_ram(ram)
    }

    fn region(&self, ram: &Ram, spec: RegionSpec, file: &File) -> Result<Ram> {
        ram.with(spec, file, self.settings.unsealed_memory)
            .map_err(|error| {
                request_error(format!(
                    "cannot map the guest's memory: {error}; with QEMU use memory-backend-memfd \
                     with share=on, or allow unsealed memory for the VM if its VMM cannot seal \
                     memory and is trusted not to shrink it"
                ))
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

    fn reset(&mut self) -> Result<()> {
        self.send_command(QueueCommand::Reset)?;
        self.rings = Default::default();
        self.ram = Ram::default();
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
        Ok(FEATURES)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !FEATURES != 0 {
            return Err(Error::InvalidParam);
        }
        self.features = features;
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
        let base = self.ring(index)?.base;
        let base = match queue < QUEUES {
            true => self.send_command(QueueCommand::Stop { queue })?,
            false => base,
        };
        let ring = self.ring(index)?;
        ring.is_running = false;
        ring.base = base;
        Ok(VhostUserVringState::new(index, u32::from(base)))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let queue = usize::from(index);
        self.ring(u32::from(index))?;
        if queue >= QUEUES {
            return Ok(());
        }
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
        self.rings[queue].is_running = true;
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
        if queue >= QUEUES {
            self.event_call = call;
            return Ok(());
        }
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
            | VhostUserProtocolFeatures::BACKEND_REQ)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        self.acknowledges = features & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0;
        Ok(())
    }

    fn set_backend_req_fd(&mut self, requests: Backend) {
        self.requests = Some(requests);
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(NUM_QUEUES as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let queue = usize::try_from(index).map_err(|_| Error::InvalidParam)?;
        self.ring(index)?;
        if queue >= QUEUES {
            return Ok(());
        }
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
        // struct virtio_vsock_config (virtio 1.2 §5.10.4): guest_cid, little-endian.
        let config = u64::from(self.settings.cid.get()).to_le_bytes();
        let (offset, size) = (offset as usize, size as usize);
        let end = offset.checked_add(size).ok_or(Error::InvalidParam)?;
        let part = config.get(offset..end).ok_or(Error::InvalidParam)?;
        Ok(part.to_vec())
    }

    fn set_config(
        &mut self,
        _offset: u32,
        _config: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> Result<()> {
        Err(Error::InvalidOperation("the configuration is read-only"))
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
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("migration is not supported"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("migration is not supported"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("no shared memory regions"))
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("migration is not supported"))
    }
}
