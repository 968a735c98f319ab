//! Receives the content of a file.

use std::mem;
use std::os::fd::AsFd;

use rustix::io::Errno;

use super::super::message_stream::Link;
use super::super::send::sum_of;
use super::super::sum::Sum;
use super::super::{BUFFER, CHUNK, CopyError};
use super::Receiver;
use super::disk::{self, Disk};
use super::part::Part;
use crate::wire::copy as wire;
use wire::receiver_message::What as FromReceiver;
use wire::sender_message::What as FromSender;

/// The size of the largest file, in bytes. The size that the sender announces limits nothing: some
/// files do not know their size.
pub(super) const MAX_SIZE: u64 = i64::MAX as u64;

impl<L: Link> Receiver<'_, L> {
    /// Skips a file that cannot be created.
    pub(super) fn drop_file(&mut self, ask: bool) -> Result<(), CopyError> {
        if ask {
            self.send(FromReceiver::Answer(wire::Answer {
                skip: true,
                ..wire::Answer::default()
            }))?;
            self.messages.flush()?;
        }
        self.drop_content()
    }

    pub(super) fn drop_content(&mut self) -> Result<(), CopyError> {
        let mut buffers = mem::take(&mut self.buffers);
        let mut sum = Sum::new();
        let dropped = |disk: &mut dyn Disk| self.content(&mut sum, disk);
        let (end, _) = disk::write(None, 0, &mut buffers, dropped);
        self.buffers = buffers;
        end.map(drop)
    }

    /// Reports the length of the existing part of the file to the sender, if there is one, and
    /// receives the offset at which the sender begins. Returns the checksum of the content before it.
    pub(super) fn agree(&mut self, part: Option<&Part>) -> Result<Sum, CopyError> {
        let mut sum = Sum::new();
        if let Some(part) = part
            && part.stat().st_size > 0
        {
            let there = part.stat().st_size as u64;
            let mut buffer = vec![0; BUFFER];
            let working = || self.keep_alive();
            let found = sum_of(
                part.file().as_fd(),
                part.stat(),
                there,
                &mut buffer,
                working,
            )?;
            if let Ok(found) = found {
                sum = found;
            }
        }
        let (length, checksum) = (sum.position(), sum.get().to_vec().into());
        let skip = false;
        self.send(FromReceiver::Answer(wire::Answer {
            skip,
            length,
            checksum,
        }))?;
        self.messages.flush()?;
        let from = loop {
            match self.receive()? {
                FromSender::ResumeFrom(from) => break from.offset,
                FromSender::Working(working) => self.working(&working),
                _ => return Err(CopyError::Violation("content before ResumeFrom")),
            }
        };
        match from {
            0 => Ok(Sum::new()),
            from if from == length => {
                self.counters.resumed += length;
                self.observer.advance(length);
                Ok(sum)
            }
            _ => Err(CopyError::Violation("an offset that was not agreed on")),
        }
    }

    /// Receives the header of the next chunk of a file, of which the bytes before `position` have
    /// arrived: its offset and length, or the end of the file.
    pub(super) fn next_chunk(
        &mut self,
        position: u64,
    ) -> Result<Result<(u64, usize), wire::FileEnd>, CopyError> {
        loop {
            let chunk = match self.receive()? {
                FromSender::Chunk(chunk) => chunk,
                FromSender::FileEnd(end) => return Ok(Err(end)),
                FromSender::Note(note) => {
                    self.peer_note(&note);
                    continue;
                }
                FromSender::Working(working) => {
                    self.working(&working);
                    continue;
                }
                FromSender::Failed(failed) => {
                    return Err(CopyError::Failed(super::bounded(&failed.why)));
                }
                _ => return Err(CopyError::Violation("another message within a file")),
            };
            let length = chunk.length as usize;
            if !(1..=CHUNK).contains(&length) {
                return Err(CopyError::Violation("a chunk of an invalid length"));
            }
            let end = chunk.offset.checked_add(length as u64);
            if chunk.offset < position || end.is_none_or(|end| end > MAX_SIZE) {
                return Err(CopyError::Violation("a chunk outside of its file"));
            }
            return Ok(Ok((chunk.offset, length)));
        }
    }

    /// Receives chunks until the end of the file.
    pub(super) fn content(
        &mut self,
        sum: &mut Sum,
        disk: &mut dyn Disk,
    ) -> Result<wire::FileEnd, CopyError> {
        loop {
            let (start, length) = match self.next_chunk(sum.position())? {
                Ok(chunk) => chunk,
                Err(end) => return Ok(end),
            };
            let hole = start - sum.position();
            sum.zeros(hole);
            self.observer.advance(hole);
            let mut rest = length;
            while rest > 0 {
                let now = rest.min(BUFFER);
                let mut buffer = disk.take_buffer();
                self.messages.receive_bytes(&mut buffer[..now])?;
                let offset = sum.position();
                sum.data(&buffer[..now]);
                disk.write(offset, buffer, now);
                if let Some(error) = disk.error()
                    && self.is_fatal(error)
                {
                    return Err(CopyError::local(&self.path, Errno::NOSPC));
                }
                self.counters.bytes += now as u64;
                self.observer.advance(now as u64);
                rest -= now;
            }
        }
    }

    /// The sender could not read a file to its end. It has said why in a note before, or this end
    /// reports it.
    pub(super) fn broken(&mut self) -> Result<(), CopyError> {
        self.broken_files += 1;
        if self.peer_failed < self.broken_files {
            self.peer_failed = self.broken_files;
            self.observer.note(&super::Note {
                path: self.path.clone(),
                why: "the other end could not read it to its end, and has not said why".to_owned(),
                skipped: false,
            });
        }
        Ok(())
    }

    /// Checks size and checksum at the end of a file, of which `sum` has the data. Returns the
    /// checksum if it is right.
    pub(super) fn check(
        &self,
        end: &wire::FileEnd,
        sum: &Sum,
    ) -> Result<Option<[u8; 16]>, CopyError> {
        if !(sum.position()..=MAX_SIZE).contains(&end.size) {
            return Err(CopyError::Violation("a file that is shorter than its data"));
        }
        let mut sum = sum.clone();
        sum.zeros(end.size - sum.position());
        let checksum = sum.get();
        Ok((checksum[..] == end.checksum[..]).then_some(checksum))
    }
}
