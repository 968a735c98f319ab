//! How many bytes a ring holds.

/// The bytes that fit into each direction of a connection: a power of two between
/// [`RingSize::MIN`] and [`RingSize::MAX`].
///
/// ```
/// use hvsock_ring::RingSize;
///
/// assert_eq!(RingSize::DEFAULT.bytes(), 256 * 1024);
/// assert_eq!(RingSize::at_least(1_000_000).bytes(), 1 << 20);
/// assert_eq!(RingSize::at_least(1), RingSize::MIN);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RingSize(u32);

impl RingSize {
    /// One page.
    pub const MIN: Self = Self(4096);
    /// 256 KiB: what one core's cache holds beside other things.
    pub const DEFAULT: Self = Self(256 * 1024);
    /// 16 MiB.
    pub const MAX: Self = Self(16 * 1024 * 1024);

    /// The smallest size of at least so many bytes, or [`RingSize::MAX`] if none is.
    pub const fn at_least(bytes: u32) -> Self {
        if bytes <= Self::MIN.0 {
            Self::MIN
        } else if bytes >= Self::MAX.0 {
            Self::MAX
        } else {
            Self(bytes.next_power_of_two())
        }
    }

    /// The size with exactly so many bytes, if there is one.
    pub const fn exactly(bytes: u32) -> Option<Self> {
        let size = Self::at_least(bytes);
        if size.0 == bytes { Some(size) } else { None }
    }

    /// In bytes.
    pub const fn bytes(self) -> u32 {
        self.0
    }
}

impl Default for RingSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}
