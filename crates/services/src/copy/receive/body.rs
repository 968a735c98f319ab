//! Receives the content of a file.

use std::mem;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs;
use rustix::io::Errno;

use super::super::message_stream::Link;
use super::super::send::sum_of;
use super::super::sum::Sum;
use super::super::{BUFFER, CHUNK, CopyError};
use super::disk::{self, Disk};
use super::part::Part;
use super::requested::Kind;
use super::{Receiver, attributes};
use crate::wire::copy as wire;
use wire::receiver_message::What as FromReceiver;
use wire::sender_message::What as FromSender;

/// The size of the largest file, in bytes. The size that the sender announces limits nothing: some
/// files do not know their size.
const MAX_SIZE: u64 = i64::MAX as u64;

impl<L: Link> Receiver<'_, L> {
    pub(super) fn file(&mut self, file: &wire::File) -> Result<(), CopyError> {
        let name = self.name(&file.name, Kind::File)?;
        if file.size > MAX_SIZE {
            return Err(CopyError::Violation("a file size above 2^63 - 1 bytes"));
        }
        if self.lost > 0 {
            return self.drop_file(file.ask);
        }
        self.path.push(name.as_os_str());
        self.observer.file(&self.path, file.size);
        let mode = file.meta.unwrap_or_default().mode;
        let folder = Arc::clone(self.current_folder());
        let part = match self.check_clash(&name, file.identity) {
            Ok(()) => Part::open(&folder, name, mode, file.ask),
            Err(clash) => Err(clash.into()),
        };
        match part {
            Ok(part) => self.fill(file, part)?,
            Err(error) => {
                self.fails(error)?;
                self.drop_file(file.ask)?;
            }
        }
        self.path.pop();
        Ok(())
    }

    /// Skips a file that cannot be created.
    fn drop_file(&mut self, ask: bool) -> Result<(), CopyError> {
        if ask {
            self.send(FromReceiver::Answer(wire::Answer {
                skip: true,
                ..wire::Answer::default()
            }))?;
            self.messages.flush()?;
        }
        self.drop_content()
    }

    fn fill(&mut self, file: &wire::File, part: Part) -> Result<(), CopyError> {
        let mut sum = match file.ask {
            true => self.agree(file.size, &part)?,
            false => Sum::new(),
        };
        let begin = sum.position();
        if begin < part.stat().st_size as u64
            && let Err(error) = fs::ftruncate(part.file(), begin)
        {
            self.fails(error)?;
            return self.drop_rest(part);
        }
        let mut buffers = mem::take(&mut self.buffers);
        self.messages.limit_read_ahead(file.ask);
        let (end, error) =
            disk::write(Some(part.file().as_fd()), file.size, &mut buffers, |disk| {
                self.content(&mut sum, disk)
            });
        self.messages.limit_read_ahead(false);
        self.buffers = buffers;
        let Some(error) = error else {
            return self.finish(&end?, file, &sum, part);
        };
        // Free the space: the disk may be full.
        part.discard();
        end?;
        self.fails(error)
    }

    fn drop_rest(&mut self, part: Part) -> Result<(), CopyError> {
        part.discard();
        self.drop_content()
    }

    fn drop_content(&mut self) -> Result<(), CopyError> {
        let mut buffers = mem::take(&mut self.buffers);
        let mut sum = Sum::new();
        let dropped = |disk: &mut dyn Disk| self.content(&mut sum, disk);
        let (end, _) = disk::write(None, 0, &mut buffers, dropped);
        self.buffers = buffers;
        end.map(drop)
    }

    /// Reports the length of the existing part of the file to the sender, and receives the offset
    /// at which the sender begins. Returns the checksum of the content before it.
    fn agree(&mut self, size: u64, part: &Part) -> Result<Sum, CopyError> {
        let there = part.stat().st_size as u64;
        let mut sum = Sum::new();
        if there > 0 && there <= size {
            let messages = &mut *self.messages;
            let working = || match messages.keepalive_due() {
                true => {
                    let what = Some(FromReceiver::Working(wire::Working::default()));
                    messages.send(&wire::ReceiverMessage { what })?;
                    messages.flush()
                }
                false => Ok(()),
            };
            let file = part.file().as_fd();
            let mut buffer = vec![0; BUFFER];
            let found = sum_of(file, part.stat(), there, &mut buffer, working)?;
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

    /// Receives chunks until the end of the file.
    fn content(&mut self, sum: &mut Sum, disk: &mut dyn Disk) -> Result<wire::FileEnd, CopyError> {
        loop {
            let chunk = match self.receive()? {
                FromSender::Chunk(chunk) => chunk,
                FromSender::FileEnd(end) => return Ok(end),
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
            if chunk.offset < sum.position() || end.is_none_or(|end| end > MAX_SIZE) {
                return Err(CopyError::Violation("a chunk outside of its file"));
            }
            let hole = chunk.offset - sum.position();
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
    fn broken(&mut self) -> Result<(), CopyError> {
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

    /// Completes a file: checks its checksum, applies its attributes and renames it to its final name.
    fn finish(
        &mut self,
        end: &wire::FileEnd,
        file: &wire::File,
        sum: &Sum,
        part: Part,
    ) -> Result<(), CopyError> {
        if end.broken {
            // The partial file stays, for a resumed copy.
            return self.broken();
        }
        let mut sum = sum.clone();
        let written = sum.position();
        if !(written..=MAX_SIZE).contains(&end.size) {
            return Err(CopyError::Violation("a file that is shorter than its data"));
        }
        let meta = file.meta.unwrap_or_default();
        sum.zeros(end.size - written);
        let checksum = sum.get();
        if checksum[..] != end.checksum[..] {
            part.discard();
            return self.note("the checksum does not match".to_owned());
        }
        self.observer.advance(end.size - written);
        let mut done = Ok(());
        if end.size > written {
            done = fs::ftruncate(part.file(), end.size);
        }
        if let Some(trust) = self.archive {
            done = done.and_then(|()| attributes::apply(part.file(), &meta, trust));
        } else if part.is_resumed() {
            // An existing partial file does not have the permissions of a new one.
            done = done.and_then(|()| fs::fchmod(part.file(), attributes::umasked_mode(&meta)));
        }
        let stat = *part.stat();
        let done = match done {
            Ok(()) => part.finish(),
            Err(error) => {
                part.discard();
                Err(error)
            }
        };
        match done {
            Ok(()) => {
                self.counters.files += 1;
                self.tally.file(&file.name, &checksum);
                self.remember(&stat);
                Ok(())
            }
            Err(error) => self.fails(error),
        }
    }
}
