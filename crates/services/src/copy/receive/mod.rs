//! The end that receives: it makes what comes, entry by entry, and believes nothing of it.

mod attributes;
mod body;
mod disk;
mod part;
mod place;

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{self, AtFlags};
use rustix::io::Errno;

pub use attributes::Trust;
pub use place::Destination;

use super::line::{Line, Link};
use super::name::Name;
use super::note::{Note, Observer, Tally, bounded};
use super::{CopyError, DEPTH, NOTES};
use crate::wire::copy as wire;
use wire::{sent, told};

/// The most bytes of a symbolic link's target, as on Linux.
const TARGET: usize = 4095;

/// A folder that is being filled.
#[derive(Debug)]
struct Level {
    folder: Arc<OwnedFd>,
    meta: wire::Meta,
    made: bool,
}

/// The receiving end of one copy.
pub struct Receiver<'a, L> {
    line: &'a mut Line<L>,
    observer: &'a mut dyn Observer,
    destination: Destination,
    /// Whether all that there is to know of a file is taken over, and with how much trust.
    archive: Option<Trust>,
    sync: bool,
    /// Names that may come at the top, if that is known.
    asked: Option<HashSet<Vec<u8>>>,
    /// Where in the tree it is, below the destination.
    levels: Vec<Level>,
    /// Folders in one another that could not be made: what is in them is dropped.
    lost: usize,
    /// Entries that came at the top.
    tops: usize,
    path: PathBuf,
    chunks: disk::Chunks,
    tally: Tally,
    /// What this end could not make, which the other end is told of.
    failed: u64,
    told: u64,
}

impl<'a, L: Link> Receiver<'a, L> {
    /// Receives over `line`, on which nothing but `Open` has been said.
    pub fn new(
        line: &'a mut Line<L>,
        observer: &'a mut dyn Observer,
        destination: Destination,
    ) -> Self {
        Self {
            line,
            observer,
            destination,
            archive: None,
            sync: false,
            asked: None,
            levels: Vec::new(),
            lost: 0,
            tops: 0,
            path: PathBuf::new(),
            chunks: disk::Chunks::default(),
            tally: Tally::default(),
            failed: 0,
            told: 0,
        }
    }

    /// Takes over the sender's permissions, times and owners.
    pub fn archive(mut self, trust: Option<Trust>) -> Self {
        self.archive = trust;
        self
    }

    /// Has everything on the disk before the last word.
    pub fn sync(mut self, sync: bool) -> Self {
        self.sync = sync;
        self
    }

    /// Takes only what was asked for at the top: entries with these names, an empty one for what
    /// is in a folder.
    pub fn asked(mut self, names: impl IntoIterator<Item = Vec<u8>>) -> Self {
        self.asked = Some(names.into_iter().collect());
        self
    }

    /// Receives everything.
    pub fn run(mut self) -> Result<Tally, CopyError> {
        match self.all() {
            Ok(()) => Ok(self.tally),
            Err(error) => {
                if !matches!(error, CopyError::Failed(_)) {
                    let _ = self.tell(told::What::Failed(wire::Failed::new(&error)));
                    let _ = self.line.flush();
                }
                Err(error)
            }
        }
    }

    fn all(&mut self) -> Result<(), CopyError> {
        loop {
            match self.receive()? {
                sent::What::Total(total) => self.observer.total(total.files, total.bytes),
                sent::What::Enter(enter) => self.enter(&enter)?,
                sent::What::Leave(_) => self.leave()?,
                sent::What::File(file) => self.file(&file)?,
                sent::What::Symlink(link) => self.symlink(&link)?,
                sent::What::Note(note) => self.observer.note(&Note::from_wire(&note)),
                sent::What::Working(_) => {}
                sent::What::End(end) => return self.end(end.failed),
                sent::What::Failed(failed) => {
                    return Err(CopyError::Failed(bounded(&failed.why)));
                }
                sent::What::From(_) | sent::What::Piece(_) | sent::What::FileEnd(_) => {
                    return Err(CopyError::Violation("content of no file"));
                }
            }
        }
    }

    fn end(&mut self, failed: u64) -> Result<(), CopyError> {
        if !self.levels.is_empty() || self.lost > 0 {
            return Err(CopyError::Violation("an end within a folder"));
        }
        if self.sync {
            let folder = &self.destination.folder;
            fs::syncfs(folder).map_err(|error| CopyError::here(&self.destination.path, error))?;
        }
        self.tally.failed = self.failed.saturating_add(failed);
        let failed = self.failed;
        self.tell(told::What::Done(wire::Done { failed }))?;
        self.line.flush()
    }

    fn enter(&mut self, enter: &wire::Enter) -> Result<(), CopyError> {
        if self.levels.len() + self.lost >= DEPTH {
            return Err(CopyError::Violation(
                "folders deeper in one another than allowed",
            ));
        }
        let meta = enter.meta.unwrap_or_default();
        let named = match (&enter.name[..], self.at_top()) {
            (b"", true) => {
                self.top(b"")?;
                self.destination.rename.clone()
            }
            (name, _) => Some(self.name(name)?),
        };
        match &named {
            Some(name) => self.path.push(name.as_os_str()),
            // Pushed, so that leaving has something to pop.
            None => self.path.push("."),
        }
        if self.lost > 0 {
            self.lost += 1;
            return Ok(());
        }
        let entered = match &named {
            Some(name) => place::enter(self.here(), name, meta.mode)
                .map(|(folder, made)| (Arc::new(folder), made)),
            None => Ok((Arc::clone(&self.destination.folder), false)),
        };
        match entered {
            Ok((folder, made)) => self.levels.push(Level { folder, meta, made }),
            Err(error) => {
                self.fails(error)?;
                self.lost = 1;
            }
        }
        Ok(())
    }

