//! Lanes through tokio: as [`blocking`](super::blocking) ones, step by step.
//!
//! Both processes have a runtime of one thread, so that what is measured is the stream and not
//! how tokio hands work from one thread to another.

use std::rc::Rc;
use std::time::{Duration, Instant};

use hvsock::tokio::HvStream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Runtime;

use super::bells::Bells;
use super::protocol::{self, ANSWER, Answer, Checker, REQUEST, Request};
use super::{Lane, MESSAGE, Sent, Trips, ours};
use crate::cpu;

/// A stream for tokio.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// What this end has done to wake the other, if it can tell.
    fn bells(&self) -> Option<Bells> {
        None
    }
}

impl Stream for UnixStream {}

impl Stream for TcpStream {}

impl Stream for HvStream {
    fn bells(&self) -> Option<Bells> {
        ours::bells_in_tokio(self)
    }
}

/// A runtime of one thread.
pub fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// Does what the other end asks until it is gone.
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
            Request::BeSilent { ms } => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                nothing
            }
            Request::Park => nothing,
            Request::StayOn { cpu } => {
                cpu::stay_on(cpu)?;
                nothing
            }
        };
        let answer = done.answer(stream.bells()).encode();
        stream.write_all(&answer).await?;
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
        checker.look(&buffer[..read]);
    }
    Ok(checker)
}

/// A lane over a stream for tokio.
#[derive(Debug)]
pub struct Asynchronous<S> {
    // Before the runtime, which must outlive it.
    end: End<S>,
    runtime: Rc<Runtime>,
}

#[derive(Debug)]
struct End<S> {
    stream: S,
    /// Bells of both ends so far.
    bells: [Option<Bells>; 2],
}

impl<S: Stream> Asynchronous<S> {
    /// A lane to a peer that [`serve`]s.
    pub fn new(runtime: &Rc<Runtime>, stream: S) -> anyhow::Result<Self> {
        let bells = [None; 2];
        let mut lane = Self {
            end: End { stream, bells },
            runtime: Rc::clone(runtime),
        };
        lane.wait(Duration::ZERO)?;
        Ok(lane)
    }
}

impl<S: Stream> Lane for Asynchronous<S> {
    fn send(&mut self, size: usize, count: u64) -> anyhow::Result<Sent> {
        self.runtime.block_on(self.end.send(size, count))
    }

    fn go_and_return(&mut self, count: u64) -> anyhow::Result<Trips> {
        self.runtime.block_on(self.end.go_and_return(count))
    }

    fn wait(&mut self, time: Duration) -> anyhow::Result<()> {
        let ms = time.as_millis() as u64;
        let request = Request::BeSilent { ms };
        self.runtime.block_on(self.end.have_done(request))
    }

    fn keep_peer_on(&mut self, cpu: usize) -> anyhow::Result<()> {
        let request = Request::StayOn { cpu };
        self.runtime.block_on(self.end.have_done(request))
    }
}

impl<S: Stream> End<S> {
    async fn ask(&mut self, request: Request) -> anyhow::Result<()> {
        Ok(self.stream.write_all(&request.encode()).await?)
    }

    async fn answer(&mut self, bytes: u64) -> anyhow::Result<Option<Bells>> {
        let mut answer = [0; ANSWER];
        self.stream.read_exact(&mut answer).await?;
        let answer = Answer::decode(answer);
        answer.check(bytes)?;
        let now = [self.stream.bells(), answer.bells];
        let before = std::mem::replace(&mut self.bells, now);
        Ok(Bells::between(before, now))
    }

    async fn send(&mut self, size: usize, count: u64) -> anyhow::Result<Sent> {
        let bytes = protocol::payload(size);
        self.ask(Request::Read { size, count }).await?;
        let start = Instant::now();
        for _ in 0..count {
            self.stream.write_all(&bytes).await?;
        }
        let bells = self.answer(size as u64 * count).await?;
        let seconds = start.elapsed().as_secs_f64();
        Ok(Sent { seconds, bells })
    }

    async fn go_and_return(&mut self, count: u64) -> anyhow::Result<Trips> {
        self.ask(Request::Echo { count }).await?;
        let mut message = [0x5a; MESSAGE];
        let mut each_us = Vec::with_capacity(usize::try_from(count)?);
        let mut before = Instant::now();
        for trip in 0..count {
            message[..8].copy_from_slice(&trip.to_le_bytes());
            self.stream.write_all(&message).await?;
            self.stream.read_exact(&mut message).await?;
            anyhow::ensure!(message[..8] == trip.to_le_bytes(), "another message came");
            let now = Instant::now();
            each_us.push(now.duration_since(before).as_secs_f64() * 1e6);
            before = now;
        }
        let bells = self.answer(0).await?;
        Ok(Trips { each_us, bells })
    }

    async fn have_done(&mut self, request: Request) -> anyhow::Result<()> {
        self.ask(request).await?;
        self.answer(0).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_does_all_that_it_can_be_asked() {
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let peer = std::thread::spawn(move || {
            far.set_nonblocking(true)?;
            runtime()?.block_on(async { serve(UnixStream::from_std(far)?).await })
        });
        near.set_nonblocking(true).unwrap();
        let runtime = Rc::new(runtime().unwrap());
        let near = runtime.block_on(async { UnixStream::from_std(near).unwrap() });
        let mut lane = Asynchronous::new(&runtime, near).unwrap();
        assert!(lane.send(64, 1000).unwrap().seconds > 0.0);
        assert!(lane.send(1 << 20, 3).unwrap().bells.is_none());
        assert_eq!(lane.go_and_return(5).unwrap().each_us.len(), 5);
        drop(lane);
        peer.join().unwrap().unwrap();
    }
}
