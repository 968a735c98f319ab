//! A virtio-vsock driver and its VMM: sends and receives packets, starts and stops the device.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_sys::vhost;
use hvsock_virtio::{HEADER_LEN, Header, features};

use super::call::Call;
use super::front_end::script::Step;
use super::front_end::session::{Known, Machine, QUEUES, Session};
use super::kernel::KernelDevice;
use super::memory::{BumpAllocator, Memory, Regions};
use super::options::{Layout, Options};
use super::virtqueue::{QueueOffsets, Segment, Virtqueue};
use super::vmm::Vmm;

/// Index of the RX queue (device to guest).
pub const RX: u32 = 0;
/// Index of the TX queue (guest to device).
pub const TX: u32 = 1;
/// Index of the event queue. Not all VMMs give it to the device.
const EVENTS: usize = 2;
/// The buffers that Linux offers on the event queue.
const EVENT_BUFFERS: u32 = 8;
/// Bytes of an event (`struct virtio_vsock_event`).
const EVENT: usize = 4;
/// Distance between two event buffers in bytes.
const EVENT_STRIDE: usize = 64;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`: the device has lost all connections.
pub const TRANSPORT_RESET: u32 = 0;

/// Largest payload of a packet in bytes, as in Linux (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`).
pub const MAX_PACKET: usize = 64 << 10;

/// A received packet. Its payload stays in guest memory until the buffer is returned by
/// [`Driver::recycle`].
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// The packet's header.
    pub header: Header,
    /// Index of the receive buffer.
    pub buffer: u32,
    /// Offset of the payload in guest memory.
    pub offset: usize,
    /// Bytes of payload that the device wrote, whatever length the header contains.
    pub len: usize,
}

/// A virtio-vsock driver and its VMM.
#[derive(Debug)]
pub struct Driver {
    path: PathBuf,
    options: Options,
    memory: Arc<Memory>,
    session: Option<Session>,
    /// What the VMM knows of a connection that has ended.
    known: Option<Known>,
    /// The kernel's device, in place of a session.
    kernel: Option<KernelDevice>,
    rx: Virtqueue,
    tx: Virtqueue,
    events: Virtqueue,
    events_begin: usize,
    /// Event buffers that the device does not hold.
    events_spare: Vec<u32>,
    rx_begin: usize,
    /// Receive buffers that neither the device nor a connection holds.
    rx_spare: Vec<u32>,
    tx_begin: usize,
    /// Free transmit slots; the last is used first.
    tx_free: Vec<u32>,
    /// Segments of the current chain; kept to reuse the allocation.
    segments: Vec<Segment>,
}

/// Twice the queue size, so that connections can hold buffers while the queue stays full.
fn rx_buffers(options: &Options) -> usize {
    2 * usize::from(options.queue_size)
}

/// Distance between two receive buffers in bytes.
fn rx_stride(options: &Options) -> usize {
    options.rx_buffer.next_multiple_of(64)
}

const TX_STRIDE: usize = (HEADER_LEN + MAX_PACKET).next_multiple_of(4096);
/// Offset of the payload in a transmit slot: a cache line boundary. The header ends there.
const TX_DATA: usize = 64;

impl Driver {
    /// Connects to the device at `path` and offers all receive buffers.
    ///
    /// # Errors
    /// If the memory cannot be allocated, or the device cannot be reached or rejects the setup.
    pub fn start(path: &Path, options: Options) -> io::Result<Self> {
        let mut driver = Self::new(path, options)?;
        driver.connect()?;
        driver.refill();
        Ok(driver)
    }

