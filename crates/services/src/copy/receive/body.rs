//! A file's content as it comes.

use std::mem;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs;

use super::super::line::Link;
use super::super::send::sum_of;
use super::super::sum::Sum;
use super::super::{CHUNK, CopyError, PIECE};
use super::disk::{self, Disk};
use super::part::Part;
use super::{Receiver, attributes};
use crate::wire::copy as wire;
use wire::{sent, told};

impl<L: Link> Receiver<'_, L> {
    pub(super) fn file(&mut self, file: &wire::File) -> Result<(), CopyError> {
        let name = self.name(&file.name)?;
        if i64::try_from(file.size).is_err() {
            return Err(CopyError::Violation(
                "a file that is longer than files can be",
            ));
        }
        if self.lost > 0 {
            return self.drop_file(file.ask);
        }
        self.path.push(name.as_os_str());
        self.observer.file(&self.path, file.size);
        let mode = file.meta.unwrap_or_default().mode;
        let folder = Arc::clone(self.here());
        match Part::open(&folder, name, mode, file.ask) {
            Ok(part) => self.fill(file, part)?,
            Err(error) => {
                self.fails(error)?;
                self.drop_file(file.ask)?;
            }
        }
        self.path.pop();
        Ok(())
    }

    /// Lets a file that cannot be made pass.
    fn drop_file(&mut self, ask: bool) -> Result<(), CopyError> {
        if ask {
            self.tell(told::What::Answer(wire::Answer {
                skip: true,
                ..wire::Answer::default()
            }))?;
            self.line.flush()?;
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
        let mut chunks = mem::take(&mut self.chunks);
        self.line.read_little(file.ask);
        let (end, trouble) =
            disk::write(Some(part.file().as_fd()), file.size, &mut chunks, |disk| {
                self.content(&mut sum, file.size, disk)
            });
        self.line.read_little(false);
        self.chunks = chunks;
        let Some(trouble) = trouble else {
            return self.finish(&end?, file, &sum, part);
        };
        // It must not go on taking the room that there is not.
        part.discard();
        end?;
        self.fails(trouble)
    }

    fn drop_rest(&mut self, part: Part) -> Result<(), CopyError> {
        part.discard();
        self.drop_content()
    }

    fn drop_content(&mut self) -> Result<(), CopyError> {
        let mut chunks = mem::take(&mut self.chunks);
        let (mut sum, most) = (Sum::new(), i64::MAX as u64);
        let dropped = |disk: &mut dyn Disk| self.content(&mut sum, most, disk);
        let (end, _) = disk::write(None, 0, &mut chunks, dropped);
        self.chunks = chunks;
        end.map(drop)
    }

    /// Tells the sender what there is of the file, and hears where it begins: the checksum up to
    /// there.
    fn agree(&mut self, size: u64, part: &Part) -> Result<Sum, CopyError> {
        let there = part.stat().st_size as u64;
        let mut sum = Sum::new();
        if there > 0 && there <= size {
            let line = &mut *self.line;
            let working = || match line.is_silent() {
                true => {
                    let what = Some(told::What::Working(wire::Working {}));
                    line.send(&wire::Told { what })?;
                    line.flush()
                }
                false => Ok(()),
            };
            let file = part.file().as_fd();
            let mut buffer = vec![0; CHUNK];
            let found = sum_of(file, part.stat(), there, &mut buffer, working)?;
            if let Ok(found) = found {
                sum = found;
            }
        }
        let (length, checksum) = (sum.position(), sum.get().to_vec().into());
        let skip = false;
        self.tell(told::What::Answer(wire::Answer {
            skip,
            length,
            checksum,
        }))?;
        self.line.flush()?;
        let from = loop {
            match self.receive()? {
                sent::What::From(from) => break from.offset,
                sent::What::Working(_) => {}
                _ => return Err(CopyError::Violation("content without a beginning")),
            }
        };
        match from {
            0 => Ok(Sum::new()),
            from if from == length => {
                self.tally.resumed += length;
                self.observer.advance(length);
                Ok(sum)
            }
            _ => Err(CopyError::Violation("a beginning that was not agreed on")),
        }
    }

    /// Takes pieces until the file's end.
    fn content(
        &mut self,
        sum: &mut Sum,
        size: u64,
        disk: &mut dyn Disk,
    ) -> Result<wire::FileEnd, CopyError> {
        loop {
            let piece = match self.receive()? {
                sent::What::Piece(piece) => piece,
                sent::What::FileEnd(end) => return Ok(end),
                sent::What::Note(note) => {
                    self.observer.note(&super::Note::from_wire(&note));
                    continue;
                }
                sent::What::Working(_) => continue,
                sent::What::Failed(failed) => {
                    return Err(CopyError::Failed(super::bounded(&failed.why)));
                }
                _ => return Err(CopyError::Violation("something within a file")),
            };
            let length = piece.length as usize;
            if !(1..=PIECE).contains(&length) {
                return Err(CopyError::Violation("a piece of no or too many bytes"));
            }
            let end = piece.offset.checked_add(length as u64);
            if piece.offset < sum.position() || end.is_none_or(|end| end > size) {
                return Err(CopyError::Violation("a piece outside of its file"));
            }
            let hole = piece.offset - sum.position();
            sum.zeros(hole);
            self.observer.advance(hole);
            let mut rest = length;
            while rest > 0 {
                let now = rest.min(CHUNK);
                let mut chunk = disk.room();
                self.line.receive_bytes(&mut chunk[..now])?;
                let offset = sum.position();
                sum.data(&chunk[..now]);
                disk.put(offset, chunk, now);
                if let Some(error) = disk.trouble()
                    && let Some(errno) = super::no_room(error)
                {
                    return Err(CopyError::here(&self.path, errno));
                }
                self.tally.bytes += now as u64;
                self.observer.advance(now as u64);
                rest -= now;
            }
        }
    }

    /// The file has come: it gets what belongs to it, and its name, if it is right.
    fn finish(
        &mut self,
        end: &wire::FileEnd,
        file: &wire::File,
        sum: &Sum,
        part: Part,
    ) -> Result<(), CopyError> {
        if end.broken {
            // The sender has said why. What has come is worth going on with.
            return Ok(());
        }
        let mut sum = sum.clone();
        let written = sum.position();
        if !(written..=file.size).contains(&end.size) {
            return Err(CopyError::Violation("a file of another size than it has"));
        }
        let meta = file.meta.unwrap_or_default();
        sum.zeros(end.size - written);
        if sum.get()[..] != end.checksum[..] {
            part.discard();
            return self.note("the checksum is wrong".to_owned());
        }
        self.observer.advance(end.size - written);
        let mut done = Ok(());
        if end.size > written {
            done = fs::ftruncate(part.file(), end.size);
        }
        if let Some(trust) = self.archive {
            done = done.and_then(|()| attributes::apply(part.file(), &meta, trust));
        } else if part.is_found() {
            // Found, and not made with the permissions that it is to have.
            done = done.and_then(|()| fs::fchmod(part.file(), attributes::plain_mode(&meta)));
        }
        let done = match done {
            Ok(()) => part.finish(),
            Err(error) => {
                part.discard();
                Err(error)
            }
        };
        match done {
            Ok(()) => {
                self.tally.files += 1;
                Ok(())
            }
            Err(error) => self.fails(error),
        }
    }
}
