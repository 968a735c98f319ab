//! The front end of the kernel's device, `/dev/vhost-vsock`: the requests of a VMM with `vhost-vsock-pci`.
//!
//! The host's programs then reach the guest by the kernel's `AF_VSOCK`, and no broker is involved.

use std::io;
use std::sync::Arc;

use hvsock_sys::vhost::{Device, Region, Ring};

use super::memory::Memory;
use super::virtqueue::Virtqueue;

/// The opened device, and what its VMM knows.
#[derive(Debug)]
pub(super) struct KernelDevice {
    device: Device,
    /// The negotiated virtio features.
    features: u64,
    /// Where each queue was stopped.
    bases: [u16; 2],
}

impl KernelDevice {
    /// Opens the device for a guest with this memory and context id, whose driver accepts these features.
    pub(super) fn open(memory: &Memory, cid: u64, accepted: u64) -> io::Result<Self> {
        let device = Device::open(Arc::clone(memory.mapping()))?;
        let features = device.features()? & accepted;
        device.set_features(features)?;
        let region = |region: &super::memory::Region| Region {
            guest: region.guest,
            offset: region.offset as usize,
            len: region.len as usize,
        };
        let regions: Vec<Region> = memory.regions().iter().map(region).collect();
        device.set_memory(&regions)?;
        device.set_guest_cid(cid)?;
        Ok(Self {
            device,
            features,
            bases: [0, 0],
        })
    }

    /// Sets up both queues, RX and TX, and starts the device.
    pub(super) fn start(&mut self, queues: [&Virtqueue; 2], bases: [u16; 2]) -> io::Result<()> {
        for (index, (queue, base)) in (0..).zip(queues.into_iter().zip(bases)) {
            let [descriptors, available, used] = queue.offsets();
            let ring = Ring {
                size: queue.size(),
                base,
                descriptors,
                available,
                used,
            };
            let (kick, call) = (queue.kick_event(), queue.call_descriptor());
            self.device.set_ring(index, ring, kick, call)?;
        }
        self.device.set_running(true)?;
        queues.into_iter().for_each(Virtqueue::kick);
        Ok(())
    }

    /// Stops the device. Returns the indexes of its queues.
    pub(super) fn stop(&mut self) -> io::Result<[u16; 2]> {
        self.device.set_running(false)?;
        self.bases = [self.device.base(0)?, self.device.base(1)?];
        Ok(self.bases)
    }

    /// Where the queues were stopped.
    pub(super) fn bases(&self) -> [u16; 2] {
        self.bases
    }

    pub(super) fn features(&self) -> u64 {
        self.features
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }
}