    /// Creates a driver that is not connected yet and offers no buffer.
    ///
    /// # Panics
    /// If `queue_size` is no power of two, or less than `tx_slots`.
    ///
    /// # Errors
    /// If the memory or the notification descriptors cannot be created.
    pub fn new(path: &Path, options: Options) -> io::Result<Self> {
        assert!(options.queue_size.is_power_of_two() && options.tx_slots <= options.queue_size);
        let plan = |boundary| {
            let mut allocator = BumpAllocator::new(boundary);
            let queues =
                [(); QUEUES].map(|()| QueueOffsets::allocate(&mut allocator, options.queue_size));
            let events = allocator.allocate(EVENT_BUFFERS as usize * EVENT_STRIDE, 64);
            let rx = allocator.allocate(rx_buffers(&options) * rx_stride(&options), 4096);
            let tx = allocator.allocate(usize::from(options.tx_slots) * TX_STRIDE, 4096);
            (queues, events, rx, tx, allocator.len())
        };
        // Each kind of buffer is one allocation, so the boundary shifts at most one of them.
        let (.., len) = plan(None);
        let spare = match options.regions {
            Regions::TwoApart => len,
            _ => 0,
        };
        let script = options.front_end.script();
        let memory = Arc::new(Memory::of(script.memory, len + spare, options.regions)?);
        let (offsets, events_begin, rx_begin, tx_begin, planned) = plan(memory.boundary());
        assert!(planned <= memory.len());
        let [rx, tx, events] = offsets;
        let [rx_call, tx_call, events_call] = Call::for_queues(script.calls)?;
        let queue = |offsets, call| Virtqueue::new(&memory, options.queue_size, offsets, call);
        let (rx, tx) = (queue(rx, rx_call)?, queue(tx, tx_call)?);
        let events = queue(events, events_call)?;
        let mut driver = Self {
            path: path.to_owned(),
            memory,
            session: None,
            known: None,
            kernel: None,
            rx,
            tx,
            events,
            events_begin,
            events_spare: Vec::new(),
            rx_begin,
            rx_spare: Vec::new(),
            tx_begin,
            tx_free: Vec::new(),
            segments: Vec::new(),
            options,
        };
        if driver.options.hostile {
            driver.rx.tolerate_hostile_writes();
            driver.tx.tolerate_hostile_writes();
        }
        driver.reset_queues();
        Ok(driver)
    }

    /// Connects to the device and starts the queues. After a connection that has ended, it does what the VMM
    /// does when the device's process was restarted; QEMU resumes at the used index.
    ///
    /// # Errors
    /// `Unsupported` if the VMM does not connect again. If the device cannot be reached or rejects the setup.
    pub fn connect(&mut self) -> io::Result<()> {
        if self.options.kernel {
            let device = KernelDevice::open(&self.memory, self.options.cid, self.options.features)?;
            self.kernel = Some(device);
            self.agree();
            return self.start_queues([self.rx.used_index(), self.tx.used_index()]);
        }
        let script = self.options.front_end.script();
        let Some(mut known) = self.known.take() else {
            self.open()?;
            self.run(script.connect)?;
            self.agree();
            self.run(script.start)?;
            self.kick_started();
            return Ok(());
        };
        let Some(again) = script.reconnect else {
            let text = "the VMM does not connect to its device again";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        };
        self.session = None;
        known.bases = self.bases();
        let (every, within) = (again.every, again.within);
        let vmm = Vmm::connect_every(&self.path, every, within, self.options.timeout)?;
        self.use_vmm(vmm, known);
        self.run(again.steps)?;
        self.agree();
        self.kick_started();
        Ok(())
    }

    /// Starts the queues at these indexes, as when the guest's driver starts the device. VMMs whose messages have
    /// no such index choose their own.
    ///
    /// # Errors
    /// `NotConnected`, or if the device rejects the setup.
    pub fn start_queues(&mut self, bases: [u16; 2]) -> io::Result<()> {
        if let Some(kernel) = &mut self.kernel {
            return kernel.start([&self.rx, &self.tx], bases);
        }
        self.set_bases(bases)?;
        self.run(self.options.front_end.script().start)?;
        self.kick_started();
        Ok(())
    }

    /// Stops the queues, as a paused VM does. Returns their indexes.
    ///
    /// # Errors
    /// `NotConnected`, or if the device's reply is invalid.
    pub fn stop_queues(&mut self) -> io::Result<[u16; 2]> {
        if let Some(kernel) = &mut self.kernel {
            return kernel.stop();
        }
        self.run(self.options.front_end.script().pause)?;
        let [rx, tx, _] = self.session()?.known.bases;
        Ok([rx, tx])
    }

