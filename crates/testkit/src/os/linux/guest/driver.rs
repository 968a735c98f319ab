//! A virtio-vsock driver: packets in and out, and everything that a machine does to its device.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_virtio::{HEADER_LEN, Header, features};

use super::memory::{Memory, Plan, Regions};
use super::virtqueue::{Piece, Places, Virtqueue};
use super::vmm::{PROTOCOL_FEATURES, Vmm, protocol};

/// The queue to the guest.
pub const RX: u32 = 0;
/// The queue from the guest.
pub const TX: u32 = 1;

/// The most bytes of one packet's data, as Linux has it.
pub const MAX_PACKET: usize = 64 << 10;
/// A receive buffer of Linux: what is left of 4 KiB.
pub const LINUX_RX_BUFFER: usize = 3776;

/// How a packet lies in its chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Header and data in one descriptor.
    Together,
    /// The header in one and the data in another, as Linux does up to 32 KiB.
    #[default]
    Apart,
    /// The header in one and the data in one for each so many bytes, as Linux does above.
    Paged(usize),
    /// Descriptors of these lengths over header and data, and one for what is left.
    Cut(Vec<usize>),
}

/// What a driver and its machine are like.
#[derive(Clone, Debug)]
pub struct Options {
    /// The guest's context id.
    pub cid: u64,
    /// Entries of each queue: a power of two.
    pub queue_size: u16,
    /// Features that it takes, if the device offers them.
    pub features: u64,
    /// Features of vhost-user that it takes, likewise.
    pub protocol: u64,
    /// Bytes of one receive buffer, its header included.
    pub rx_buffer: usize,
    /// Whether a receive buffer has a descriptor of its own for the header.
    pub rx_header_apart: bool,
    /// How its packets lie, where nothing else is said.
    pub layout: Layout,
    /// Packets that it can have under way at once; no more than the queue's size.
    pub tx_slots: u16,
    /// How its memory lies.
    pub regions: Regions,
    /// Whether a reader who has read everything tells the peer, however little that was: as Linux
    /// does from 6.8 on.
    pub tells_when_empty: bool,
    /// Whether the test itself writes where the device does: then what makes no sense there is
    /// passed over, and not taken for a fault of the device.
    pub lawless: bool,
    /// The longest that an answer of the device's process, or a free place, is waited for.
    pub timeout: Duration,
}

impl Default for Options {
    /// As Linux under QEMU.
    fn default() -> Self {
        Self {
            cid: 3,
            queue_size: 128,
            features: features::VERSION_1
                | features::EVENT_IDX
                | features::INDIRECT_DESC
                | features::STREAM
                | features::SEQPACKET,
            protocol: protocol::MQ
                | protocol::REPLY_ACK
                | protocol::CONFIG
                | protocol::RESET_DEVICE,
            rx_buffer: LINUX_RX_BUFFER,
            rx_header_apart: false,
            layout: Layout::default(),
            tx_slots: 128,
            regions: Regions::One,
            tells_when_empty: true,
            lawless: false,
            timeout: Duration::from_secs(10),
        }
    }
}

impl Options {
    /// The defaults, with this context id.
    pub fn new(cid: u64) -> Self {
        Self {
            cid,
            ..Self::default()
        }
    }

    /// Without some features.
    #[must_use]
    pub fn without(mut self, features: u64) -> Self {
        self.features &= !features;
        self
    }
}

/// A packet that has come; its data stays in guest memory until the buffer is given back.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Its header.
    pub header: Header,
    /// The buffer, to give back.
    pub buffer: u32,
    /// Where its data is.
    pub offset: usize,
    /// Bytes of data that came with it, whatever the header says.
    pub len: usize,
}

/// A driver and the machine that it runs in.
#[derive(Debug)]
pub struct Driver {
    path: PathBuf,
    options: Options,
    memory: Arc<Memory>,
    vmm: Option<Vmm>,
    features: u64,
    rx: Virtqueue,
    tx: Virtqueue,
    rx_begin: usize,
    /// Receive buffers that the device does not have and nobody holds.
    rx_spare: Vec<u32>,
    tx_begin: usize,
    /// Where packets can be put; the last is taken first.
    tx_free: Vec<u32>,
    /// Pieces of the chain that is made, kept for their memory.
    pieces: Vec<Piece>,
}

/// Twice as many as a queue takes: some can be held while the device has all that it can have.
fn rx_buffers(options: &Options) -> usize {
    2 * usize::from(options.queue_size)
}

/// Bytes from one receive buffer to the next.
fn rx_stride(options: &Options) -> usize {
    options.rx_buffer.next_multiple_of(64)
}

const TX_STRIDE: usize = (HEADER_LEN + MAX_PACKET).next_multiple_of(4096);
/// In a place for packets, data begins at a cache line's bound; the header ends there.
const TX_DATA: usize = 64;

impl Driver {
    /// Starts a machine whose device is at `path`, with its receive buffers handed over.
    pub fn start(path: &Path, options: Options) -> io::Result<Self> {
        let mut driver = Self::new(path, options)?;
        driver.connect()?;
        driver.refill();
        Ok(driver)
    }

