//! One connection of a guest, and what is measured on it. The host's program is told what to do
//! over the same connection.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use hvsock_testkit::guest::{Guest, GuestStream};

use super::{Over, Way};
use crate::stream::MESSAGE;
use crate::stream::protocol::{self, ANSWER, Answer, Checker, Request};

/// The longest that a read or write may take: after that it is stuck.
const STUCK: Duration = Duration::from_secs(20);

/// How often a connect that was refused is made again, and when.
const PATIENCE: usize = 2000;
const AGAIN: Duration = Duration::from_micros(500);

/// Connects to a port of the host. A full backlog is part of the race: the accepting end sets the
/// pace.
pub fn connect(guest: &Guest, port: u32) -> std::io::Result<GuestStream> {
    let mut refused = 0;
    loop {
        match guest.connect(port) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused && refused < PATIENCE => {
                refused += 1;
                std::thread::sleep(AGAIN);
            }
            result => return result,
        }
    }
}

/// A connection to the host's program.
#[derive(Debug)]
pub struct Lane {
    stream: GuestStream,
}

impl Lane {
    /// Connects to what listens there.
    pub fn connect(guest: &Guest, over: Over) -> anyhow::Result<Self> {
        let stream = connect(guest, over.port())?;
        stream.set_read_timeout(Some(STUCK));
        stream.set_write_timeout(Some(STUCK));
        Ok(Self { stream })
    }

    /// Moves `count` writes of `size` bytes; how many seconds it took until the other end had
    /// them all.
    pub fn move_bytes(&mut self, way: Way, size: usize, count: u64) -> anyhow::Result<f64> {
        match way {
            Way::ToHost => {
                let bytes = protocol::payload(size);
                self.ask(Request::Read { size, count })?;
                let start = Instant::now();
                for _ in 0..count {
                    self.stream.write_all(&bytes)?;
                }
                self.answer(size as u64 * count)?;
                Ok(start.elapsed().as_secs_f64())
            }
            Way::ToGuest => {
                let mut checker = Checker::new(size);
                let mut buffer = vec![0; protocol::buffer_for(size)];
                let wanted = size as u64 * count;
                self.ask(Request::Write { size, count })?;
                let start = Instant::now();
                while checker.bytes() < wanted {
                    let left = wanted - checker.bytes();
                    let most = usize::try_from(left)?.min(buffer.len());
                    let read = self.stream.read(&mut buffer[..most])?;
                    anyhow::ensure!(read > 0, "the host ended early");
                    checker.look(&buffer[..read]);
                }
                let seconds = start.elapsed().as_secs_f64();
                checker.answer(None).check(wanted)?;
                self.answer(0)?;
                Ok(seconds)
            }
        }
    }

    /// Sends a message and waits until it is back, `count` times; microseconds of each.
    pub fn go_and_return(&mut self, count: u64) -> anyhow::Result<Vec<f64>> {
        self.expect_echoes(count)?;
        let mut message = [0x5a; MESSAGE];
        let mut each_us = Vec::with_capacity(usize::try_from(count)?);
        let mut before = Instant::now();
        for trip in 0..count {
            self.say(&mut message, trip)?;
            self.hear(&mut message, trip)?;
            let now = Instant::now();
            each_us.push(now.duration_since(before).as_secs_f64() * 1e6);
            before = now;
        }
        self.answer(0)?;
        Ok(each_us)
    }

    /// Has the host's program send back so many messages.
    pub fn expect_echoes(&mut self, count: u64) -> anyhow::Result<()> {
        self.ask(Request::Echo { count })
    }

    /// Sends a message with a number.
    pub fn say(&mut self, message: &mut [u8; MESSAGE], number: u64) -> anyhow::Result<()> {
        message[..8].copy_from_slice(&number.to_le_bytes());
        Ok(self.stream.write_all(message)?)
    }

    /// Waits for it to come back.
    pub fn hear(&mut self, message: &mut [u8; MESSAGE], number: u64) -> anyhow::Result<()> {
        self.stream.read_exact(message)?;
        anyhow::ensure!(message[..8] == number.to_le_bytes(), "another message came");
        Ok(())
    }

    /// Waits until the host's program says that it has read so many bytes.
    pub fn answer(&mut self, bytes: u64) -> anyhow::Result<()> {
        let mut answer = [0; ANSWER];
        self.stream.read_exact(&mut answer)?;
        Answer::decode(answer).check(bytes)
    }

    /// The connection itself.
    pub fn stream(&self) -> &GuestStream {
        &self.stream
    }

    /// Has the host's program write so much.
    pub fn expect_bytes(&mut self, size: usize, count: u64) -> anyhow::Result<()> {
        self.ask(Request::Write { size, count })
    }

    /// Has the host's program read so much.
    pub fn send_bytes(&mut self, size: usize, count: u64) -> anyhow::Result<()> {
        self.ask(Request::Read { size, count })
    }

    fn ask(&mut self, request: Request) -> anyhow::Result<()> {
        Ok(self.stream.write_all(&request.encode())?)
    }
}