    /// Resumes a VM whose queues were stopped, where they stopped.
    ///
    /// # Errors
    /// `NotConnected`, or if the device rejects the setup.
    pub fn resume_queues(&mut self) -> io::Result<()> {
        if let Some(kernel) = &mut self.kernel {
            let bases = kernel.bases();
            return kernel.start([&self.rx, &self.tx], bases);
        }
        self.run(self.options.front_end.script().resume)?;
        self.kick_started();
        Ok(())
    }

    /// Saves the device's state, after the queues were stopped. Returns it, if the VMM and the device transfer one.
    ///
    /// # Errors
    /// `NotConnected`, or if the device rejects the transfer.
    pub fn save(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.run(self.options.front_end.script().save)?;
        Ok(self.session()?.state().map(<[u8]>::to_vec))
    }

    /// Resumes a VM whose state was saved.
    ///
    /// # Errors
    /// `NotConnected`, or if the device rejects the setup.
    pub fn resume_saved(&mut self) -> io::Result<()> {
        self.run(self.options.front_end.script().resume_saved)?;
        self.session_mut()?.known.restores = false;
        self.kick_started();
        Ok(())
    }

    /// Restores the VM in a new VMM, after [`Driver::save`] and [`Driver::disconnect`]. `state` replaces the
    /// device's saved one. The guest's memory is as it was.
    ///
    /// # Errors
    /// `Unsupported` if the VMM restores no VM. If the device cannot be reached or rejects state or setup.
    pub fn restore(&mut self, state: Option<Vec<u8>>) -> io::Result<()> {
        let Some(steps) = self.options.front_end.script().load else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let known = self.known.take().unwrap_or_default();
        self.open_with(known.of_new_vmm(state))?;
        self.run(steps)?;
        self.session_mut()?.known.restores = false;
        self.agree();
        self.kick_started();
        Ok(())
    }

    /// Restarts the guest: resets the driver, on the same VMM.
    ///
    /// # Errors
    /// As [`Driver::stop_queues`] and [`Driver::start_queues`].
    pub fn reboot(&mut self) -> io::Result<()> {
        match &mut self.kernel {
            Some(kernel) => drop(kernel.stop()?),
            None => self.run(self.options.front_end.script().stop)?,
        }
        self.reset_queues();
        self.start_queues([0, 0])?;
        self.refill();
        Ok(())
    }

    /// Closes the vhost-user connection without stopping the queues, as a killed VMM does, or one whose device
    /// has hung up. The kernel's device is closed.
    pub fn disconnect(&mut self) {
        self.kernel = None;
        if let Some(session) = self.session.take() {
            self.known = Some(session.known);
        }
    }

    /// Ends the VMM, as when its process was killed: the guest's memory is gone with it. The next connection is that
    /// of a new VMM, with memory of its own, in which the queues are reset: the device may not have noticed the end yet,
    /// and still writes to the old memory.
    ///
    /// # Errors
    /// If the memory cannot be allocated.
    pub fn end_vmm(&mut self) -> io::Result<()> {
        self.disconnect();
        self.known = None;
        self.memory = Arc::new(self.memory.another()?);
        for queue in [&mut self.rx, &mut self.tx, &mut self.events] {
            queue.set_memory(&self.memory);
        }
        self.reset_queues();
        Ok(())
    }

    /// Connects to the device, and sends nothing.
    ///
    /// # Errors
    /// If the device cannot be reached.
    pub fn open(&mut self) -> io::Result<()> {
        self.open_with(Known::default())
    }

    fn open_with(&mut self, known: Known) -> io::Result<()> {
        self.session = None;
        let vmm = Vmm::connect(&self.path, self.options.timeout)?;
        self.use_vmm(vmm, known);
        Ok(())
    }

    fn use_vmm(&mut self, vmm: Vmm, known: Known) {
        let options = &self.options;
        let (front_end, timeout) = (options.front_end, options.timeout);
        self.session = Some(Session::new(vmm, front_end, timeout, known, options.fault));
    }

