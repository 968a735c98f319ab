//! Guest memory, and where a virtqueue is in it.

/// Guest memory, addressed by guest physical addresses.
///
/// The guest may write to it at any time and may pass any address. Implementations must not panic,
/// and must not access anything but the guest's memory.
pub trait GuestMemory {
    /// Fills `to` from `address`. Returns `false`, with `to` unspecified, if a part is outside.
    #[must_use]
    fn read(&self, address: u64, to: &mut [u8]) -> bool;

    /// Copies `from` to `address`. Returns `false`, with nothing written, if a part is outside.
    #[must_use]
    fn write(&self, address: u64, from: &[u8]) -> bool;

    /// Loads a little-endian `u16` atomically, with acquire ordering. `None` if it is outside.
    fn load(&self, address: u64) -> Option<u16>;

    /// Stores a little-endian `u16` atomically, with release ordering. `None` if it is outside.
    fn store(&self, address: u64, value: u16) -> Option<()>;

    /// A full memory barrier: no later load moves before an earlier store.
    fn fence(&self);
}

/// Maximum queue size in entries (section 2.7).
pub const MAX_SIZE: u16 = 32768;
/// Maximum number of descriptors in one chain, whatever the queue size.
pub const MAX_CHAIN: usize = 1024;

/// The addresses of a virtqueue's parts, and the negotiated features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Queue size in entries: a power of two, at most [`MAX_SIZE`].
    pub size: u16,
    /// Address of the descriptor table, aligned to 16.
    pub descriptors: u64,
    /// Address of the available ring (the driver area), aligned to 2.
    pub available: u64,
    /// Address of the used ring (the device area), aligned to 4.
    pub used: u64,
    /// `VIRTIO_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// `VIRTIO_F_INDIRECT_DESC` was negotiated.
    pub indirect: bool,
}
