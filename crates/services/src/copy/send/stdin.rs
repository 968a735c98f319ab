//! Sends the standard input, as the content of a file whose name the destination has.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use prost::bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{self, FileType, SeekFrom};
use rustix::io::Errno;

use super::super::message_stream::Link;
use super::super::sum::Sum;
use super::super::{BUFFER, CopyError};
use super::{Sender, identity};
use crate::wire::copy as wire;
use wire::sender_message::What as FromSender;

/// How often a wait for more input checks the connection.
const TICK: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// The permissions of a new file, less the umask of the receiver.
const MODE: u32 = 0o666;

impl<L: Link> Sender<'_, L> {
    pub(super) fn standard_input(&mut self) -> Result<(), CopyError> {
        match io::stdin().as_fd().try_clone_to_owned() {
            Ok(input) => self.send_stream(&input),
            Err(error) => self.note(error.to_string(), false),
        }
    }

    /// Sends what can be read from a descriptor that others share, from its current position on.
    pub(in crate::copy) fn send_stream(&mut self, input: &OwnedFd) -> Result<(), CopyError> {
        let stat = match fs::fstat(input) {
            Ok(stat) => stat,
            Err(error) => return self.fails(error),
        };
        let size = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let begin = fs::seek(input, SeekFrom::Current(0)).unwrap_or_default();
                (stat.st_size as u64).saturating_sub(begin)
            }
            _ => 0,
        };
        self.observer.file(&self.path, size);
        self.send(FromSender::File(wire::File {
            name: Bytes::new(),
            meta: Some(wire::Meta {
                mode: MODE,
                ..super::meta(&stat)
            }),
            size,
            ask: false,
            identity: identity::shared(&stat),
        }))?;
        let mut sum = Sum::new();
        let mut buffer = vec![0; BUFFER];
        let broken = loop {
            if !is_readable(input.as_fd(), &Timespec::default()) {
                // What was read before goes out now, as the next may be long in coming.
                self.messages.flush()?;
                while !is_readable(input.as_fd(), &TICK) {
                    self.keep_alive()?;
                    self.poll_receiver(64)?;
                }
            }
            // One read, because another would block where there is no more.
            let count = match rustix::io::read(input, &mut buffer) {
                Ok(0) => break false,
                Ok(count) => count,
                Err(Errno::INTR | Errno::AGAIN) => continue,
                Err(error) => {
                    self.fails(error)?;
                    break true;
                }
            };
            let (offset, length) = (sum.position(), count as u32);
            self.send(FromSender::Chunk(wire::Chunk { offset, length }))?;
            self.messages.send_bytes(&buffer[..count])?;
            sum.data(&buffer[..count]);
            self.counters.bytes += count as u64;
            self.observer.advance(count as u64);
            self.poll_receiver(1)?;
        };
        let checksum = sum.get();
        if !broken {
            self.counters.files += 1;
            self.tally.file(b"", &checksum);
        }
        self.send(FromSender::FileEnd(wire::FileEnd {
            size: sum.position(),
            checksum: checksum.to_vec().into(),
            broken,
        }))
    }
}

/// Whether there is something to read, or the end, within this time.
fn is_readable(file: BorrowedFd<'_>, timeout: &Timespec) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(file, PollFlags::IN)];
    // After an error of poll, the read says what is wrong.
    !poll(&mut fds, Some(timeout)).is_ok_and(|ready| ready == 0)
}
