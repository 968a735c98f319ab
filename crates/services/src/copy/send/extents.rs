//! The content of a file, segment by segment: data and holes.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::fs::{self, SeekFrom, Stat};
use rustix::io::{self, Errno};

use super::super::CopyError;
use super::super::sum::Sum;

/// The data segments of a file.
///
/// **The size that `stat` reports is not believed.** Files of `/proc` report 0, those of `/sys` 4096,
/// and any file may grow or shrink meanwhile. A file ends where a read returns nothing. Only a file
/// that grows while it is read has a bound: the size that it had when that was first seen.
/// Otherwise a program that writes faster than this one reads would never let the copy end.
pub(in crate::copy) struct Extents<'a> {
    file: BorrowedFd<'a>,
    /// The size by `stat` at the start.
    size: u64,
    /// Nothing is read at or after this offset.
    limit: u64,
    /// Whether the file has holes, judged by its block count.
    holes: bool,
    /// The data segment that was found last.
    known: Range<u64>,
    /// The file has no offsets, as a pipe: it is read once, from its start to its end.
    stream: bool,
    /// Where the file ended.
    end: Option<u64>,
}

impl<'a> Extents<'a> {
    /// The whole content of a file.
    #[allow(
        clippy::unnecessary_cast,
        reason = "the types differ between architectures"
    )]
    pub(in crate::copy) fn new(file: BorrowedFd<'a>, stat: &Stat) -> Self {
        let size = stat.st_size as u64;
        Self {
            file,
            size,
            limit: i64::MAX as u64,
            holes: (stat.st_blocks as u64).saturating_mul(512) < size,
            known: 0..0,
            stream: false,
            end: None,
        }
    }

    /// The content of the first `length` bytes of a file.
    fn prefix(file: BorrowedFd<'a>, stat: &Stat, length: u64) -> Self {
        Self {
            size: length,
            limit: length,
            ..Self::new(file, stat)
        }
    }

    /// The next range to read at or after `position`: up to a hole, or as far as one read goes.
    fn next(&mut self, position: u64, most: usize) -> io::Result<Option<Range<u64>>> {
        let plain = position..position.saturating_add(most as u64).min(self.limit);
        if self.end.is_some_and(|end| position >= end) || plain.is_empty() {
            self.end.get_or_insert(position);
            return Ok(None);
        }
        if !self.holes {
            return Ok(Some(plain));
        }
        if !self.known.contains(&position) {
            let start = match fs::seek(self.file, SeekFrom::Data(position)) {
                Ok(start) => start,
                // Only a hole is left, or nothing.
                Err(Errno::NXIO) => {
                    let size = fs::fstat(self.file)?.st_size as u64;
                    let end = size.clamp(position, self.limit.max(position));
                    // Where the size is wrong there are data behind it.
                    self.holes = false;
                    return self.next(end, most);
                }
                // The filesystem does not report holes.
                Err(Errno::INVAL) => {
                    self.holes = false;
                    return Ok(Some(plain));
                }
                Err(error) => return Err(error),
            };
            if start >= self.limit {
                self.end = Some(self.limit);
                return Ok(None);
            }
            let end = fs::seek(self.file, SeekFrom::Hole(start))?;
            self.known = start..end.min(self.limit);
        }
        let start = position.max(self.known.start);
        let end = self.known.end.min(start.saturating_add(most as u64));
        Ok(Some(start..end))
    }

    /// Reads data at or after `position`: returns its offset and length. `None` at the end of the
    /// file, which is then [`Extents::length`]; a hole may be before it.
    pub(in crate::copy) fn read(
        &mut self,
        position: u64,
        buffer: &mut [u8],
    ) -> io::Result<Option<(u64, usize)>> {
        let Some(extent) = self.next(position, buffer.len())? else {
            return Ok(None);
        };
        let wanted = (extent.end - extent.start) as usize;
        let mut read = 0;
        while read < wanted {
            match self.read_at(extent.start + read as u64, &mut buffer[read..wanted]) {
                Ok(0) => {
                    self.end = Some(extent.start + read as u64);
                    break;
                }
                Ok(count) => read += count,
                Err(Errno::INTR) => {}
                // A stream has no more at present. What was read is not held back.
                Err(Errno::AGAIN) if self.stream && read > 0 => break,
                Err(error) => return Err(error),
            }
        }
        self.limit_growth(extent.start + read as u64);
        Ok((read > 0).then_some((extent.start, read)))
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.stream {
            match io::pread(self.file, &mut *buffer, offset) {
                Err(Errno::SPIPE) if offset == 0 => self.stream = true,
                read => return read,
            }
        }
        io::read(self.file, buffer)
    }

    /// Limits a file that has grown, by its size now. A file whose size is wrong has no limit: its
    /// size does not change with what was read.
    fn limit_growth(&mut self, position: u64) {
        if position <= self.size || self.limit != i64::MAX as u64 {
            return;
        }
        match fs::fstat(self.file) {
            Ok(now) if now.st_size as u64 >= position => self.limit = now.st_size as u64,
            Ok(_) | Err(_) => {}
        }
    }

    /// Whether the file has no offsets. A read may then have to wait for more.
    pub(super) fn is_stream(&self) -> bool {
        self.stream
    }

    /// Where the file ended; 0 before [`Extents::read`] has returned `None`.
    pub(super) fn length(&self) -> u64 {
        self.end.unwrap_or_default()
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
    let mut extents = Extents::prefix(file, stat, length);
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
    sum.zeros(extents.length().saturating_sub(sum.position()));
    Ok(Ok(sum))
}
