//! The capacity of a ring.

/// The capacity in bytes of each direction of a connection: a power of two from
/// [`RingSize::MIN`] to [`RingSize::MAX`].
///
/// ```
/// use hvsock_ring::RingSize;
///
/// assert_eq!(RingSize::DEFAULT.bytes(), 2 << 20);
/// assert_eq!(RingSize::at_least(1_000_000).bytes(), 1 << 20);
/// assert_eq!(RingSize::at_least(1), RingSize::MIN);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RingSize(u32);

impl RingSize {
    /// 4 KiB: one page.
    pub const MIN: Self = Self(4096);
    /// 256 KiB: fits into one core's cache and leaves space for other data. What a connection uses of its
    /// ring before it becomes a long stream ([`RingEnd::set_window`](crate::RingEnd::set_window)), and the
    /// least size if only one end asks for one.
    pub const SMALL: Self = Self(256 * 1024);
    /// 2 MiB: a long stream is up to twice as fast as with 256 KiB, because the bytes have left the writer's
    /// own cache when the reader gets to them. 4 MiB are hardly faster.
    pub const DEFAULT: Self = Self(2 * 1024 * 1024);
    /// 16 MiB.
    pub const MAX: Self = Self(16 * 1024 * 1024);

    /// The smallest size of at least `bytes`, saturating at [`RingSize::MAX`].
    pub const fn at_least(bytes: u32) -> Self {
        if bytes <= Self::MIN.0 {
            Self::MIN
        } else if bytes >= Self::MAX.0 {
            Self::MAX
        } else {
            Self(bytes.next_power_of_two())
        }
    }

    /// The size of exactly `bytes`; `None` if `bytes` is no power of two or out of bounds.
    pub const fn exactly(bytes: u32) -> Option<Self> {
        let size = Self::at_least(bytes);
        if size.0 == bytes { Some(size) } else { None }
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u32 {
        self.0
    }
}

impl Default for RingSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}
