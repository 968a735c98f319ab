//! Sends the content of files.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{self, Advice, FileType, OFlags, Stat};
use rustix::io::Errno;

use super::super::identity;
use super::super::message_stream::Link;
use super::super::name::Name;
use super::super::sum::Sum;
use super::super::{BUFFER, CopyError, RESUME_SIZE};
use super::extents::{Extents, sum_of};
use super::source::{At, open};
use super::{Sender, bytes_of, keep_alive, meta};
use crate::wire::copy as wire;
use wire::receiver_message::What as FromReceiver;
use wire::sender_message::What as FromSender;

/// How often a wait for a pipe or a device checks the connection.
const TICK: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Whether there is something to read, or the end, within this time.
fn is_readable(file: BorrowedFd<'_>, timeout: &Timespec) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(file, PollFlags::IN)];
    // After an error of poll, the read says what is wrong.
    !poll(&mut fds, Some(timeout)).is_ok_and(|ready| ready == 0)
}

impl<L: Link> Sender<'_, L> {
    /// Sends a file of this type: a regular file, or a pipe or device that the user has named.
    pub(super) fn file(
        &mut self,
        at: At<'_>,
        name: &Name,
        kind: FileType,
    ) -> Result<(), CopyError> {
        let opened = open(at, OFlags::empty()).and_then(|file| Ok((fs::fstat(&file)?, file)));
        let (stat, file) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.fails(error),
        };
        if FileType::from_raw_mode(stat.st_mode) != kind {
            return self.note("it was replaced while it was opened".into(), false);
        }
        let regular = kind == FileType::RegularFile;
        let written = match kind {
            FileType::Fifo => self.wait_for_writer(&file)?,
            _ => true,
        };
        let size = if regular { stat.st_size as u64 } else { 0 };
        let ask = size >= RESUME_SIZE;
        self.observer.file(&self.path, size);
        self.send(FromSender::File(wire::File {
            name: bytes_of(name),
            meta: Some(meta(&stat)),
            size,
            ask,
            identity: identity::shared(&stat),
        }))?;
        let begun = match ask {
            true => self.begin(file.as_fd(), &stat)?,
            false => Some(Sum::new()),
        };
        let Some(sum) = begun else {
            // The receiver has reported why.
            self.refused += 1;
            return self.send(FromSender::FileEnd(wire::FileEnd::default()));
        };
        let (mut end, checksum) = self.content(file.as_fd(), &stat, sum)?;
        let was = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
        if regular && !end.broken && fs::fstat(&file).is_ok_and(|now| was(&now) != was(&stat)) {
            // The content is sent anyway: most of a log that is being written is better than nothing.
            self.note("it changed while it was copied".into(), false)?;
        }
        if !written && end.size == 0 {
            end.broken = true;
            let why = format!(
                "nothing was written to the pipe for {:?}",
                self.writer_timeout
            );
            self.note(why, false)?;
        }
        if !end.broken {
            self.counters.files += 1;
            self.tally.file(name.as_bytes(), &checksum);
        }
        self.send(FromSender::FileEnd(end))
    }

    /// Waits for the first process that writes to a pipe, for a limited time. Without one a read
    /// returns nothing, as at the end. Returns whether there has been one.
    fn wait_for_writer(&mut self, pipe: &OwnedFd) -> Result<bool, CopyError> {
        const PIPEFS_MAGIC: u64 = 0x5049_5045;
        // A pipe without a name has had its writer.
        if fs::fstatfs(pipe).is_ok_and(|found| found.f_type as u64 == PIPEFS_MAGIC) {
            return Ok(true);
        }
        if is_readable(pipe.as_fd(), &Timespec::default()) {
            return Ok(true);
        }
        self.waiting("a process that writes to the pipe")?;
        let since = Instant::now();
        while !self.wait_readable(pipe.as_fd())? {
            if since.elapsed() >= self.writer_timeout {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits for a moment until there is something to read, or the end. Meanwhile the receiver's
    /// messages are handled.
    fn wait_readable(&mut self, file: BorrowedFd<'_>) -> Result<bool, CopyError> {
        let readable = is_readable(file, &TICK);
        if !readable {
            self.keep_alive()?;
            self.poll_receiver(64)?;
        }
        Ok(readable)
    }

    /// Agrees with the receiver on where to begin. Returns the checksum up to there, or `None` if
    /// the receiver skips the file.
    fn begin(&mut self, file: BorrowedFd<'_>, stat: &Stat) -> Result<Option<Sum>, CopyError> {
        // Only a hint: failure costs time, nothing else.
        let _ = fs::fadvise(file, 0, None, Advice::Sequential);
        self.messages.flush()?;
        let answer = loop {
            match self.receive()? {
                FromReceiver::Answer(answer) => break answer,
                other => self.handle(other)?,
            }
        };
        if answer.skip {
            return Ok(None);
        }
        let mut sum = Sum::new();
        if (1..=stat.st_size as u64).contains(&answer.length) {
            let messages = &mut *self.messages;
            let working = || keep_alive(messages);
            let same = sum_of(file, stat, answer.length, &mut self.buffer, working)?;
            if let Ok(same) = same
                && same.position() == answer.length
                && same.get()[..] == answer.checksum[..]
            {
                sum = same;
                self.counters.resumed += answer.length;
                self.observer.advance(answer.length);
            }
        }
        let offset = sum.position();
        self.send(FromSender::ResumeFrom(wire::ResumeFrom { offset }))?;
        Ok(Some(sum))
    }

    /// Sends the rest of the file's content. Returns also the checksum of the whole.
    fn content(
        &mut self,
        file: BorrowedFd<'_>,
        stat: &Stat,
        mut sum: Sum,
    ) -> Result<(wire::FileEnd, [u8; 16]), CopyError> {
        let mut extents = Extents::new(file, stat);
        let broken = loop {
            match extents.read(sum.position(), &mut self.buffer) {
                Ok(Some((offset, count))) => {
                    let length = count as u32;
                    self.send(FromSender::Chunk(wire::Chunk { offset, length }))?;
                    let bytes = &self.buffer[..count];
                    let hole = offset - sum.position();
                    sum.zeros(hole);
                    sum.data(bytes);
                    self.messages.send_bytes(bytes)?;
                    self.counters.bytes += count as u64;
                    self.observer.advance(hole + count as u64);
                    if count == BUFFER {
                        self.poll_receiver(64)?;
                    }
                }
                Ok(None) => break false,
                Err(Errno::AGAIN) if extents.is_stream() => {
                    // What was read before goes out now, as the next may be long in coming.
                    self.messages.flush()?;
                    while !self.wait_readable(file)? {}
                }
                Err(error) => {
                    self.fails(error)?;
                    break true;
                }
            }
        };
        if !broken {
            let hole = extents.length().saturating_sub(sum.position());
            sum.zeros(hole);
            self.observer.advance(hole);
        }
        let checksum = sum.get();
        let end = wire::FileEnd {
            size: sum.position(),
            checksum: checksum.to_vec().into(),
            broken,
        };
        Ok((end, checksum))
    }
}
