//! Receives a file: chooses where its content goes, and completes it.

use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{self, OFlags, Stat};
use rustix::io::Errno;

use super::super::message_stream::Link;
use super::super::name::Name;
use super::super::sum::Sum;
use super::super::{CopyError, RESUME_SIZE};
use super::body::MAX_SIZE;
use super::in_place::{InPlace, NotWritten, needs_space_of, overwrite};
use super::inherit::{self, Inherited};
use super::part::{self, Part};
use super::requested::Kind;
use super::stream::Stream;
use super::target::{self, Existing, Links, Reach, Target};
use super::{Receiver, Trust, attributes, disk};
use crate::wire::copy as wire;

/// The mode of a file that gets other permissions when it is complete.
const PRIVATE: u32 = 0o600;

/// How often to retry when another program creates and removes the final name in between.
const TRIES: usize = 16;

/// Where the content of a file goes.
enum Sink {
    /// To a file of its own, which gets the name when it is complete.
    Part(Part),
    /// Over the content of the file that has the name.
    InPlace(InPlace),
    Stream(Stream),
}

/// A place for a file.
struct Place {
    folder: Arc<OwnedFd>,
    name: Name,
    /// What the name had when the content began to arrive.
    existing: Option<Existing>,
    reach: Reach,
    mode: u32,
}

