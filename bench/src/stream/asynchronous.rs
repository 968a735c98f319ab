//! Lanes over tokio streams. They do the same steps as [`blocking`](super::blocking) ones.
//!
//! Both processes use a runtime of one thread, so that the bench measures the stream and not tokio's
//! scheduling between threads.

use std::rc::Rc;
use std::time::{Duration, Instant};

use hvsock::tokio::HvStream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Runtime;

use super::protocol::{self, Checker, REPLY, REQUEST, Reply, Request};
use super::wakeups::WakeupCounts;
use super::{Lane, MESSAGE, Sent, Trips, hvsock_lane};
use crate::cpu;

/// A tokio stream.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Wakeup counts of this end, if known.
    fn wakeups(&self) -> Option<WakeupCounts> {
        None
    }
}

impl Stream for UnixStream {}

impl Stream for TcpStream {}

impl Stream for HvStream {
    fn wakeups(&self) -> Option<WakeupCounts> {
        hvsock_lane::wakeups_in_tokio(self)
    }
}

/// Creates a runtime of one thread.
pub fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// Serves requests until the stream ends.
pub async fn serve(mut stream: impl Stream) -> anyhow::Result<()> {
    let mut request = [0; REQUEST];
    while stream.read_exact(&mut request).await.is_ok() {
        let nothing = Checker::new(1);
        let done = match Request::decode(request)? {
            Request::Read { size, count } => read_all(&mut stream, size, count).await?,
            Request::Write { size, count } => {
                let bytes = protocol::payload(size);
                for _ in 0..count {
                    stream.write_all(&bytes).await?;
                }
                nothing
            }
            Request::Echo { count } => {
                let mut message = [0; MESSAGE];
                for _ in 0..count {
                    stream.read_exact(&mut message).await?;
                    stream.write_all(&message).await?;
                }
                nothing
            }
            Request::Sleep { ms } => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                nothing
            }
            Request::DisableSpin => nothing,
            Request::PinTo { cpu } => {
                cpu::pin_to(cpu)?;
                nothing
            }
        };
        let reply = done.reply(stream.wakeups()).encode();
        stream.write_all(&reply).await?;
    }
    Ok(())
}

async fn read_all(stream: &mut impl Stream, size: usize, count: u64) -> anyhow::Result<Checker> {
    let mut checker = Checker::new(size);
    let mut buffer = vec![0; protocol::buffer_for(size)];
    let wanted = size as u64 * count;
    while checker.bytes() < wanted {
        let read = stream.read(&mut buffer).await?;
        anyhow::ensure!(read > 0, "the writer ended early");
        checker.check_read(&buffer[..read]);
    }
    Ok(checker)
}

/// A lane over a tokio stream.
#[derive(Debug)]
pub struct Asynchronous<S> {
    // Dropped before the runtime, which must outlive it.
    end: LaneEnd<S>,
    runtime: Rc<Runtime>,
}

#[derive(Debug)]
struct LaneEnd<S> {
    stream: S,
    /// Wakeup counts of both ends so far.
    wakeups: [Option<WakeupCounts>; 2],
}

impl<S: Stream> Asynchronous<S> {
    /// Creates a lane to a peer that runs [`serve`].
    pub fn new(runtime: &Rc<Runtime>, stream: S) -> anyhow::Result<Self> {
        let wakeups = [None; 2];
        let mut lane = Self {
            end: LaneEnd { stream, wakeups },
            runtime: Rc::clone(runtime),
        };
        lane.idle(Duration::ZERO)?;
        Ok(lane)
    }
}

impl<S: Stream> Lane for Asynchronous<S> {
    fn send(&mut self, size: usize, count: u64) -> anyhow::Result<Sent> {
        self.runtime.block_on(self.end.send(size, count))
    }

    fn round_trips(&mut self, count: u64) -> anyhow::Result<Trips> {
        self.runtime.block_on(self.end.round_trips(count))
    }

    fn idle(&mut self, time: Duration) -> anyhow::Result<()> {
        let ms = time.as_millis() as u64;
        let request = Request::Sleep { ms };
        self.runtime.block_on(self.end.perform(request))
    }

    fn pin_peer(&mut self, cpu: usize) -> anyhow::Result<()> {
        let request = Request::PinTo { cpu };
        self.runtime.block_on(self.end.perform(request))
    }
}

impl<S: Stream> LaneEnd<S> {
    async fn send_request(&mut self, request: Request) -> anyhow::Result<()> {
        Ok(self.stream.write_all(&request.encode()).await?)
    }

    async fn reply(&mut self, bytes: u64) -> anyhow::Result<Option<WakeupCounts>> {
        let mut reply = [0; REPLY];
        self.stream.read_exact(&mut reply).await?;
        let reply = Reply::decode(reply);
        reply.check(bytes)?;
        let now = [self.stream.wakeups(), reply.wakeups];
        let before = std::mem::replace(&mut self.wakeups, now);
        Ok(WakeupCounts::between(before, now))
    }

    async fn send(&mut self, size: usize, count: u64) -> anyhow::Result<Sent> {
        let bytes = protocol::payload(size);
        self.send_request(Request::Read { size, count }).await?;
        let start = Instant::now();
        for _ in 0..count {
            self.stream.write_all(&bytes).await?;
        }
        let wakeups = self.reply(size as u64 * count).await?;
        let seconds = start.elapsed().as_secs_f64();
        Ok(Sent { seconds, wakeups })
    }

    async fn round_trips(&mut self, count: u64) -> anyhow::Result<Trips> {
        self.send_request(Request::Echo { count }).await?;
        let mut message = [0x5a; MESSAGE];
        let mut each_us = Vec::with_capacity(usize::try_from(count)?);
        let mut before = Instant::now();
        for trip in 0..count {
            message[..8].copy_from_slice(&trip.to_le_bytes());
            self.stream.write_all(&message).await?;
            self.stream.read_exact(&mut message).await?;
            anyhow::ensure!(
                message[..8] == trip.to_le_bytes(),
                "a wrong message came back"
            );
            let now = Instant::now();
            each_us.push(now.duration_since(before).as_secs_f64() * 1e6);
            before = now;
        }
        let wakeups = self.reply(0).await?;
        Ok(Trips { each_us, wakeups })
    }

    async fn perform(&mut self, request: Request) -> anyhow::Result<()> {
        self.send_request(request).await?;
        self.reply(0).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_performs_every_request() {
        let (local, peer_end) = std::os::unix::net::UnixStream::pair().unwrap();
        let peer = std::thread::spawn(move || {
            peer_end.set_nonblocking(true)?;
            runtime()?.block_on(async { serve(UnixStream::from_std(peer_end)?).await })
        });
        local.set_nonblocking(true).unwrap();
        let runtime = Rc::new(runtime().unwrap());
        let local = runtime.block_on(async { UnixStream::from_std(local).unwrap() });
        let mut lane = Asynchronous::new(&runtime, local).unwrap();
        assert!(lane.send(64, 1000).unwrap().seconds > 0.0);
        assert!(lane.send(1 << 20, 3).unwrap().wakeups.is_none());
        assert_eq!(lane.round_trips(5).unwrap().each_us.len(), 5);
        drop(lane);
        peer.join().unwrap().unwrap();
    }
}
