//! The bench of `hvsock run`: what a program that is not changed pays, against the library and against a plain
//! Unix socket.
//!
//! [`program`] is the program: a server and a client that know nothing of hvsock if they use sockets. Each
//! [`Way`] has a pair of such processes. [`measure`] takes all ways in alternating turns, and [`report`] has the ratios
//! and the goals.

pub mod measure;
pub mod program;
pub mod report;

use serde::Serialize;

/// How a pair of processes is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Unix sockets, without a broker.
    Unix,
    /// The library, which may use shared memory.
    Library,
    /// The library over the descriptor transport: Unix sockets and the broker, as under `hvsock run`.
    Descriptor,
    /// `AF_VSOCK` sockets under `hvsock run --seccomp`.
    Seccomp,
    /// `AF_VSOCK` sockets under `hvsock run --preload`.
    Preload,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Unix,
        Self::Library,
        Self::Descriptor,
        Self::Seccomp,
        Self::Preload,
    ];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unix => "Unix socket",
            Self::Library => "library",
            Self::Descriptor => "library, descriptors",
            Self::Seccomp => "hvsock run",
            Self::Preload => "hvsock run --preload",
        }
    }

    /// The option of `hvsock run`; `None` for processes that run without it.
    pub fn option(self) -> Option<&'static str> {
        match self {
            Self::Seccomp => Some("--seccomp"),
            Self::Preload => Some("--preload"),
            _ => None,
        }
    }

    /// The place in [`ALL`](Self::ALL).
    pub fn index(self) -> usize {
        self as usize
    }

    fn word(self) -> &'static str {
        match self {
            Self::Unix => "unix",
            Self::Library => "library",
            Self::Descriptor => "descriptor",
            Self::Seccomp => "seccomp",
            Self::Preload => "preload",
        }
    }

    fn parse(word: &str) -> anyhow::Result<Self> {
        let found = Self::ALL.into_iter().find(|way| way.word() == word);
        found.ok_or_else(|| anyhow::anyhow!("no way {word:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_has_its_place_and_its_word() {
        for (at, way) in Way::ALL.into_iter().enumerate() {
            assert_eq!(way.index(), at);
            assert_eq!(Way::parse(way.word()).unwrap(), way);
        }
    }
}
