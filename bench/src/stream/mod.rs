//! What a stream does with bytes: how many a second at each size of writes, how long 64 of them
//! take there and back, and what an idle connection uses.
//!
//! A [`Lane`] is one connection to the other process of a run, the [`peer`], over one transport.
//! All lanes of a run stand from its beginning to its end; [`measure`] lets them take turns of a
//! few hundredths of a second, and [`report`] makes ratios of what came of it.

pub mod asynchronous;
pub mod bells;
pub mod blocking;
pub mod goals;
pub mod measure;
mod ours;
pub mod peer;
pub(crate) mod protocol;
pub mod report;

use std::time::Duration;

use serde::Serialize;

use bells::Bells;

/// Bytes of a message that goes there and back.
pub const MESSAGE: usize = 64;

/// Sizes of writes at which throughput is measured.
pub const SIZES: [usize; 7] = [64, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];

/// What a lane goes over. Its name is that of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Over {
    /// hvsock as it comes.
    Ours,
    /// hvsock told to sleep at once where it would wait.
    OursParked,
    /// Likewise, and asked after a rest only, when both ends sleep.
    OursRested,
    /// hvsock told to use no shared memory.
    OursDescriptor,
    /// A Unix stream socket; one from a listener moves bytes just as one of a pair does.
    Unix,
    /// Likewise, and asked after a rest only, when both ends sleep.
    UnixRested,
    /// TCP on the loopback interface, with `TCP_NODELAY`.
    Tcp,
}

impl Over {
    /// Whether both ends are told to sleep at once where they would wait.
    pub fn is_parked(self) -> bool {
        matches!(self, Self::OursParked | Self::OursRested)
    }

    /// How long the end that asks sleeps before each message, outside of what is measured: long
    /// enough for the other end to have fallen asleep. Back to back neither end ever rests, and
    /// what a trip takes depends on whether the kernel keeps both on one processor.
    pub fn rest(self) -> Option<Duration> {
        let rests = matches!(self, Self::OursRested | Self::UnixRested);
        rests.then_some(Duration::from_micros(100))
    }

    /// Whether it is for messages that go there and back only.
    pub fn is_for_trips_only(self) -> bool {
        self.is_parked() || self.rest().is_some()
    }

    /// What its round trips are to be compared with.
    pub fn unix_alike(self) -> Self {
        match self.rest() {
            Some(_) => Self::UnixRested,
            None => Self::Unix,
        }
    }
}

/// One connection to the peer, and how to use it.
pub trait Lane {
    /// Sends `count` writes of `size` bytes; returns when the peer has read and checked all.
    fn send(&mut self, size: usize, count: u64) -> anyhow::Result<Sent>;
    /// Sends [`MESSAGE`] bytes and waits until they come back, `count` times.
    fn go_and_return(&mut self, count: u64) -> anyhow::Result<Trips>;
    /// Waits in a read for so long, for which nothing comes; the other lanes' ends wait too.
    fn wait(&mut self, time: Duration) -> anyhow::Result<()>;
    /// Keeps the peer's thread that serves this lane on one processor.
    fn keep_peer_on(&mut self, cpu: usize) -> anyhow::Result<()>;
}

/// What came of writes.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// From the first write until the peer said that it had all.
    pub seconds: f64,
    /// What the two ends did to wake each other, where it can be told.
    pub bells: Option<Bells>,
}

/// What came of messages that went there and back.
#[derive(Clone, Debug)]
pub struct Trips {
    /// What each took, in microseconds.
    pub each_us: Vec<f64>,
    /// As in [`Sent`].
    pub bells: Option<Bells>,
}
