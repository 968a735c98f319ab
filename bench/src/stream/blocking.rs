//! Lanes over blocking streams (`Read` and `Write`).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use hvsock::HvStream;

use super::protocol::{self, Checker, REPLY, REQUEST, Reply, Request};
use super::wakeups::WakeupCounts;
use super::{Lane, LaneKind, MESSAGE, Sent, Trips, hvsock_lane};
use crate::cpu;

/// A blocking stream.
pub trait Stream: Read + Write + Send + 'static {
    /// Parks without spinning from now on, if the stream spins at all.
    fn disable_spin(&self) {}

    /// Wakeup counts of this end, if known.
    fn wakeups(&self) -> Option<WakeupCounts> {
        None
    }
}

impl Stream for UnixStream {}

impl Stream for TcpStream {}

impl Stream for HvStream {
    fn disable_spin(&self) {
        hvsock_lane::disable_spin(self);
    }

    fn wakeups(&self) -> Option<WakeupCounts> {
        hvsock_lane::wakeups(self)
    }
}

/// Serves requests until the stream ends.
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
            Request::Sleep { ms } => {
                thread::sleep(Duration::from_millis(ms));
                nothing
            }
            Request::DisableSpin => {
                stream.disable_spin();
                nothing
            }
            Request::PinTo { cpu } => {
                cpu::pin_to(cpu)?;
                nothing
            }
        };
        stream.write_all(&done.reply(stream.wakeups()).encode())?;
    }
    Ok(())
}

fn read_all(stream: &mut impl Stream, size: usize, count: u64) -> anyhow::Result<Checker> {
    let mut checker = Checker::new(size);
    let mut buffer = vec![0; protocol::buffer_for(size)];
    let wanted = size as u64 * count;
    // No data follows the last write until the reply is sent, so no read exceeds it.
    while checker.bytes() < wanted {
        let read = stream.read(&mut buffer)?;
        anyhow::ensure!(read > 0, "the writer ended early");
        checker.check_read(&buffer[..read]);
    }
    Ok(checker)
}

/// A lane over a blocking stream.
#[derive(Debug)]
pub struct Blocking<S> {
    stream: S,
    over: LaneKind,
    /// Wakeup counts of both ends so far.
    wakeups: [Option<WakeupCounts>; 2],
}

impl<S: Stream> Blocking<S> {
    /// Creates a lane to a peer that runs [`serve`], and disables spinning if `over` requires it.
    pub fn new(stream: S, over: LaneKind) -> anyhow::Result<Self> {
        let mut lane = Self {
            stream,
            over,
            wakeups: [None; 2],
        };
        if over.is_without_spin() {
            lane.stream.disable_spin();
            lane.send_request(Request::DisableSpin)?;
        } else {
            lane.send_request(Request::Sleep { ms: 0 })?;
        }
        lane.reply(0)?;
        Ok(lane)
    }

    fn send_request(&mut self, request: Request) -> anyhow::Result<()> {
        Ok(self.stream.write_all(&request.encode())?)
    }

    /// Waits for the reply, which must report `bytes`. Returns the wakeup counts since the last reply.
    fn reply(&mut self, bytes: u64) -> anyhow::Result<Option<WakeupCounts>> {
        let mut reply = [0; REPLY];
        self.stream.read_exact(&mut reply)?;
        let reply = Reply::decode(reply);
        reply.check(bytes)?;
        let now = [self.stream.wakeups(), reply.wakeups];
        let before = std::mem::replace(&mut self.wakeups, now);
        Ok(WakeupCounts::between(before, now))
    }
}

impl<S: Stream> Lane for Blocking<S> {
    fn send(&mut self, size: usize, count: u64) -> anyhow::Result<Sent> {
        let bytes = protocol::payload(size);
        self.send_request(Request::Read { size, count })?;
        let start = Instant::now();
        for _ in 0..count {
            self.stream.write_all(&bytes)?;
        }
        let wakeups = self.reply(size as u64 * count)?;
        let seconds = start.elapsed().as_secs_f64();
        Ok(Sent { seconds, wakeups })
    }

    fn round_trips(&mut self, count: u64) -> anyhow::Result<Trips> {
        self.send_request(Request::Echo { count })?;
        let mut message = [0x5a; MESSAGE];
        let mut each_us = Vec::with_capacity(usize::try_from(count)?);
        let mut before = Instant::now();
        let pause = self.over.pause();
        for trip in 0..count {
            if let Some(pause) = pause {
                thread::sleep(pause);
                before = Instant::now();
            }
            message[..8].copy_from_slice(&trip.to_le_bytes());
            self.stream.write_all(&message)?;
            self.stream.read_exact(&mut message)?;
            anyhow::ensure!(
                message[..8] == trip.to_le_bytes(),
                "a wrong message came back"
            );
            let now = Instant::now();
            each_us.push(now.duration_since(before).as_secs_f64() * 1e6);
            before = now;
        }
        let wakeups = self.reply(0)?;
        Ok(Trips { each_us, wakeups })
    }

    fn idle(&mut self, time: Duration) -> anyhow::Result<()> {
        let ms = time.as_millis() as u64;
        self.send_request(Request::Sleep { ms })?;
        self.reply(0).map(drop)
    }

    fn pin_peer(&mut self, cpu: usize) -> anyhow::Result<()> {
        self.send_request(Request::PinTo { cpu })?;
        self.reply(0).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_performs_every_request() {
        let (local, peer_end) = UnixStream::pair().unwrap();
        let peer = thread::spawn(move || serve(peer_end));
        let mut lane = Blocking::new(local, LaneKind::HvsockNoSpin).unwrap();
        assert!(lane.send(64, 1000).unwrap().seconds > 0.0);
        assert!(lane.send(1 << 20, 3).unwrap().wakeups.is_none());
        assert_eq!(lane.round_trips(5).unwrap().each_us.len(), 5);
        lane.idle(Duration::from_millis(1)).unwrap();
        drop(lane);
        peer.join().unwrap().unwrap();
    }

    #[test]
    fn the_pause_before_each_trip_is_not_measured() {
        let (local, peer_end) = UnixStream::pair().unwrap();
        let peer = thread::spawn(move || serve(peer_end));
        let mut lane = Blocking::new(local, LaneKind::UnixParked).unwrap();
        let (start, trips) = (Instant::now(), 20);
        let each_us = lane.round_trips(trips).unwrap().each_us;
        let measured = Duration::from_secs_f64(each_us.iter().sum::<f64>() / 1e6);
        let pause = LaneKind::UnixParked.pause().unwrap();
        assert_eq!(each_us.len() as u64, trips);
        assert!(start.elapsed() >= measured + pause * trips as u32);
        drop(lane);
        peer.join().unwrap().unwrap();
    }
}
