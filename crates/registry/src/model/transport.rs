//! How the bytes of a service's connections travel.

use std::fmt;

/// How the bytes of a service's connections between two processes travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TransportSetting {
    /// The best that both processes and the broker support.
    #[default]
    Auto,
    /// Through one socket pair that both processes hold. The broker counts no bytes and cannot suspend
    /// such a connection, but still closes it.
    Direct,
}

impl TransportSetting {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Auto, Self::Direct];

    /// Its name, as the registry's files and the control API spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Direct => "direct",
        }
    }

    /// The one with this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }
}

impl fmt::Display for TransportSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
