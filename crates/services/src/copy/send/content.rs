//! The content of files: data and holes, read segment by segment.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{self, Advice, FileType, OFlags, SeekFrom, Stat};
use rustix::io::{self, Errno};

use super::super::message_stream::Link;
use super::super::name::Name;
use super::super::sum::Sum;
use super::super::{BUFFER, CopyError, RESUME_SIZE};
use super::source::{At, open};
use super::{Sender, bytes_of, meta};
use crate::wire::copy as wire;
use wire::receiver_message::What as FromReceiver;
use wire::sender_message::What as FromSender;

/// The data segments of a file, up to a length that is determined once.
pub(in crate::copy) struct Extents<'a> {
    file: BorrowedFd<'a>,
    length: u64,
    /// Whether the file has holes, judged by its block count.
    holes: bool,
    known: Range<u64>,
}

impl<'a> Extents<'a> {
    #[allow(
        clippy::unnecessary_cast,
        reason = "the types differ between architectures"
    )]
    pub(in crate::copy) fn new(file: BorrowedFd<'a>, stat: &Stat, length: u64) -> Self {
        Self {
            file,
            length,
            holes: (stat.st_blocks as u64).saturating_mul(512) < stat.st_size as u64,
            known: 0..0,
        }
    }

    /// The next data segment at or after `position`, if there is one.
    fn next(&mut self, position: u64) -> io::Result<Option<Range<u64>>> {
        if position >= self.length {
            return Ok(None);
        }
        if !self.holes {
            return Ok(Some(position..self.length));
        }
        if !self.known.contains(&position) {
            let start = match fs::seek(self.file, SeekFrom::Data(position)) {
                Ok(start) if start < self.length => start,
                Ok(_) | Err(Errno::NXIO) => return Ok(None),
                // The filesystem does not report holes.
                Err(Errno::INVAL) => {
                    self.holes = false;
                    return Ok(Some(position..self.length));
                }
                Err(error) => return Err(error),
            };
            let end = fs::seek(self.file, SeekFrom::Hole(start))?;
            self.known = start..end.min(self.length);
        }
        let start = position.max(self.known.start);
        Ok(Some(start..self.known.end))
    }

    /// Reads data at or after `position`: returns its offset and length. `None` if there is no more
    /// data, also if the file has become shorter.
    pub(in crate::copy) fn read(
        &mut self,
        position: u64,
        buffer: &mut [u8],
    ) -> io::Result<Option<(u64, usize)>> {
        let Some(extent) = self.next(position)? else {
            return Ok(None);
        };
        let wanted = (extent.end - extent.start).min(buffer.len() as u64) as usize;
        let mut read = 0;
        while read < wanted {
            let at = extent.start + read as u64;
            match io::pread(self.file, &mut buffer[read..wanted], at) {
                Ok(0) => {
                    self.length = at;
                    break;
                }
                Ok(count) => read += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((read > 0).then_some((extent.start, read)))
    }

    /// The file's length, which may have become shorter.
    fn length(&self) -> u64 {
        self.length
    }
}

/// The checksum of the first `length` bytes of a file, or of fewer if the file is shorter.
/// `working` is called repeatedly.
pub(in crate::copy) fn sum_of(
    file: BorrowedFd<'_>,
    stat: &Stat,
    length: u64,
    buffer: &mut [u8],
    mut working: impl FnMut() -> Result<(), CopyError>,
) -> Result<io::Result<Sum>, CopyError> {
    let mut extents = Extents::new(file, stat, length);
    let mut sum = Sum::new();
    loop {
        working()?;
        match extents.read(sum.position(), buffer) {
            Ok(Some((start, count))) => {
                sum.zeros(start - sum.position());
                sum.data(&buffer[..count]);
            }
            Ok(None) => break,
            Err(error) => return Ok(Err(error)),
        }
    }
    sum.zeros(extents.length() - sum.position());
    Ok(Ok(sum))
}

impl<L: Link> Sender<'_, L> {
    pub(super) fn file(&mut self, at: At<'_>, name: &Name) -> Result<(), CopyError> {
        let opened = open(at, OFlags::empty()).and_then(|file| Ok((fs::fstat(&file)?, file)));
        let (stat, file) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.fails(error),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return self.note("it is no longer a regular file".into(), false);
        }
        let size = stat.st_size as u64;
        let ask = size >= RESUME_SIZE;
        self.observer.file(&self.path, size);
        self.send(FromSender::File(wire::File {
            name: bytes_of(name),
            meta: Some(meta(&stat)),
            size,
            ask,
        }))?;
        let begun = match ask {
            true => self.begin(file.as_fd(), &stat)?,
            false => Some(Sum::new()),
        };
        let Some(sum) = begun else {
            // The receiver has reported why.
            return self.send(FromSender::FileEnd(wire::FileEnd::default()));
        };
        let end = self.content(file.as_fd(), &stat, size, sum)?;
        let was = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
        if !end.broken && fs::fstat(&file).is_ok_and(|now| was(&now) != was(&stat)) {
            // The content is sent anyway: most of a log that is being written is better than nothing.
            self.note("it changed while it was copied".into(), false)?;
        }
        self.counters.files += u64::from(!end.broken);
        self.send(FromSender::FileEnd(end))
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
            let working = || match messages.keepalive_due() {
                true => {
                    let what = Some(FromSender::Working(wire::Working {}));
                    messages.send(&wire::SenderMessage { what })?;
                    messages.flush()
                }
                false => Ok(()),
            };
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

    /// Sends the rest of the file's content.
    fn content(
        &mut self,
        file: BorrowedFd<'_>,
        stat: &Stat,
        size: u64,
        mut sum: Sum,
    ) -> Result<wire::FileEnd, CopyError> {
        let mut extents = Extents::new(file, stat, size);
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
                Err(error) => {
                    self.fails(error)?;
                    break true;
                }
            }
        };
        if !broken {
            let hole = extents.length() - sum.position();
            sum.zeros(hole);
            self.observer.advance(hole);
        }
        Ok(wire::FileEnd {
            size: sum.position(),
            checksum: sum.get().to_vec().into(),
            broken,
        })
    }
}