    /// Sends messages of the VMM in an order of the test's own.
    ///
    /// # Errors
    /// `NotConnected`, or if the device closes the connection, or rejects a message.
    pub fn run(&mut self, steps: &[Step]) -> io::Result<()> {
        let machine = Machine {
            memory: &self.memory,
            queues: [&self.rx, &self.tx, &self.events],
            cid: self.options.cid,
            features: self.options.features,
            protocol: self.options.protocol,
        };
        let session = self.session.as_mut();
        let session = session.ok_or(io::Error::from(io::ErrorKind::NotConnected))?;
        session.run(steps, machine)
    }

    /// Applies the negotiated features.
    fn agree(&mut self) {
        let features = self.features();
        let has = |feature| features & feature != 0;
        let (event_idx, indirect) = (has(features::EVENT_IDX), has(features::INDIRECT_DESC));
        for queue in [&mut self.rx, &mut self.tx, &mut self.events] {
            queue.set_features(event_idx, indirect);
        }
    }

    /// Where each queue goes on: behind the last used buffer.
    fn bases(&self) -> [u16; QUEUES] {
        [&self.rx, &self.tx, &self.events].map(Virtqueue::used_index)
    }

    fn set_bases(&mut self, [rx, tx]: [u16; 2]) -> io::Result<()> {
        let events = self.events.used_index();
        self.session_mut()?.known.bases = [rx, tx, events];
        Ok(())
    }

    fn kick_started(&self) {
        if self.options.front_end.script().kicks {
            self.rx.kick();
            self.tx.kick();
        }
    }

    fn session(&self) -> io::Result<&Session> {
        self.session
            .as_ref()
            .ok_or(io::ErrorKind::NotConnected.into())
    }

    fn session_mut(&mut self) -> io::Result<&mut Session> {
        self.session
            .as_mut()
            .ok_or(io::ErrorKind::NotConnected.into())
    }

    /// Whether the device holds its end of the channel for its requests and of the event queue's call descriptor,
    /// and has used neither. True for what the VMM has not, or cannot tell.
    pub fn channels_are_open(&self) -> bool {
        let session = self.session.as_ref();
        session.is_none_or(Session::request_channel_is_open)
            && self.events.call_is_open_and_silent()
    }

    /// The kernel's device, if the VMM uses it and runs.
    pub fn kernel_device(&self) -> Option<&vhost::Device> {
        self.kernel.as_ref().map(KernelDevice::device)
    }

    /// The vhost-user connection.
    ///
    /// # Errors
    /// `NotConnected` without a connection.
    pub fn vmm(&self) -> io::Result<&Vmm> {
        self.session().map(|session| &session.vmm)
    }

    /// How many messages the VMM has sent on its connection.
    pub fn messages(&self) -> usize {
        self.session.as_ref().map_or(0, Session::messages)
    }

    /// Reads a part of the configuration space through the VMM.
    ///
    /// # Errors
    /// If the device closes the connection, or its reply is none that the VMM accepts.
    pub fn read_config(&mut self, offset: u32, size: u32) -> io::Result<Vec<u8>> {
        self.session_mut()?.read_config(offset, size, 0)
    }

    /// Writes a part of the configuration space through the VMM.
    ///
    /// # Errors
    /// If the device closes the connection, or reports a failure.
    pub fn write_config(&mut self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        self.session_mut()?.write_config(offset, bytes)
    }

    /// The negotiated virtio features.
    pub fn features(&self) -> u64 {
        if let Some(kernel) = &self.kernel {
            return kernel.features();
        }
        let session = self.session.as_ref();
        session.map_or(0, |session| session.known.features)
    }

    /// The driver's configuration.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The RX queue (device to guest).
    pub fn rx(&mut self) -> &mut Virtqueue {
        &mut self.rx
    }

    /// The TX queue (guest to device).
    pub fn tx(&mut self) -> &mut Virtqueue {
        &mut self.tx
    }