impl<L: Link> Receiver<'_, L> {
    pub(super) fn file(&mut self, file: &wire::File) -> Result<(), CopyError> {
        let at_top = self.at_top();
        let name = self.file_name(&file.name)?;
        let reach = self.reach(at_top);
        if file.size > MAX_SIZE {
            return Err(CopyError::Violation("a file size above 2^63 - 1 bytes"));
        }
        if self.lost > 0 {
            return self.drop_file(file.ask);
        }
        self.path.push(name.as_os_str());
        self.observer.file(&self.path, file.size);
        let mut place = Place {
            folder: Arc::clone(self.current_folder()),
            name,
            existing: None,
            reach,
            mode: file.meta.unwrap_or_default().mode,
        };
        match self.choose(file, &mut place)? {
            Ok(Sink::Part(part)) => self.fill(file, &place, part)?,
            Ok(Sink::InPlace(disk)) => self.fill_in_place(file, &place, disk)?,
            Ok(Sink::Stream(stream)) => self.stream(file, &stream)?,
            Err(error) => {
                self.fails(error)?;
                self.drop_file(file.ask)?;
            }
        }
        self.path.pop();
        Ok(())
    }

    /// The name of a file. Content without a name gets that of the destination.
    fn file_name(&mut self, name: &[u8]) -> Result<Name, CopyError> {
        if !self.at_top() || !name.is_empty() {
            return self.name(name, Kind::File);
        }
        self.check_top(name, Kind::File)?;
        let renamed = self.destination.rename.clone();
        let unnamed = || {
            Name::new(b"content")
                .ok()
                .filter(|_| self.destination.is_stream)
        };
        renamed.or_else(unnamed).ok_or_else(|| {
            let why = "this is a folder, and the standard input has no name for a file in it";
            let error = io::Error::new(io::ErrorKind::IsADirectory, why);
            CopyError::local(&self.destination.path, error)
        })
    }

    /// What a file may be written to, by who has chosen its name.
    fn reach(&self, at_top: bool) -> Reach {
        let links = match at_top {
            true if self.destination.rename.is_some() => Links::All,
            // A link in a folder may be one that an earlier copy from the same guest has made.
            true if self.trust == Trust::Full => Links::Own,
            _ => Links::None,
        };
        Reach {
            links,
            special: at_top,
        }
    }

    /// Chooses where the content of a file goes.
    fn choose(
        &mut self,
        file: &wire::File,
        place: &mut Place,
    ) -> Result<io::Result<Sink>, CopyError> {
        if self.at_top() && self.destination.is_stream {
            let stream = Stream::shared(&self.destination.folder);
            return Ok(Ok(Sink::Stream(stream)));
        }
        if let Err(clash) = self
            .written
            .check(&place.folder, &place.name, file.identity)
        {
            return Ok(Err(clash.into()));
        }
        let existing = match target::look(&place.folder, &place.name, place.reach) {
            Ok(Target::Special(existing)) => {
                let opened = self.open_special(&existing, &place.folder, &place.name)?;
                return Ok(opened.map(Sink::Stream));
            }
            Ok(Target::File(existing)) => existing,
            Ok(Target::New) => {
                let part = Part::open(&place.folder, &place.name, place.mode, file.ask);
                return Ok(part.map(Sink::Part));
            }
            Err(error) => return Ok(Err(error)),
        };
        let in_place = || {
            let file = existing.open(&place.folder, &place.name, OFlags::WRONLY)?;
            Ok(Sink::InPlace(InPlace::new(file)))
        };
        let staged = match file.size >= RESUME_SIZE
            && needs_space_of(&place.folder, &existing.stat, file.size)
        {
            true => in_place(),
            false => match Part::open(&place.folder, &place.name, PRIVATE, file.ask) {
                Ok(part) => Ok(Sink::Part(part)),
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Err(error),
                // The folder takes no file, but the file takes content.
                Err(_) => in_place(),
            },
        };
        place.existing = Some(existing);
        Ok(staged)
    }

    fn fill(&mut self, file: &wire::File, place: &Place, part: Part) -> Result<(), CopyError> {
        let mut sum = match file.ask {
            true => self.agree(Some(&part))?,
            false => Sum::new(),
        };
        let begin = sum.position();
        if begin < part.stat().st_size as u64
            && let Err(error) = fs::ftruncate(part.file(), begin)
        {
            part.discard();
            self.fails(error)?;
            return self.drop_content();
        }
        let mut buffers = mem::take(&mut self.buffers);
        self.messages.limit_read_ahead(file.ask);
        let (end, error) =
            disk::write(Some(part.file().as_fd()), file.size, &mut buffers, |disk| {
                self.content(&mut sum, disk)
            });
        self.messages.limit_read_ahead(false);
        self.buffers = buffers;
        if let Some(error) = error {
            // Free the space: the disk may be full.
            part.discard();
            end?;
            return self.fails(error);
        }
        let end = end?;
        if end.broken {
            // The partial file stays, for a resumed copy.
            return self.broken();
        }
        let Some(checksum) = self.check(&end, &sum)? else {
            part.discard();
            return self.note("the checksum does not match".to_owned());
        };
        self.observer.advance(end.size - sum.position());
        if end.size > sum.position()
            && let Err(error) = fs::ftruncate(part.file(), end.size)
        {
            part.discard();
            return self.fails(error);
        }
        match self.complete(file, place, part)? {
            Ok(stat) => {
                self.count(file, &checksum);
                self.written.remember(&stat);
                Ok(())
            }
            Err(error) => self.fails(error),
        }
    }

    /// Gives complete content its name. Returns the state of the file that has it.
    fn complete(
        &mut self,
        file: &wire::File,
        place: &Place,
        mut part: Part,
    ) -> Result<io::Result<Stat>, CopyError> {
        let mut is_new = place.existing.is_none();
        for _ in 0..TRIES {
            if is_new {
                let stat = *part.stat();
                match self.create(file, place, part) {
                    Ok(lost) => {
                        self.note_lost(lost)?;
                        return Ok(Ok(stat));
                    }
                    Err((error, back)) if error.kind() == io::ErrorKind::AlreadyExists => {
                        part = back;
                    }
                    Err((error, part)) => {
                        part.discard();
                        return Ok(Err(error));
                    }
                }
            }
            // The file may be another one now than when its content began to arrive.
            match target::look(&place.folder, &place.name, place.reach) {
                Ok(Target::New) => is_new = true,
                Ok(Target::File(existing)) => return self.replace(file, place, &existing, part),
                Ok(Target::Special(_)) => break,
                Err(error) => {
                    part.discard();
                    return Ok(Err(error));
                }
            }
        }
        part.discard();
        Ok(Err(target::replaced()))
    }

    /// Counts a file that is complete.
    pub(super) fn count(&mut self, file: &wire::File, checksum: &[u8; 16]) {
        self.counters.files += 1;
        self.tally.file(&file.name, checksum);
    }

    /// Gives complete content a name that nothing has. Returns why attributes of the source are not
    /// preserved, which is no reason to lose the content.
    fn create(
        &self,
        file: &wire::File,
        place: &Place,
        part: Part,
    ) -> Result<Option<Errno>, (io::Error, Part)> {
        let mut lost = None;
        let permissions = if let Some(trust) = self.archive {
            let meta = file.meta.unwrap_or_default();
            lost = attributes::apply(part.file(), &meta, trust).err();
            Ok(())
        } else if part.is_private() || place.existing.is_some() {
            part::sample(&place.folder, &place.name, place.mode)
                .and_then(|sample| inherit::give_permissions(&sample, part.file()))
        } else {
            Ok(())
        };
        match permissions {
            Ok(()) => part.create(&place.name).map(|()| lost),
            Err(error) => Err((error.into(), part)),
        }
    }

    /// Puts complete content in the place of a file's.
    fn replace(
        &mut self,
        file: &wire::File,
        place: &Place,
        existing: &Existing,
        part: Part,
    ) -> Result<io::Result<Stat>, CopyError> {
        let inherited = match Inherited::of(existing, &place.folder, &place.name) {
            Ok(inherited) => inherited,
            Err(error) => {
                part.discard();
                return Ok(Err(error));
            }
        };
        // A file with several names keeps them, and a link stays a link.
        let part = match existing.linked || existing.stat.st_nlink > 1 {
            true => part,
            false => {
                let archive = self.archive.is_some();
                let given = inherited.give_to(part.file(), archive, self.trust);
                let given = given.and_then(|dropped| {
                    if let Some(trust) = self.archive {
                        let meta = file.meta.unwrap_or_default();
                        attributes::apply(part.file(), &meta, trust)?;
                    }
                    Ok(dropped)
                });
                match given {
                    Ok(dropped) => {
                        let stat = *part.stat();
                        match part.replace(&place.name) {
                            Ok(()) => {
                                self.tell_dropped(dropped)?;
                                return Ok(Ok(stat));
                            }
                            Err((_, part)) => part,
                        }
                    }
                    Err(_) => part,
                }
            }
        };
        let opened = existing.open(&place.folder, &place.name, OFlags::WRONLY);
        let disarmed = opened.and_then(|to| {
            let dropped = inherited.disarm(&to, self.trust)?;
            Ok((to, dropped))
        });
        let (to, dropped) = match disarmed {
            Ok(disarmed) => disarmed,
            Err(error) => {
                part.discard();
                return Ok(Err(error));
            }
        };
        match overwrite(part.file(), &to, || self.keep_alive())? {
            Ok(()) => part.discard(),
            Err(NotWritten::Untouched(error)) => {
                part.discard();
                return Ok(Err(error));
            }
            Err(NotWritten::Incomplete(error)) => {
                let kept = part.keep(&place.name);
                let kept = kept.map(|name| {
                    format!(
                        "; all of the new content is in {}",
                        name.as_os_str().display()
                    )
                });
                let kept = kept.unwrap_or_default();
                let why = format!("{error}: the file is incomplete now{kept}");
                return Ok(Err(io::Error::new(error.kind(), why)));
            }
        }
        let done = self.written_over(file, &inherited, &to, dropped)?;
        Ok(done.map(|()| existing.stat))
    }

    /// Receives content that cannot be staged beside the file that it is for.
    fn fill_in_place(
        &mut self,
        file: &wire::File,
        place: &Place,
        mut disk: InPlace,
    ) -> Result<(), CopyError> {
        let result = self.receive_in_place(file, place, &mut disk);
        match (result, disk.has_begun()) {
            (Ok(Err(error)), true) => {
                let why = format!("{error}: the file is incomplete now");
                self.fails(io::Error::new(error.kind(), why))
            }
            (Ok(Err(error)), false) => self.fails(error),
            (Ok(Ok(())), false) => Ok(()),
            // The failure is reported already.
            (Ok(Ok(())), true) => self.incomplete(),
            (Err(error), begun) => {
                if begun {
                    // The connection may be broken, which is told by the error.
                    let _ = self.incomplete();
                }
                Err(error)
            }
        }
    }

    fn receive_in_place(
        &mut self,
        file: &wire::File,
        place: &Place,
        disk: &mut InPlace,
    ) -> Result<io::Result<()>, CopyError> {
        if file.ask {
            self.agree(None)?;
        }
        let inherited = match &place.existing {
            Some(existing) => Inherited::of(existing, &place.folder, &place.name),
            None => Err(target::replaced()),
        };
        let disarmed = inherited.and_then(|inherited| {
            let dropped = inherited.disarm(disk.file(), self.trust)?;
            Ok((inherited, dropped))
        });
        let (inherited, dropped) = match disarmed {
            Ok(disarmed) => disarmed,
            Err(error) => {
                self.drop_content()?;
                return Ok(Err(error));
            }
        };
        let mut sum = Sum::new();
        let end = self.content(&mut sum, disk)?;
        if let Some(error) = disk.take_error() {
            return Ok(Err(error));
        }
        if end.broken {
            return self.broken().map(Ok);
        }
        let Some(checksum) = self.check(&end, &sum)? else {
            let why = "the checksum does not match";
            return Ok(Err(io::Error::new(io::ErrorKind::InvalidData, why)));
        };
        self.observer.advance(end.size - sum.position());
        if let Err(error) = disk.complete(end.size) {
            return Ok(Err(error));
        }
        disk.finish();
        let done = self.written_over(file, &inherited, disk.file(), dropped)?;
        if done.is_ok() {
            self.count(file, &checksum);
            if let Some(existing) = &place.existing {
                self.written.remember(&existing.stat);
            }
        }
        Ok(done)
    }

    /// Sets the attributes of a file whose content was overwritten.
    fn written_over(
        &mut self,
        file: &wire::File,
        inherited: &Inherited,
        to: &OwnedFd,
        dropped: inherit::Dropped,
    ) -> Result<io::Result<()>, CopyError> {
        let done = match self.archive {
            Some(trust) => {
                let meta = file.meta.unwrap_or_default();
                self.note_lost(attributes::apply(to, &meta, trust).err())?;
                Ok(())
            }
            None => inherited.rearm(to, self.trust),
        };
        // It may be on another filesystem than the destination, which is flushed at the end.
        let done = done.and_then(|()| match self.sync {
            true => fs::fsync(to),
            false => Ok(()),
        });
        if done.is_ok() && self.archive.is_none() {
            self.tell_dropped(dropped)?;
        }
        Ok(done.map_err(io::Error::from))
    }

    fn tell_dropped(&mut self, dropped: inherit::Dropped) -> Result<(), CopyError> {
        match dropped.describe() {
            Some(what) => self.tell(what.to_owned()),
            None => Ok(()),
        }
    }
}
