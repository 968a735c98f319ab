//! Frames on a stream that does not block.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;

use hvsock_endpoint::uplink::{FrameReader, GuestFrame, HostFrame};
use hvsock_sys::stream;

/// With more bytes than these to be sent, nothing is read: the host is answered at its own pace.
const HIGH: usize = 64 * 1024;
/// With more bytes than these to be sent, the host does not read, and the stream is of no use.
const MOST: usize = 1024 * 1024;
/// Frames that are taken from one read.
const CHUNK: usize = 16 * 1024;

/// A stream to the host's broker.
#[derive(Debug)]
pub(super) struct FrameStream {
    socket: OwnedFd,
    reader: FrameReader,
    unsent: Vec<u8>,
    /// Whether there may be something to read, and space to write.
    readable: bool,
    writable: bool,
}

/// What a read found.
#[derive(Debug)]
pub(super) enum Read {
    /// A frame.
    Frame(HostFrame),
    /// Nothing for now.
    Nothing,
    /// The stream has ended, or is of no use, in words.
    Ended(String),
}

impl FrameStream {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            reader: FrameReader::new(),
            unsent: Vec::new(),
            readable: true,
            writable: true,
        }
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// There may be something to read, and space to write.
    pub(super) fn ready(&mut self) {
        (self.readable, self.writable) = (true, true);
    }

    /// Whether [`read`](Self::read) may find something, and may look for it.
    pub(super) fn wants_turn(&self) -> bool {
        self.readable && self.unsent.len() < HIGH
    }

    /// Adds a frame to those that are to be sent.
    ///
    /// # Errors
    ///
    /// What is wrong, in words, if the host does not read.
    pub(super) fn add(&mut self, frame: &GuestFrame) -> Result<(), String> {
        frame.append(&mut self.unsent);
        match self.unsent.len() > MOST {
            true => Err("the host's broker does not read".into()),
            false => Ok(()),
        }
    }

    /// Sends what there is space for.
    ///
    /// # Errors
    ///
    /// What is wrong, in words.
    pub(super) fn flush(&mut self) -> Result<(), String> {
        let mut sent = 0;
        while self.writable && sent < self.unsent.len() {
            match stream::try_send(&self.socket, &[IoSlice::new(&self.unsent[sent..])]) {
                Ok(bytes) => sent += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) => return Err(ended(&error)),
            }
        }
        self.unsent.drain(..sent);
        Ok(())
    }

    /// Reads the next frame.
    pub(super) fn read(&mut self) -> Read {
        loop {
            match self.reader.next() {
                Ok(Some(message)) => {
                    return match HostFrame::decode(message) {
                        Ok(frame) => Read::Frame(frame),
                        Err(error) => Read::Ended(violation(&error)),
                    };
                }
                Ok(None) => {}
                Err(error) => return Read::Ended(violation(&error)),
            }
            if !self.wants_turn() {
                return Read::Nothing;
            }
            let mut bytes = [0; CHUNK];
            match stream::try_recv(&self.socket, &mut [IoSliceMut::new(&mut bytes)]) {
                Ok(0) => return Read::Ended("the host's broker has closed the uplink".into()),
                Ok(count) => self.reader.add(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) => return Read::Ended(ended(&error)),
            }
        }
    }
}

fn ended(error: &io::Error) -> String {
    format!("the uplink has ended: {error}")
}

fn violation(error: &hvsock_endpoint::DecodeError) -> String {
    format!("the host's broker has broken the uplink protocol: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (FrameStream, OwnedFd) {
        let (own, peer) = stream::pair().unwrap();
        (FrameStream::new(own), peer)
    }

    fn send(peer: &OwnedFd, frame: &HostFrame) {
        let mut bytes = Vec::new();
        frame.append(&mut bytes);
        assert_eq!(stream::send(peer, &bytes).unwrap(), bytes.len());
    }

    #[test]
    fn a_host_that_does_not_read_is_not_read_from_and_then_given_up() {
        let (mut own, peer) = pair();
        send(&peer, &HostFrame::Ping);
        assert!(matches!(own.read(), Read::Frame(HostFrame::Ping)));
        let mut frames = 0;
        let failed = loop {
            if let Err(why) = own.add(&GuestFrame::Pong).and_then(|()| own.flush()) {
                break why;
            }
            frames += 1;
            if own.unsent.len() > HIGH {
                send_once(&peer);
                assert!(matches!(own.read(), Read::Nothing));
            }
        };
        assert!(
            frames > MOST / 8 && failed.contains("does not read"),
            "{failed}"
        );
    }

    fn send_once(peer: &OwnedFd) {
        let mut bytes = Vec::new();
        HostFrame::Ping.append(&mut bytes);
        let _ = stream::try_send(peer, &[IoSlice::new(&bytes)]);
    }

    #[test]
    fn bytes_that_are_no_frame_end_the_stream() {
        for bytes in [&[255_u8; 8][..], &[4, 0, 0, 0, 1, 0xff, 0, 0]] {
            let (mut own, peer) = pair();
            stream::send(&peer, bytes).unwrap();
            let Read::Ended(why) = own.read() else {
                panic!("not ended");
            };
            assert!(why.contains("uplink protocol"), "{why}");
        }
        let (mut own, peer) = pair();
        drop(peer);
        assert!(matches!(own.read(), Read::Ended(_)));
    }
}