    /// Resets both queues: nothing is in flight, and the device has no buffer.
    pub fn reset_queues(&mut self) {
        self.rx.reset();
        self.tx.reset();
        self.events.reset();
        self.events_spare = (0..EVENT_BUFFERS).rev().collect();
        self.rx_spare = (0..rx_buffers(&self.options) as u32).rev().collect();
        self.tx_free = (0..u32::from(self.options.tx_slots)).rev().collect();
    }

    /// The event queue (device to guest).
    pub fn events(&mut self) -> &mut Virtqueue {
        &mut self.events
    }

    /// Offers spare event buffers, if the VMM gives their queue to the device.
    #[cold]
    fn offer_events(&mut self) {
        let has_queue = self.options.front_end.script().queues > EVENTS;
        for buffer in std::mem::take(&mut self.events_spare) {
            let offset = self.events_begin + buffer as usize * EVENT_STRIDE;
            let segment = Segment { offset, len: EVENT };
            if has_queue && !self.events.add(&[segment], true, buffer) {
                self.events_spare.push(buffer);
            }
        }
        self.events.publish();
    }

    /// Returns the next event's id. The next [`Driver::refill`] offers its buffer again, which tells the device that
    /// the event is handled.
    ///
    /// # Panics
    /// If the device wrote anything but an event.
    pub fn poll_event(&mut self) -> Option<u32> {
        let (buffer, written) = self.events.pop_used()?;
        assert_eq!(written, EVENT, "an event has {EVENT} bytes");
        let mut id = [0; EVENT];
        let offset = self.events_begin + buffer as usize * EVENT_STRIDE;
        self.memory.bytes(offset, EVENT).get(0, &mut id);
        self.events_spare.push(buffer);
        Some(u32::from_le_bytes(id))
    }

    /// Offers spare receive buffers until the RX queue is full, and the event buffers.
    #[inline]
    pub fn refill(&mut self) {
        if !self.events_spare.is_empty() {
            self.offer_events();
        }
        let len = self.options.rx_buffer;
        while let Some(&buffer) = self.rx_spare.last() {
            let offset = self.rx_begin + buffer as usize * rx_stride(&self.options);
            let header = HEADER_LEN;
            let added = if self.options.rx_header_apart {
                let data = offset + header;
                let segments = [(offset, header), (data, len - header)];
                let segments = segments.map(|(offset, len)| Segment { offset, len });
                self.rx.add(&segments, true, buffer)
            } else {
                self.rx.add(&[Segment { offset, len }], true, buffer)
            };
            if !added {
                break;
            }
            self.rx_spare.pop();
        }
        self.rx.publish();
    }

    /// Whether a spare buffer can replace one that a connection keeps.
    #[inline]
    pub fn has_spare(&self) -> bool {
        !self.rx_spare.is_empty()
    }

    /// Returns the next received packet. The caller owns its buffer until [`Driver::recycle`].
    ///
    /// # Panics
    /// If the device wrote fewer bytes than a header or more than the buffer has, unless
    /// [`Options::hostile`] is set.
    #[inline]
    pub fn poll_receive(&mut self) -> Option<Received> {
        let (buffer, written) = self.rx.pop_used()?;
        let offset = self.rx_begin + buffer as usize * rx_stride(&self.options);
        let mut header = [0; HEADER_LEN];
        self.memory.bytes(offset, HEADER_LEN).get(0, &mut header);
        let written = match self.options.hostile {
            true => written.clamp(HEADER_LEN, self.options.rx_buffer),
            false => written,
        };
        assert!(
            (HEADER_LEN..=self.options.rx_buffer).contains(&written),
            "the device wrote {written} bytes into a buffer of {}",
            self.options.rx_buffer
        );
        Some(Received {
            header: Header::decode(&header),
            buffer,
            offset: offset + HEADER_LEN,
            len: written - HEADER_LEN,
        })
    }

    /// Returns a buffer to the spare ones. The next [`Driver::refill`] offers it to the device.
    #[inline]
    pub fn recycle(&mut self, buffer: u32) {
        self.rx_spare.push(buffer);
    }

