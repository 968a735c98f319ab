//! The thread that speaks vhost-user with a VM's VMM.
//!
//! One VMM at a time is served; another that connects meanwhile is turned away. What a VMM wants
//! of the queues is passed on to the data thread, which answers when it is done: once a VMM has
//! its answer to `GET_VRING_BASE`, nothing of the broker's touches the guest's memory or notifies
//! anybody.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hvsock_sys::event::{self, Event};
use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_virtio::features;
use hvsock_virtio::queue::Layout;
use mio::Waker;
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    BackendReqHandler, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut,
};

use super::memory::{MAX_REGIONS, Ram, RegionSpec};
use super::queues::{Order, QUEUES};
use super::{Command, VmSettings};

/// How long the data thread may take for an answer. It never blocks, so it takes no time; a VMM
/// must not wait for ever even so.
const ANSWER_BOUND: Duration = Duration::from_secs(10);
/// Queues of the device, that of events included.
const ALL_QUEUES: usize = QUEUES + 1;
/// The most entries of a queue.
const MAX_QUEUE: u32 = hvsock_virtio::queue::MAX_SIZE as u32;
/// Requests of one VMM that may fail before it is given up.
const MAX_FAILURES: u32 = 32;
/// How long to wait before the next VMM is taken, after taking one failed.
const AGAIN: Duration = Duration::from_millis(100);

/// The way to the data thread.
#[derive(Clone)]
pub(super) struct WorkerLink {
    pub(super) commands: Sender<Command>,
    pub(super) waker: Arc<Waker>,
}

/// The thread, as it is held.
#[derive(Default)]
pub(super) struct VmmThread {
    thread: Option<std::thread::JoinHandle<()>>,
    stop: Option<Arc<Stop>>,
}

/// What stops the thread, whatever it waits for.
struct Stop {
    event: Event,
    stopping: AtomicBool,
    /// The VMM's connection while there is one.
    connection: Mutex<Option<UnixStream>>,
}

impl VmmThread {
    /// None at all.
    pub(super) fn none() -> Self {
        Self::default()
    }

