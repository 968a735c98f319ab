//! The configuration of a driver and its VMM.

use std::time::Duration;

use hvsock_virtio::features;

use super::front_end::FrontEnd;
use super::front_end::fault::FaultAt;
use super::memory::Regions;

/// Bytes of a receive buffer in Linux: 4 KiB less the socket buffer's overhead.
pub const LINUX_RX_BUFFER: usize = 3776;

/// How a packet is laid out over its descriptor chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Header and payload in one descriptor.
    Together,
    /// The header in one descriptor, the payload in another. Linux does this up to 32 KiB.
    #[default]
    Apart,
    /// The header in one descriptor, the payload in descriptors of this many bytes. Linux does this
    /// above 32 KiB.
    Paged(usize),
    /// Descriptors of these lengths across header and payload, and one for the rest.
    Split(Vec<usize>),
}

/// Configuration of a driver and its VMM.
#[derive(Clone, Debug)]
pub struct Options {
    /// The guest's context id.
    pub cid: u64,
    /// Size of each virtqueue; a power of two.
    pub queue_size: u16,
    /// Virtio features that the driver accepts.
    pub features: u64,
    /// The VMM.
    pub front_end: FrontEnd,
    /// Whether the device is the kernel's, `/dev/vhost-vsock`, and not one with a vhost-user socket. The path of
    /// the device and the front end are then not used.
    pub kernel: bool,
    /// Protocol features of vhost-user that the VMM accepts.
    pub protocol: u64,
    /// Bytes of one receive buffer, including the header.
    pub rx_buffer: usize,
    /// Whether a receive buffer has a separate descriptor for the header.
    pub rx_header_apart: bool,
    /// Default layout of sent packets.
    pub layout: Layout,
    /// Most packets in flight to the device; at most the queue size.
    pub tx_slots: u16,
    /// Layout of the guest memory.
    pub regions: Regions,
    /// Whether a reader that has read everything sends a credit update, however few bytes it read.
    /// Linux does so since 6.8.
    pub credit_update_when_empty: bool,
    /// Whether the test itself overwrites the used ring, as a hostile guest may. Invalid entries there
    /// are then skipped instead of being reported as violations of the device.
    pub hostile: bool,
    /// A message of the VMM that is not as it should be.
    pub fault: Option<FaultAt>,
    /// Timeout for a vhost-user reply, and for free space in the TX queue.
    pub timeout: Duration,
}

impl Default for Options {
    /// Like Linux under QEMU.
    fn default() -> Self {
        Self {
            cid: 3,
            queue_size: 128,
            features: features::VERSION_1
                | features::EVENT_IDX
                | features::INDIRECT_DESC
                | features::STREAM
                | features::SEQPACKET,
            front_end: FrontEnd::default(),
            kernel: false,
            protocol: FrontEnd::default().script().protocol,
            rx_buffer: LINUX_RX_BUFFER,
            rx_header_apart: false,
            layout: Layout::default(),
            tx_slots: 128,
            regions: Regions::One,
            credit_update_when_empty: true,
            hostile: false,
            fault: None,
            timeout: Duration::from_secs(10),
        }
    }
}

impl Options {
    /// The defaults with this context id.
    pub fn new(cid: u64) -> Self {
        Self {
            cid,
            ..Self::default()
        }
    }

    /// Like Linux in a VM of this VMM, with this context id.
    pub fn of(front_end: FrontEnd, cid: u64) -> Self {
        let script = front_end.script();
        Self {
            front_end,
            queue_size: script.queue_size,
            protocol: script.protocol,
            ..Self::new(cid)
        }
    }

    /// Like Linux in User-mode Linux, with this context id.
    pub fn user_mode_linux(cid: u64) -> Self {
        Self::of(FrontEnd::UserModeLinux, cid)
    }

    /// Like Linux under QEMU with the kernel's device, with this context id.
    pub fn kernel(cid: u64) -> Self {
        Self {
            kernel: true,
            ..Self::new(cid)
        }
    }

    /// Removes virtio features.
    #[must_use]
    pub fn without(mut self, features: u64) -> Self {
        self.features &= !features;
        self
    }
}
