//! The stream bench: throughput by size of writes, round trips of 64 bytes, and the cost of idle connections.
//!
//! A [`Lane`] is one connection over one transport to the other process of a run, the [`peer`]. All lanes
//! stay connected for the whole run. [`measure`] measures them in alternating slices of some hundredths of a
//! second, beside the machine's [`limits`], and [`report`] computes ratios.

pub mod asynchronous;
pub mod blocking;
pub mod goals;
mod hvsock_lane;
pub mod limits;
pub mod measure;
pub mod peer;
pub(crate) mod protocol;
pub mod report;
pub mod wakeups;

use std::time::Duration;

use serde::Serialize;

use wakeups::WakeupCounts;

/// Size of a round-trip message in bytes.
pub const MESSAGE: usize = 64;

/// Sizes of writes for the throughput, in bytes.
pub const SIZES: [usize; 7] = [64, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];

/// The transport and wait mode of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LaneKind {
    /// hvsock with its defaults.
    Hvsock,
    /// hvsock without spinning: both ends park at once.
    HvsockNoSpin,
    /// Like `HvsockNoSpin`, with a pause before each message, so that both ends are parked.
    HvsockParked,
    /// hvsock without shared memory.
    HvsockDescriptor,
    /// hvsock with one socket pair of both ends.
    HvsockDirect,
    /// A Unix stream socket. Sockets from a listener and from a pair are equally fast.
    Unix,
    /// Like `Unix`, with a pause before each message, so that both ends are parked.
    UnixParked,
    /// TCP on the loopback interface, with `TCP_NODELAY`.
    Tcp,
}

impl LaneKind {
    /// Whether both ends park without spinning.
    pub fn is_without_spin(self) -> bool {
        matches!(self, Self::HvsockNoSpin | Self::HvsockParked)
    }

    /// The pause before each message, which is not measured. It is long enough for the peer to park. Without
    /// it (back to back), the time of a round trip depends on whether the kernel runs both ends on one
    /// processor.
    pub fn pause(self) -> Option<Duration> {
        let pauses = matches!(self, Self::HvsockParked | Self::UnixParked);
        pauses.then_some(Duration::from_micros(100))
    }

    /// Whether only round trips are measured over it.
    pub fn is_for_trips_only(self) -> bool {
        self.is_without_spin() || self.pause().is_some()
    }

    /// The Unix socket lane to which its round trips are compared.
    pub fn unix_reference(self) -> Self {
        match self.pause() {
            Some(_) => Self::UnixParked,
            None => Self::Unix,
        }
    }
}

/// One connection to the peer.
pub trait Lane {
    /// Sends `count` writes of `size` bytes. Returns once the peer has read and checked all.
    fn send(&mut self, size: usize, count: u64) -> anyhow::Result<Sent>;
    /// Makes `count` round trips of [`MESSAGE`] bytes.
    fn round_trips(&mut self, count: u64) -> anyhow::Result<Trips>;
    /// Blocks in a read for `time` while no lane has traffic.
    fn idle(&mut self, time: Duration) -> anyhow::Result<()>;
    /// Pins the peer's thread of this lane to one processor.
    fn pin_peer(&mut self, cpu: usize) -> anyhow::Result<()>;
}

/// The result of [`Lane::send`].
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Time from the first write until the peer's reply.
    pub seconds: f64,
    /// Wakeup counts of both ends, if known.
    pub wakeups: Option<WakeupCounts>,
}

/// The result of [`Lane::round_trips`].
#[derive(Clone, Debug)]
pub struct Trips {
    /// Time of each round trip in microseconds.
    pub each_us: Vec<f64>,
    /// Wakeup counts of both ends, if known.
    pub wakeups: Option<WakeupCounts>,
}
