//! What a stream does with bytes: how many a second at each size of writes, how long 64 of them
//! take there and back, and what an idle connection uses.
//!
//! A [`Lane`] is one connection to the other process of a run, the [`peer`], over one transport.
//! All lanes of a run stand from its beginning to its end; [`measure`] lets them take turns of a
//! few hundredths of a second, and [`report`] makes ratios of what came of it.

pub mod asynchronous;
pub mod blocking;
pub mod goals;
pub mod measure;
mod ours;
pub mod peer;
mod protocol;
pub mod report;

use std::time::Duration;

use serde::Serialize;

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
    /// hvsock told to use no shared memory.
    OursDescriptor,
    /// A Unix stream socket; one from a listener moves bytes just as one of a pair does.
    Unix,
    /// TCP on the loopback interface, with `TCP_NODELAY`.
    Tcp,
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
    /// System calls that either end made to wake the other, where it can be told.
    pub bells: Option<u64>,
}

/// What came of messages that went there and back.
#[derive(Clone, Debug)]
pub struct Trips {
    /// What each took, in microseconds.
    pub each_us: Vec<f64>,
    /// As in [`Sent`].
    pub bells: Option<u64>,
}