    pub(super) fn start(
        settings: VmSettings,
        listener: UnixListener,
        worker: WorkerLink,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let stop = Arc::new(Stop {
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

    /// Ends what it waits for.
    pub(super) fn stop(&self) {
        if let Some(stop) = &self.stop {
            stop.stopping.store(true, Ordering::SeqCst);
            stop.event.set();
            if let Some(connection) = &*stop.connection() {
                let _ = connection.shutdown(std::net::Shutdown::Both);
            }
        }
    }

    /// Waits until it has ended.
    pub(super) fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Stop {
    fn connection(&self) -> std::sync::MutexGuard<'_, Option<UnixStream>> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn is_set(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}

/// Takes one VMM after the other.
fn serve(settings: VmSettings, listener: &UnixListener, worker: &WorkerLink, stop: &Stop) {
    while !stop.is_set() {
        match wait(&[listener.as_fd(), stop.event.as_fd()], None) {
            Ok(_) if stop.is_set() => return,
            Ok(ready) if ready.contains(&0) => {}
            Ok(_) => continue,
            Err(_) => return,
        }
        match listener.accept() {
            Ok((connection, _)) => {
                let served = serve_one(settings, listener, connection, worker, stop);
                *stop.connection() = None;
                if let Err(error) = served
                    && !stop.is_set()
                {
                    tracing::warn!(cid = %settings.cid, "the VMM's connection ended: {error}");
                }
                let _ = order(worker, Order::Gone);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(cid = %settings.cid, %error, "cannot take a VMM");
                let _ = wait(&[stop.event.as_fd()], Some(Instant::now() + AGAIN));
            }
        }
    }
}

/// Serves a VMM until it goes.
fn serve_one(
    settings: VmSettings,
    listener: &UnixListener,
    connection: UnixStream,
    worker: &WorkerLink,
    stop: &Stop,
) -> Result<()> {
    connection
        .set_nonblocking(false)
        .map_err(Error::SocketError)?;
    let twin = connection.try_clone().map_err(Error::SocketError)?;
    *stop.connection() = Some(connection.try_clone().map_err(Error::SocketError)?);
    let device = Arc::new(Mutex::new(Device::new(settings, worker.clone())));
    let mut handler = BackendReqHandler::from_stream(connection, device);
    tracing::info!(cid = %settings.cid, "a VMM has connected");
    let mut failures = 0;
    loop {
        let fds = [twin.as_fd(), listener.as_fd(), stop.event.as_fd()];
        let ready = wait(&fds, None).map_err(Error::SocketError)?;
        if stop.is_set() {
            return Ok(());
        }
        // What the first has said, that it is gone perhaps, comes before another.
        if ready.contains(&1)
            && !ready.contains(&0)
            && let Ok((other, _)) = listener.accept()
        {
            tracing::warn!(cid = %settings.cid, "a second VMM has connected and is turned away");
            drop(other);
        }
        if ready.contains(&0) {
            match handler.handle_request() {
                Ok(()) => {}
                Err(Error::Disconnected | Error::PartialMessage) => return Ok(()),
                // What a VMM wants and cannot have, it was told; it may go on without.
                Err(Error::ReqHandlerError(error)) if failures < MAX_FAILURES => {
                    failures += 1;
                    tracing::warn!(cid = %settings.cid, "a VMM's request failed: {error}");
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Waits until one of `fds` is ready; which are.
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

/// Has the data thread do something, and waits until it has.
fn order(worker: &WorkerLink, order: Order) -> std::result::Result<u16, String> {
    let gone = || "the VM's data thread has ended".to_owned();
    let (answer, answered) = mpsc::channel();
    worker
        .commands
        .send(Command::Vmm(order, answer))
        .map_err(|_| gone())?;
    worker.waker.wake().map_err(|error| error.to_string())?;
    answered.recv_timeout(ANSWER_BOUND).map_err(|_| gone())?
}

/// What a VMM has said of one ring.
#[derive(Default)]
struct Ring {
    size: u16,
    /// Descriptors, used, available: in the VMM's own address space.
    addresses: Option<[u64; 3]>,
    base: u16,
    is_running: bool,
}

/// The device, as the VMM sees it.
struct Device {
    settings: VmSettings,
    worker: WorkerLink,
    ram: Ram,
    features: u64,
    rings: [Ring; ALL_QUEUES],
}

const FEATURES: u64 = features::VERSION_1
    | features::EVENT_IDX
    | features::INDIRECT_DESC
    | features::STREAM
    | features::SEQPACKET
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

fn failed(what: impl Into<String>) -> Error {
    Error::ReqHandlerError(io::Error::other(what.into()))
}

impl Device {
    fn new(settings: VmSettings, worker: WorkerLink) -> Self {
        Self {
            settings,
            worker,
            ram: Ram::default(),
            features: 0,
            rings: Default::default(),
        }
    }

    fn order(&self, wanted: Order) -> Result<u16> {
        order(&self.worker, wanted).map_err(failed)
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring> {
        let index = usize::try_from(index).map_err(|_| Error::InvalidParam)?;
        self.rings.get_mut(index).ok_or(Error::InvalidParam)
    }

    fn set_ram(&mut self, ram: Ram) -> Result<()> {
        self.order(Order::Memory(ram.clone()))?;
        self.ram = ram;
        Ok(())
    }

    fn region(&self, ram: &Ram, region: &VhostUserMemoryRegion, file: &File) -> Result<Ram> {
        let spec = RegionSpec {
            base: region.guest_phys_addr,
            in_vmm: region.user_addr,
            len: region.memory_size,
            offset: region.mmap_offset,
        };
        ram.with(spec, file, self.settings.unsealed_memory)
            .map_err(|error| {
                failed(format!(
                    "the guest's memory cannot be used: {error}; for QEMU use memory-backend-memfd \
                     with share=on, or add the VM with --unsealed-memory if its VMM cannot seal \
                     memory and is trusted not to shrink it"
                ))
            })
    }

    /// The layout of a ring in the guest's memory.
    fn layout(&self, ring: &Ring) -> Result<Layout> {
        let addresses = ring
            .addresses
            .ok_or_else(|| failed("a ring has no address"))?;
        let [descriptors, used, available] =
            addresses.map(|address| self.ram.guest_address(address));
        let outside = || failed("a ring is not in the guest's memory");
        Ok(Layout {
            size: ring.size,
            descriptors: descriptors.ok_or_else(outside)?,
            available: available.ok_or_else(outside)?,
            used: used.ok_or_else(outside)?,
            event_idx: self.features & features::EVENT_IDX != 0,
            indirect: self.features & features::INDIRECT_DESC != 0,
        })
    }

    fn enables_by_itself(&self) -> bool {
        self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0
    }

    fn reset(&mut self) -> Result<()> {
        self.order(Order::Reset)?;
        self.rings = Default::default();
        self.ram = Ram::default();
        Ok(())
    }
}

/// A descriptor that can be signalled, and that nobody waits on when it is read.
fn eventfd(file: File) -> Result<OwnedFd> {
    let fd = OwnedFd::from(file);
    if !event::is_eventfd(&fd) {
        return Err(failed("a kick or call descriptor is no eventfd"));
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
        let mut ram = Ram::default();
        for (region, file) in regions.iter().zip(&files) {
            ram = self.region(&ram, region, file)?;
        }
        self.set_ram(ram)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        if num == 0 || num > MAX_QUEUE {
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
            true => self.order(Order::Stop { queue })?,
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
            return Err(failed("a ring without kicks is not served"));
        };
        let (kick, ring) = (eventfd(file)?, &self.rings[queue]);
        let (layout, base) = (self.layout(ring)?, ring.base);
        self.order(Order::Start {
            queue,
            layout,
            base,
            kick,
        })?;
        self.rings[queue].is_running = true;
        if self.enables_by_itself() {
            self.order(Order::Enable {
                queue,
                enabled: true,
            })?;
        }
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let queue = usize::from(index);
        self.ring(u32::from(index))?;
        if queue >= QUEUES {
            return Ok(());
        }
        let call = file.map(eventfd).transpose()?;
        self.order(Order::Call { queue, call }).map(drop)
    }

    fn set_vring_err(&mut self, index: u8, _file: Option<File>) -> Result<()> {
        self.ring(u32::from(index)).map(drop)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(ALL_QUEUES as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let queue = usize::try_from(index).map_err(|_| Error::InvalidParam)?;
        self.ring(index)?;
        if queue >= QUEUES {
            return Ok(());
        }
        let enabled = enable;
        self.order(Order::Enable { queue, enabled }).map(drop)
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        // struct virtio_vsock_config: the guest's context id.
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
        // Nothing in it is the guest's to set.
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
        Err(Error::InvalidOperation("nothing is in flight"))
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("nothing is in flight"))
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
        let ram = self.region(&self.ram, region, &file)?;
        self.set_ram(ram)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let less = self.ram.without(region.guest_phys_addr, region.memory_size);
        let less = less.ok_or_else(|| failed("there is no such region"))?;
        self.set_ram(less)
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("connections cannot be moved"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("connections cannot be moved"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("no shared memory of the device's"))
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("migration is not supported"))
    }
}