    /// A machine that is not connected to its device, and has given it no buffer.
    pub fn new(path: &Path, options: Options) -> io::Result<Self> {
        assert!(options.queue_size.is_power_of_two() && options.tx_slots <= options.queue_size);
        let places = |seam| {
            let mut plan = Plan::new(seam);
            let queues = [(); 2].map(|()| Places::take(&mut plan, options.queue_size));
            let rx = plan.take(rx_buffers(&options) * rx_stride(&options), 4096);
            let tx = plan.take(usize::from(options.tx_slots) * TX_STRIDE, 4096);
            (queues, rx, tx, plan.len())
        };
        // All buffers of a kind are one stretch, so a seam moves by one of them at most.
        let (.., len) = places(None);
        let spare = match options.regions {
            Regions::TwoApart => len,
            _ => 0,
        };
        let memory = Arc::new(Memory::new(len + spare, options.regions)?);
        let ([rx, tx], rx_begin, tx_begin, planned) = places(memory.seam());
        assert!(planned <= memory.len());
        let queue = |places| Virtqueue::new(&memory, options.queue_size, places);
        let (rx, tx) = (queue(rx)?, queue(tx)?);
        let mut driver = Self {
            path: path.to_owned(),
            memory,
            vmm: None,
            features: 0,
            rx,
            tx,
            rx_begin,
            rx_spare: Vec::new(),
            tx_begin,
            tx_free: Vec::new(),
            pieces: Vec::new(),
            options,
        };
        if driver.options.lawless {
            driver.rx.be_lawless();
            driver.tx.be_lawless();
        }
        driver.forget();
        Ok(driver)
    }

    /// Connects the machine to its device and starts the queues; where it was connected before,
    /// as QEMU does when its device's process was restarted.
    pub fn connect(&mut self) -> io::Result<()> {
        let mut vmm = Vmm::connect(&self.path, self.options.timeout)?;
        self.features = vmm.agree(self.options.features, self.options.protocol)?;
        self.vmm = Some(vmm);
        let has = |feature| self.features & feature != 0;
        let (event_idx, indirect) = (has(features::EVENT_IDX), has(features::INDIRECT_DESC));
        self.rx.agree(event_idx, indirect);
        self.tx.agree(event_idx, indirect);
        let bases = [self.rx.used_index(), self.tx.used_index()];
        self.start_queues(bases)
    }

    /// Starts the queues where they were stopped, or elsewhere, as QEMU does: the memory is told
    /// again, too.
    pub fn start_queues(&mut self, bases: [u16; 2]) -> io::Result<()> {
        let vmm = self.vmm()?;
        vmm.set_memory(self.memory.regions(), self.memory.descriptor())?;
        for (index, (queue, base)) in [(RX, &self.rx), (TX, &self.tx)]
            .into_iter()
            .map(|(index, queue)| (index, (queue, bases[index as usize])))
        {
            let events = [queue.kick_event(), queue.call_event()];
            vmm.start_ring(index, queue.size(), base, queue.addresses(), events)?;
        }
        if self.features & PROTOCOL_FEATURES != 0 {
            vmm.enable_ring(RX, true)?;
            vmm.enable_ring(TX, true)?;
        }
        // A ring starts with a kick.
        self.rx.kick();
        self.tx.kick();
        Ok(())
    }

    /// Stops the queues, as a machine that is paused does; where they were.
    pub fn stop_queues(&mut self) -> io::Result<[u16; 2]> {
        let vmm = self.vmm()?;
        Ok([vmm.stop_ring(RX)?, vmm.stop_ring(TX)?])
    }

    /// Lets the guest restart: its driver begins anew, on the same machine.
    pub fn reboot(&mut self) -> io::Result<()> {
        self.stop_queues()?;
        self.forget();
        self.start_queues([0, 0])?;
        self.refill();
        Ok(())
    }

    /// Ends the connection to the device's process without a word, as a machine that is killed.
    pub fn disconnect(&mut self) {
        self.vmm = None;
    }

    /// The connection to the device's process.
    pub fn vmm(&self) -> io::Result<&Vmm> {
        self.vmm.as_ref().ok_or(io::ErrorKind::NotConnected.into())
    }

    /// Features that both sides have.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// What it was made with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The queue to the guest.
    pub fn rx(&mut self) -> &mut Virtqueue {
        &mut self.rx
    }

    /// The queue from the guest.
    pub fn tx(&mut self) -> &mut Virtqueue {
        &mut self.tx
    }

    /// As a driver that begins anew: nothing is under way, no buffer is handed over.
    pub fn forget(&mut self) {
        self.rx.forget();
        self.tx.forget();
        self.rx_spare = (0..rx_buffers(&self.options) as u32).rev().collect();
        self.tx_free = (0..u32::from(self.options.tx_slots)).rev().collect();
    }

