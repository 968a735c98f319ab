//! The two ends of a connection.

/// One of the two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RingSide {
    /// The end that connected.
    First,
    /// The end that accepted.
    Second,
}

impl RingSide {
    /// Both ends, the first one first.
    pub const BOTH: [RingSide; 2] = [RingSide::First, RingSide::Second];

    /// The other end.
    #[inline]
    pub const fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    /// The index of the direction that this end writes: 0 or 1.
    #[inline]
    pub(crate) const fn index(self) -> usize {
        match self {
            Self::First => 0,
            Self::Second => 1,
        }
    }
}
