//! A file's content as it comes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs;
use rustix::io::Errno;

use super::super::line::Link;
use super::super::send::sum_of;
use super::super::sum::Sum;
use super::super::{CHUNK, CopyError, PIECE};
use super::part::Part;
use super::{Receiver, attributes};
use crate::wire::copy as wire;
use wire::{sent, told};

/// Memory for content on its way.
#[derive(Debug)]
pub(super) struct Buffers {
    one: Vec<u8>,
}

impl Default for Buffers {
    fn default() -> Self {
        Self {
            one: vec![0; CHUNK],
        }
    }
}

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
        let mut sum = Sum::new();
        self.content(&mut sum, u64::MAX >> 1, &mut |_, _| {})?;
        Ok(())
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
        let mut trouble = None;
        self.line.read_little(file.ask);
        let end = self.content(&mut sum, file.size, &mut |offset, bytes| {
            if trouble.is_none()
                && let Err(error) = write(part.file().as_fd(), offset, bytes)
            {
                trouble = Some(error);
            }
        });
        self.line.read_little(false);
        let end = end?;
        let Some(trouble) = trouble else {
            return self.finish(&end, file, &sum, part);
        };
        part.discard();
        self.fails(trouble)
    }

    fn drop_rest(&mut self, part: Part) -> Result<(), CopyError> {
        part.discard();
        let mut sum = Sum::new();
        self.content(&mut sum, u64::MAX >> 1, &mut |_, _| {})?;
        Ok(())
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
            let found = sum_of(file, part.stat(), there, &mut self.buffers.one, working)?;
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
        write: &mut dyn FnMut(u64, &[u8]),
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
                let bytes = &mut self.buffers.one[..now];
                self.line.receive_bytes(bytes)?;
                let offset = sum.position();
                sum.data(bytes);
                write(offset, bytes);
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

fn write(file: BorrowedFd<'_>, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                offset += count as u64;
                bytes = &bytes[count..];
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