    /// Hands spare receive buffers over until the device has as many as the queue takes.
    #[inline]
    pub fn refill(&mut self) {
        let len = self.options.rx_buffer;
        while let Some(&buffer) = self.rx_spare.last() {
            let offset = self.rx_begin + buffer as usize * rx_stride(&self.options);
            let header = HEADER_LEN;
            let added = if self.options.rx_header_apart {
                let data = offset + header;
                let pieces = [(offset, header), (data, len - header)];
                let pieces = pieces.map(|(offset, len)| Piece { offset, len });
                self.rx.add(&pieces, true, buffer)
            } else {
                self.rx.add(&[Piece { offset, len }], true, buffer)
            };
            if !added {
                break;
            }
            self.rx_spare.pop();
        }
        self.rx.publish();
    }

    /// Whether a buffer that is held leaves one to hand over in its place.
    #[inline]
    pub fn has_spare(&self) -> bool {
        !self.rx_spare.is_empty()
    }

    /// The next packet, if one has come. Its buffer is the caller's until it is given back.
    #[inline]
    pub fn poll_receive(&mut self) -> Option<Received> {
        let (buffer, written) = self.rx.take()?;
        let offset = self.rx_begin + buffer as usize * rx_stride(&self.options);
        let mut header = [0; HEADER_LEN];
        self.memory.bytes(offset, HEADER_LEN).get(0, &mut header);
        let written = match self.options.lawless {
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

    /// Gives a buffer back. The device gets it with the next [`Driver::refill`].
    #[inline]
    pub fn give_back(&mut self, buffer: u32) {
        self.rx_spare.push(buffer);
    }

    /// The next packet with its data, for which it waits so long; its buffer is handed over again.
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
                self.give_back(buffer);
                self.refill();
                return Ok(Some((header, data)));
            }
            if !self.rx.want_call() && !wait(&self.rx, until)? {
                return Ok(None);
            }
        }
    }

    /// Sends a packet, data and all, if there is room. The header stays as it is.
    #[inline]
    pub fn try_send(&mut self, header: &Header, data: &[u8]) -> bool {
        let layout = std::mem::take(&mut self.options.layout);
        let sent = self.put(header, data, &layout);
        self.options.layout = layout;
        sent
    }

    /// Sends a packet that lies in this way, and waits for room as long as it may. The header
    /// stays as it is, whatever the data.
    pub fn send(&mut self, header: &Header, data: &[u8], layout: &Layout) -> io::Result<()> {
        let until = Instant::now() + self.options.timeout;
        while !self.put(header, data, layout) {
            if !self.tx.want_call() && !wait(&self.tx, until)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        self.tx.publish();
        Ok(())
    }

    /// Lets the device see what was sent by [`Driver::try_send`].
    #[inline]
    pub fn flush(&mut self) {
        self.tx.publish();
    }

    /// Takes back the places of packets that the device has read.
    #[inline]
    pub fn reclaim(&mut self) {
        while let Some((slot, _)) = self.tx.take() {
            self.tx_free.push(slot);
        }
    }

    /// Whether every packet was read by the device.
    pub fn is_sent(&mut self) -> bool {
        self.reclaim();
        self.tx_free.len() == usize::from(self.options.tx_slots)
    }

    fn put(&mut self, header: &Header, data: &[u8], layout: &Layout) -> bool {
        assert!(data.len() <= MAX_PACKET);
        if self.tx_free.is_empty() {
            self.reclaim();
        }
        let Some(slot) = self.tx_free.pop() else {
            return false;
        };
        let data_at = self.tx_begin + slot as usize * TX_STRIDE + TX_DATA;
        self.cut(data_at - HEADER_LEN, data.len(), layout);
        if !self.tx.has_room(self.pieces.len()) {
            self.reclaim();
        }
        self.memory
            .bytes(data_at - HEADER_LEN, HEADER_LEN)
            .put(0, &header.encode());
        self.memory.bytes(data_at, data.len()).put(0, data);
        let sent = self.tx.add(&self.pieces, false, slot);
        if !sent {
            self.tx_free.push(slot);
        }
        sent
    }

    /// Makes the pieces of a packet.
    #[inline]
    fn cut(&mut self, begin: usize, data: usize, layout: &Layout) {
        self.pieces.clear();
        let end = begin + HEADER_LEN + data;
        let mut at = begin;
        let mut piece = |len: usize| {
            let len = len.min(end - at);
            if len > 0 {
                self.pieces.push(Piece { offset: at, len });
            }
            at += len;
        };
        match layout {
            Layout::Together => {}
            Layout::Apart => piece(HEADER_LEN),
            Layout::Paged(size) => {
                piece(HEADER_LEN);
                (0..data.div_ceil(*size)).for_each(|_| piece(*size));
            }
            Layout::Cut(lengths) => lengths.iter().for_each(|len| piece(*len)),
        }
        piece(usize::MAX);
    }
}

fn wait(queue: &Virtqueue, until: Instant) -> io::Result<bool> {
    let event = queue.call_event();
    let came = poll::wait(&mut [PollFd::new(&event, PollFlags::IN)], Some(until))?;
    queue.clear_call();
    Ok(came)
}