    fn leave(&mut self) -> Result<(), CopyError> {
        if self.lost > 0 {
            self.lost -= 1;
        } else {
            let level = self.levels.pop();
            let level = level.ok_or(CopyError::Violation("a leave of no folder"))?;
            let applied = match self.archive {
                Some(trust) => attributes::apply(&level.folder, &level.meta, trust),
                None if level.made && level.meta.mode & 0o700 != 0o700 => {
                    fs::fchmod(&level.folder, attributes::plain_mode(&level.meta))
                }
                None => Ok(()),
            };
            if let Err(error) = applied {
                self.fails(error)?;
            }
        }
        self.path.pop();
        Ok(())
    }

    fn symlink(&mut self, link: &wire::Symlink) -> Result<(), CopyError> {
        let name = self.name(&link.name)?;
        if !(1..=TARGET).contains(&link.target.len()) || link.target.contains(&0) {
            return Err(CopyError::Violation(
                "a symbolic link to nothing that can be",
            ));
        }
        if self.lost > 0 {
            return Ok(());
        }
        self.path.push(name.as_os_str());
        match self.make_symlink(&name, link) {
            Ok(()) => self.tally.files += 1,
            Err(error) => self.fails(error)?,
        }
        self.path.pop();
        Ok(())
    }

    fn make_symlink(&self, name: &Name, link: &wire::Symlink) -> rustix::io::Result<()> {
        let folder = self.here();
        let beside = name.part();
        let made = match fs::symlinkat(&link.target[..], folder, beside.as_os_str()) {
            Err(Errno::EXIST) => {
                fs::unlinkat(folder, beside.as_os_str(), AtFlags::empty())?;
                fs::symlinkat(&link.target[..], folder, beside.as_os_str())
            }
            made => made,
        };
        made?;
        let finished = match (self.archive, link.meta) {
            (Some(_), Some(meta)) => attributes::apply_to_link(folder, &beside, &meta),
            _ => Ok(()),
        };
        let finished = finished
            .and_then(|()| fs::renameat(folder, beside.as_os_str(), folder, name.as_os_str()));
        if finished.is_err() {
            let _ = fs::unlinkat(folder, beside.as_os_str(), AtFlags::empty());
        }
        finished
    }

    /// The folder that entries go to.
    fn here(&self) -> &Arc<OwnedFd> {
        match self.levels.last() {
            Some(level) => &level.folder,
            None => &self.destination.folder,
        }
    }

    fn at_top(&self) -> bool {
        self.levels.is_empty() && self.lost == 0
    }

    /// The name that an entry gets which is sent with these bytes as its name.
    fn name(&mut self, bytes: &[u8]) -> Result<Name, CopyError> {
        let name = Name::new(bytes);
        let name = name.map_err(|_| CopyError::Violation("a name that leads elsewhere"))?;
        if !self.at_top() {
            return Ok(name);
        }
        self.top(bytes)?;
        Ok(self.destination.rename.clone().unwrap_or(name))
    }

    /// Something comes at the top.
    fn top(&mut self, name: &[u8]) -> Result<(), CopyError> {
        if self
            .asked
            .as_ref()
            .is_some_and(|asked| !asked.contains(name))
        {
            return Err(CopyError::Violation("something that nobody asked for"));
        }
        self.tops += 1;
        if self.tops > 1 && self.destination.rename.is_some() {
            let error = io::Error::from(io::ErrorKind::NotADirectory);
            return Err(CopyError::here(&self.destination.path, error));
        }
        Ok(())
    }

    /// Something cannot be made. That there is no room concerns all that is still to come.
    fn fails(&mut self, error: impl Into<io::Error>) -> Result<(), CopyError> {
        let error: io::Error = error.into();
        if no_room(&error).is_some() {
            return Err(CopyError::here(&self.path, error));
        }
        self.note(error.to_string())
    }

    fn note(&mut self, why: String) -> Result<(), CopyError> {
        let note = Note {
            path: self.path.clone(),
            why,
            skipped: false,
        };
        self.failed += 1;
        self.observer.note(&note);
        if self.told == NOTES {
            return Ok(());
        }
        self.told += 1;
        self.tell(told::What::Note(note.to_wire()))?;
        self.line.flush()
    }

    fn tell(&mut self, what: told::What) -> Result<(), CopyError> {
        self.line.send(&wire::Told { what: Some(what) })
    }

    fn receive(&mut self) -> Result<sent::What, CopyError> {
        let sent: wire::Sent = self.line.receive()?;
        sent.what.ok_or(CopyError::Violation("an empty message"))
    }
}

/// Whether an error concerns all that is still to come as well, and not one entry.
fn no_room(error: &io::Error) -> Option<Errno> {
    let errno = Errno::from_raw_os_error(error.raw_os_error()?);
    [Errno::NOSPC, Errno::DQUOT, Errno::ROFS, Errno::IO]
        .contains(&errno)
        .then_some(errno)
}
