//! One connection of a guest and its measurements. Requests to the host program use the same connection.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use hvsock_testkit::guest::{Guest, GuestStream};

use super::{Direction, GuestLaneKind};
use crate::stream::MESSAGE;
use crate::stream::protocol::{self, Checker, REPLY, Reply, Request};

/// Timeout of a read or write.
const IO_TIMEOUT: Duration = Duration::from_secs(20);

/// How often a refused connect is retried, and the delay before each retry.
const CONNECT_RETRIES: usize = 2000;
const RETRY_DELAY: Duration = Duration::from_micros(500);

/// Connects to a port of the host. Retries if the backlog is full: the accepting end limits the rate.
pub fn connect(guest: &Guest, port: u32) -> std::io::Result<GuestStream> {
    let mut refused = 0;
    loop {
        match guest.connect(port) {
            Err(error)
                if error.kind() == ErrorKind::ConnectionRefused && refused < CONNECT_RETRIES =>
            {
                refused += 1;
                std::thread::sleep(RETRY_DELAY);
            }
            result => return result,
        }
    }
}

/// A connection to the host program.
#[derive(Debug)]
pub struct Lane<S = GuestStream> {
    stream: S,
}

impl Lane {
    /// Connects to the host program of this kind.
    pub fn connect(guest: &Guest, over: GuestLaneKind) -> anyhow::Result<Self> {
        let stream = connect(guest, over.port())?;
        stream.set_read_timeout(Some(IO_TIMEOUT));
        stream.set_write_timeout(Some(IO_TIMEOUT));
        Ok(Self { stream })
    }
}

impl<S: Read + Write> Lane<S> {
    /// A lane over a stream that is connected to the host program.
    pub fn new(stream: S) -> Self {
        Self { stream }
    }

    /// Transfers `count` writes of `size` bytes. Returns the seconds until the receiver has read them all.
    pub fn move_bytes(
        &mut self,
        direction: Direction,
        size: usize,
        count: u64,
    ) -> anyhow::Result<f64> {
        match direction {
            Direction::ToHost => {
                let bytes = protocol::payload(size);
                self.send_request(Request::Read { size, count })?;
                let start = Instant::now();
                for _ in 0..count {
                    self.stream.write_all(&bytes)?;
                }
                self.receive_reply(size as u64 * count)?;
                Ok(start.elapsed().as_secs_f64())
            }
            Direction::ToGuest => {
                let mut checker = Checker::new(size);
                let mut buffer = vec![0; protocol::buffer_for(size)];
                let wanted = size as u64 * count;
                self.send_request(Request::Write { size, count })?;
                let start = Instant::now();
                while checker.bytes() < wanted {
                    let left = wanted - checker.bytes();
                    let most = usize::try_from(left)?.min(buffer.len());
                    let read = self.stream.read(&mut buffer[..most])?;
                    anyhow::ensure!(read > 0, "the host program closed early");
                    checker.check_read(&buffer[..read]);
                }
                let seconds = start.elapsed().as_secs_f64();
                checker.reply(None).check(wanted)?;
                self.receive_reply(0)?;
                Ok(seconds)
            }
        }
    }

    /// Makes `count` round trips of a message. Returns the time of each in microseconds.
    pub fn round_trips(&mut self, count: u64) -> anyhow::Result<Vec<f64>> {
        self.request_echoes(count)?;
        let mut message = [0x5a; MESSAGE];
        let mut each_us = Vec::with_capacity(usize::try_from(count)?);
        let mut before = Instant::now();
        for trip in 0..count {
            self.send_message(&mut message, trip)?;
            self.receive_echo(&mut message, trip)?;
            let now = Instant::now();
            each_us.push(now.duration_since(before).as_secs_f64() * 1e6);
            before = now;
        }
        self.receive_reply(0)?;
        Ok(each_us)
    }

    /// Requests the echo of `count` messages.
    pub fn request_echoes(&mut self, count: u64) -> anyhow::Result<()> {
        self.send_request(Request::Echo { count })
    }

    /// Sends a message that starts with `number`.
    pub fn send_message(&mut self, message: &mut [u8; MESSAGE], number: u64) -> anyhow::Result<()> {
        message[..8].copy_from_slice(&number.to_le_bytes());
        Ok(self.stream.write_all(message)?)
    }

    /// Receives the echo of message `number`.
    pub fn receive_echo(&mut self, message: &mut [u8; MESSAGE], number: u64) -> anyhow::Result<()> {
        self.stream.read_exact(message)?;
        anyhow::ensure!(
            message[..8] == number.to_le_bytes(),
            "a wrong message came back"
        );
        Ok(())
    }

    /// Waits for the reply, which must report that the host program has read `bytes`.
    pub fn receive_reply(&mut self, bytes: u64) -> anyhow::Result<()> {
        let mut reply = [0; REPLY];
        self.stream.read_exact(&mut reply)?;
        Reply::decode(reply).check(bytes)
    }

    /// The connection.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Requests `count` writes of `size` bytes from the host program.
    pub fn request_writes(&mut self, size: usize, count: u64) -> anyhow::Result<()> {
        self.send_request(Request::Write { size, count })
    }

    /// Requests that the host program reads `count` writes of `size` bytes.
    pub fn request_reads(&mut self, size: usize, count: u64) -> anyhow::Result<()> {
        self.send_request(Request::Read { size, count })
    }

    fn send_request(&mut self, request: Request) -> anyhow::Result<()> {
        Ok(self.stream.write_all(&request.encode())?)
    }
}