    /// Waits for the next packet, copies its payload and recycles its buffer. `None` on timeout.
    ///
    /// # Errors
    /// If the wait itself fails.
    pub fn receive(&mut self, timeout: Duration) -> io::Result<Option<(Header, Vec<u8>)>> {
        let until = Instant::now() + timeout;
        loop {
            if let Some(Received {
                header,
                buffer,
                offset,
                len,
            }) = self.poll_receive()
            {
                let mut data = vec![0; len];
                self.memory.bytes(offset, len).get(0, &mut data);
                self.recycle(buffer);
                self.refill();
                return Ok(Some((header, data)));
            }
            if !self.rx.enable_notification() && !wait(&self.rx, until)? {
                return Ok(None);
            }
        }
    }

    /// Adds a packet to the TX queue in the default layout. False if the queue is full. The header is
    /// sent unchanged, even if it contradicts the payload. The device sees it after [`Driver::flush`].
    #[inline]
    pub fn try_send(&mut self, header: &Header, data: &[u8]) -> bool {
        let layout = std::mem::take(&mut self.options.layout);
        let sent = self.try_add(header, data, &layout);
        self.options.layout = layout;
        sent
    }

    /// Sends a packet in this layout and waits while the TX queue is full. The header is sent
    /// unchanged, even if it contradicts the payload.
    ///
    /// # Errors
    /// `TimedOut` if the queue stays full for the configured timeout.
    pub fn send(&mut self, header: &Header, data: &[u8], layout: &Layout) -> io::Result<()> {
        let until = Instant::now() + self.options.timeout;
        while !self.try_add(header, data, layout) {
            if !self.tx.enable_notification() && !wait(&self.tx, until)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        self.tx.publish();
        Ok(())
    }

    /// Publishes packets added by [`Driver::try_send`].
    #[inline]
    pub fn flush(&mut self) {
        self.tx.publish();
    }

    /// Frees the slots of packets that the device has used.
    #[inline]
    pub fn reclaim(&mut self) {
        while let Some((slot, _)) = self.tx.pop_used() {
            self.tx_free.push(slot);
        }
    }

    /// Whether the device has used every sent packet.
    pub fn is_sent(&mut self) -> bool {
        self.reclaim();
        self.tx_free.len() == usize::from(self.options.tx_slots)
    }

    fn try_add(&mut self, header: &Header, data: &[u8], layout: &Layout) -> bool {
        assert!(data.len() <= MAX_PACKET);
        if self.tx_free.is_empty() {
            self.reclaim();
        }
        let Some(slot) = self.tx_free.pop() else {
            return false;
        };
        let data_at = self.tx_begin + slot as usize * TX_STRIDE + TX_DATA;
        self.split(data_at - HEADER_LEN, data.len(), layout);
        if !self.tx.has_free_descriptors(self.segments.len()) {
            self.reclaim();
        }
        self.memory
            .bytes(data_at - HEADER_LEN, HEADER_LEN)
            .put(0, &header.encode());
        self.memory.bytes(data_at, data.len()).put(0, data);
        let sent = self.tx.add(&self.segments, false, slot);
        if !sent {
            self.tx_free.push(slot);
        }
        sent
    }

    /// Splits a packet into segments.
    #[inline]
    fn split(&mut self, begin: usize, data: usize, layout: &Layout) {
        self.segments.clear();
        let end = begin + HEADER_LEN + data;
        let mut at = begin;
        let mut push = |len: usize| {
            let len = len.min(end - at);
            if len > 0 {
                self.segments.push(Segment { offset: at, len });
            }
            at += len;
        };
        match layout {
            Layout::Together => {}
            Layout::Apart => push(HEADER_LEN),
            Layout::Paged(size) => {
                push(HEADER_LEN);
                (0..data.div_ceil(*size)).for_each(|_| push(*size));
            }
            Layout::Split(lengths) => lengths.iter().for_each(|len| push(*len)),
        }
        push(usize::MAX);
    }
}

fn wait(queue: &Virtqueue, until: Instant) -> io::Result<bool> {
    let event = queue.call_event();
    let called = poll::wait(&mut [PollFd::new(&event, PollFlags::IN)], Some(until))?;
    queue.clear_call();
    Ok(called)
}
