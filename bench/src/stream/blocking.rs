//! Lanes through `Read` and `Write`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use hvsock::HvStream;

use super::bells::Bells;
use super::protocol::{self, ANSWER, Answer, Checker, REQUEST, Request};
use super::{Lane, MESSAGE, Over, Sent, Trips, ours};
use crate::cpu;

/// A stream that blocks.
pub trait Stream: Read + Write + Send + 'static {
    /// Sleeps at once from now on where it would wait, if it does otherwise.
    fn park(&self) {}

    /// What this end has done to wake the other, if it can tell.
    fn bells(&self) -> Option<Bells> {
        None
    }
}

impl Stream for UnixStream {}

impl Stream for TcpStream {}

impl Stream for HvStream {
    fn park(&self) {
        ours::park(self);
    }

    fn bells(&self) -> Option<Bells> {
        ours::bells(self)
    }
}

/// Does what the other end asks until it is gone.
pub fn serve(mut stream: impl Stream) -> anyhow::Result<()> {
    let mut request = [0; REQUEST];
    while stream.read_exact(&mut request).is_ok() {
        let nothing = Checker::new(1);
        let done = match Request::decode(request)? {
            Request::Read { size, count } => read_all(&mut stream, size, count)?,
            Request::Write { size, count } => {
                let bytes = protocol::payload(size);
                for _ in 0..count {
                    stream.write_all(&bytes)?;
                }
                nothing
            }
            Request::Echo { count } => {
                let mut message = [0; MESSAGE];
                for _ in 0..count {
                    stream.read_exact(&mut message)?;
                    stream.write_all(&message)?;
                }
                nothing
            }
            Request::BeSilent { ms } => {
                thread::sleep(Duration::from_millis(ms));
                nothing
            }
            Request::Park => {
                stream.park();
                nothing
            }
            Request::StayOn { cpu } => {
                cpu::stay_on(cpu)?;
                nothing
            }
        };
        stream.write_all(&done.answer(stream.bells()).encode())?;
    }
    Ok(())
}

fn read_all(stream: &mut impl Stream, size: usize, count: u64) -> anyhow::Result<Checker> {
    let mut checker = Checker::new(size);
    let mut buffer = vec![0; protocol::buffer_for(size)];
    let wanted = size as u64 * count;
    // Nothing follows the last write until it is answered, so no read takes too much.
    while checker.bytes() < wanted {
        let read = stream.read(&mut buffer)?;
        anyhow::ensure!(read > 0, "the writer ended early");
        checker.look(&buffer[..read]);
    }
    Ok(checker)
}

/// A lane over a stream that blocks.
#[derive(Debug)]
pub struct Blocking<S> {
    stream: S,
    over: Over,
    /// Bells of both ends so far.
    bells: [Option<Bells>; 2],
}

impl<S: Stream> Blocking<S> {
    /// A lane to a peer that [`serve`]s, used as is fit for what it goes over.
    pub fn new(stream: S, over: Over) -> anyhow::Result<Self> {
        let mut lane = Self {
            stream,
            over,
            bells: [None; 2],
        };
        if over.is_parked() {
            lane.stream.park();
            lane.ask(Request::Park)?;
        } else {
            lane.ask(Request::BeSilent { ms: 0 })?;
        }
        lane.answer(0)?;
        Ok(lane)
    }

    fn ask(&mut self, request: Request) -> anyhow::Result<()> {
        Ok(self.stream.write_all(&request.encode())?)
    }

    /// Waits for the answer, which must tell of so many bytes; what was done to wake each other
    /// since the last.
    fn answer(&mut self, bytes: u64) -> anyhow::Result<Option<Bells>> {
        let mut answer = [0; ANSWER];
        self.stream.read_exact(&mut answer)?;
        let answer = Answer::decode(answer);
        answer.check(bytes)?;
        let now = [self.stream.bells(), answer.bells];
        let before = std::mem::replace(&mut self.bells, now);
        Ok(Bells::between(before, now))
    }
}

impl<S: Stream> Lane for Blocking<S> {
    fn send(&mut self, size: usize, count: u64) -> anyhow::Result<Sent> {
        let bytes = protocol::payload(size);
        self.ask(Request::Read { size, count })?;
        let start = Instant::now();
        for _ in 0..count {
            self.stream.write_all(&bytes)?;
        }
        let bells = self.answer(size as u64 * count)?;
        let seconds = start.elapsed().as_secs_f64();
        Ok(Sent { seconds, bells })
    }

    fn go_and_return(&mut self, count: u64) -> anyhow::Result<Trips> {
        self.ask(Request::Echo { count })?;
        let mut message = [0x5a; MESSAGE];
        let mut each_us = Vec::with_capacity(usize::try_from(count)?);
        let mut before = Instant::now();
        let rest = self.over.rest();
        for trip in 0..count {
            if let Some(rest) = rest {
                thread::sleep(rest);
                before = Instant::now();
            }
            message[..8].copy_from_slice(&trip.to_le_bytes());
            self.stream.write_all(&message)?;
            self.stream.read_exact(&mut message)?;
            anyhow::ensure!(message[..8] == trip.to_le_bytes(), "another message came");
            let now = Instant::now();
            each_us.push(now.duration_since(before).as_secs_f64() * 1e6);
            before = now;
        }
        let bells = self.answer(0)?;
        Ok(Trips { each_us, bells })
    }

    fn wait(&mut self, time: Duration) -> anyhow::Result<()> {
        let ms = time.as_millis() as u64;
        self.ask(Request::BeSilent { ms })?;
        self.answer(0).map(drop)
    }

    fn keep_peer_on(&mut self, cpu: usize) -> anyhow::Result<()> {
        self.ask(Request::StayOn { cpu })?;
        self.answer(0).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_does_all_that_it_can_be_asked() {
        let (near, far) = UnixStream::pair().unwrap();
        let peer = thread::spawn(move || serve(far));
        let mut lane = Blocking::new(near, Over::OursParked).unwrap();
        assert!(lane.send(64, 1000).unwrap().seconds > 0.0);
        assert!(lane.send(1 << 20, 3).unwrap().bells.is_none());
        assert_eq!(lane.go_and_return(5).unwrap().each_us.len(), 5);
        lane.wait(Duration::from_millis(1)).unwrap();
        drop(lane);
        peer.join().unwrap().unwrap();
    }

    #[test]
    fn a_rest_comes_before_each_trip_and_is_not_measured() {
        let (near, far) = UnixStream::pair().unwrap();
        let peer = thread::spawn(move || serve(far));
        let mut lane = Blocking::new(near, Over::UnixRested).unwrap();
        let (start, trips) = (Instant::now(), 20);
        let each_us = lane.go_and_return(trips).unwrap().each_us;
        let measured = Duration::from_secs_f64(each_us.iter().sum::<f64>() / 1e6);
        let rest = Over::UnixRested.rest().unwrap();
        assert_eq!(each_us.len() as u64, trips);
        assert!(start.elapsed() >= measured + rest * trips as u32);
        drop(lane);
        peer.join().unwrap().unwrap();
    }
}
