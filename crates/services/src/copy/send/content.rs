//! What is in files: the data and the holes, read piece by piece.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{self, Advice, AtFlags, CWD, Dir, FileType, OFlags, SeekFrom, Stat};
use rustix::io::{self, Errno};

use super::super::line::Link;
use super::super::name::Name;
use super::super::sum::Sum;
use super::super::{CHUNK, CopyError, RESUMED};
use super::{At, Sender, Source, bytes_of, meta, open};
use crate::wire::copy as wire;
use wire::{sent, told};

/// Where a file has data, up to a length that was looked at once.
pub(in crate::copy) struct Extents<'a> {
    file: BorrowedFd<'a>,
    length: u64,
    /// Whether it has holes, as far as one can tell for nothing.
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

    /// The next data at `position` or after it, if there is any.
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
                // The filesystem does not tell.
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

    /// Reads data at `position` or after it: where it begins, and how much was read of it.
    /// `None` where there is no more, be it that the file has become shorter.
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

    /// How long the file is, which may be less than it was.
    fn length(&self) -> u64 {
        self.length
    }
}

/// The checksum of a file's first `length` bytes, if it has as many. `working` is called again and
/// again.
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
            return self.note("it is a file no more".into(), false);
        }
        let size = stat.st_size as u64;
        let ask = size >= RESUMED;
        self.observer.file(&self.path, size);
        self.say(sent::What::File(wire::File {
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
            // The receiver has said why.
            return self.say(sent::What::FileEnd(wire::FileEnd::default()));
        };
        let end = self.content(file.as_fd(), &stat, size, sum)?;
        let was = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
        if !end.broken && fs::fstat(&file).is_ok_and(|now| was(&now) != was(&stat)) {
            // It arrives all the same: of a log that is being written most is better than nothing.
            self.note("it was changed while it was copied".into(), false)?;
        }
        self.tally.files += u64::from(!end.broken);
        self.say(sent::What::FileEnd(end))
    }

    /// Agrees with the receiver on where to begin: the checksum up to there, or `None` if it does
    /// not take the file.
    fn begin(&mut self, file: BorrowedFd<'_>, stat: &Stat) -> Result<Option<Sum>, CopyError> {
        // A hint, without which it only takes longer.
        let _ = fs::fadvise(file, 0, None, Advice::Sequential);
        self.line.flush()?;
        let answer = loop {
            match self.hear()? {
                told::What::Answer(answer) => break answer,
                other => self.heard(other)?,
            }
        };
        if answer.skip {
            return Ok(None);
        }
        let mut sum = Sum::new();
        if (1..=stat.st_size as u64).contains(&answer.length) {
            let line = &mut *self.line;
            let working = || match line.is_silent() {
                true => {
                    let what = Some(sent::What::Working(wire::Working {}));
                    line.send(&wire::Sent { what })?;
                    line.flush()
                }
                false => Ok(()),
            };
            let same = sum_of(file, stat, answer.length, &mut self.buffer, working)?;
            if let Ok(same) = same
                && same.position() == answer.length
                && same.get()[..] == answer.checksum[..]
            {
                sum = same;
                self.tally.resumed += answer.length;
                self.observer.advance(answer.length);
            }
        }
        let offset = sum.position();
        self.say(sent::What::From(wire::From { offset }))?;
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
                    self.say(sent::What::Piece(wire::Piece { offset, length }))?;
                    let bytes = &self.buffer[..count];
                    let hole = offset - sum.position();
                    sum.zeros(hole);
                    sum.data(bytes);
                    self.line.send_bytes(bytes)?;
                    self.tally.bytes += count as u64;
                    self.observer.advance(hole + count as u64);
                    if count == CHUNK {
                        self.listen(64)?;
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

/// Entries that are counted at the most: to count takes time as well.
const COUNTED: u64 = 200_000;

/// How many files there are, and how long they are together; as far as one can see.
pub(super) fn count(sources: &[Source], recursive: bool) -> (u64, u64) {
    let mut counted = Counted::default();
    for source in sources {
        let follow = !recursive || source.name().is_none();
        let at = At {
            folder: CWD,
            name: source.path(),
            follow,
        };
        counted.add(at, recursive, 0);
    }
    (counted.files, counted.bytes)
}

#[derive(Default)]
struct Counted {
    files: u64,
    bytes: u64,
    entries: u64,
}

impl Counted {
    fn add(&mut self, at: At<'_>, recursive: bool, depth: usize) {
        self.entries += 1;
        if self.entries > COUNTED {
            return;
        }
        let flags = match at.follow {
            true => AtFlags::empty(),
            false => AtFlags::SYMLINK_NOFOLLOW,
        };
        let Ok(stat) = fs::statat(at.folder, at.name, flags) else {
            return;
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                self.files += 1;
                self.bytes += stat.st_size as u64;
            }
            FileType::Directory if recursive && depth < super::DEPTH => {
                let opened = open(at, OFlags::DIRECTORY)
                    .and_then(|folder| Ok((Dir::read_from(&folder)?, folder)));
                let Ok((entries, folder)) = opened else {
                    return;
                };
                for entry in entries.flatten() {
                    if let Ok(name) = Name::new(entry.file_name().to_bytes()) {
                        let at = At {
                            folder: folder.as_fd(),
                            name: Path::new(name.as_os_str()),
                            follow: false,
                        };
                        self.add(at, recursive, depth + 1);
                    }
                }
            }
            _ => {}
        }
    }
}
