//! The receiving end. It creates the received entries and validates everything that it receives.

mod attributes;
mod body;
mod clash;
mod destination;
mod disk;
mod file;
mod in_place;
mod inherit;
mod part;
mod requested;
mod stream;
mod target;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{self, AtFlags};
use rustix::io::Errno;

pub use attributes::Trust;
pub use destination::Destination;

use super::message_stream::{Link, MessageStream};
use super::name::Name;
use super::note::{CopyCounters, Note, Observer, bounded};
use super::send::Source;
use super::tally::Tally;
use super::{CopyError, DEPTH, NOTES};
use crate::wire::copy as wire;
use clash::Written;
use requested::{Kind, Requested};
use wire::receiver_message::What as FromReceiver;
use wire::sender_message::What as FromSender;

/// The longest target of a symbolic link, in bytes (`PATH_MAX` on Linux, without the NUL).
const TARGET: usize = 4095;

/// A filesystem with less free space is full, in bytes. A write fails if its whole buffer does not fit.
const FULL: u64 = 1 << 20;

/// A folder that is being filled.
#[derive(Debug)]
struct Level {
    folder: Arc<OwnedFd>,
    meta: wire::Meta,
    made: bool,
}

/// The receiving end of one copy.
pub struct Receiver<'a, L> {
    messages: &'a mut MessageStream<L>,
    observer: &'a mut dyn Observer,
    destination: Destination,
    /// Whether attributes are preserved, and which of them are trusted.
    archive: Option<Trust>,
    /// Which attributes of a replaced file its new content may have.
    trust: Trust,
    sync: bool,
    /// What may arrive at the top level, if it is known.
    requested: Option<Requested>,
    /// The current folders, from the destination down.
    levels: Vec<Level>,
    /// The nesting depth inside a folder that could not be created: its contents are dropped.
    lost: usize,
    /// How many entries have arrived at the top level.
    top_entries: usize,
    written: Written,
    tally: Tally,
    path: PathBuf,
    buffers: disk::Buffers,
    counters: CopyCounters,
    /// Entries that this end could not create. The peer receives their number.
    failed: u64,
    notes_sent: u64,
    /// Entries that the peer could not send, as far as its messages show it.
    peer_failed: u64,
    /// Files that the peer could not read to their end.
    broken_files: u64,
}

impl<'a, L: Link> Receiver<'a, L> {
    /// Receives over `messages`, on which only `Open` has been sent.
    pub fn new(
        messages: &'a mut MessageStream<L>,
        observer: &'a mut dyn Observer,
        destination: Destination,
    ) -> Self {
        Self {
            messages,
            observer,
            destination,
            archive: None,
            trust: Trust::NoSetId,
            sync: false,
            requested: None,
            levels: Vec::new(),
            lost: 0,
            top_entries: 0,
            written: Written::default(),
            tally: Tally::new(),
            path: PathBuf::new(),
            buffers: disk::Buffers::default(),
            counters: CopyCounters::default(),
            failed: 0,
            notes_sent: 0,
            peer_failed: 0,
            broken_files: 0,
        }
    }

    /// Preserves the sender's permissions, times and owners, as far as `trust` allows.
    pub fn archive(mut self, trust: Option<Trust>) -> Self {
        self.archive = trust;
        self.trust = trust.unwrap_or(self.trust);
        self
    }

    /// Which attributes of a file that is replaced its new content may have. All but setuid, setgid and
    /// capabilities unless it is set.
    pub fn trust(mut self, trust: Trust) -> Self {
        self.trust = trust;
        self
    }

    /// Flushes everything to the disk before the copy counts as done.
    pub fn sync(mut self, sync: bool) -> Self {
        self.sync = sync;
        self
    }

    /// Accepts only these sources, each once, and unless the copy is recursive only as files. A
    /// source that does not arrive counts as failed.
    pub fn requested(mut self, sources: &[Source], recursive: bool) -> Self {
        self.requested = Some(Requested::new(sources, recursive));
        self
    }

    /// Receives everything.
    ///
    /// # Errors
    ///
    /// [`CopyError`] if the copy is aborted. A failure of one entry is counted instead.
    pub fn run(mut self) -> Result<CopyCounters, CopyError> {
        match self.all() {
            Ok(()) => Ok(self.counters),
            Err(error) => {
                if !matches!(error, CopyError::Failed(_)) {
                    let _ = self.send(FromReceiver::Failed(wire::Failed::new(&error)));
                    let _ = self.messages.flush();
                }
                Err(error)
            }
        }
    }

    fn all(&mut self) -> Result<(), CopyError> {
        self.send(FromReceiver::Ready(wire::Ready {}))?;
        self.messages.flush()?;
        loop {
            match self.receive()? {
                FromSender::Total(total) => self.observer.total(total.files, total.bytes),
                FromSender::Enter(enter) => self.enter(&enter)?,
                FromSender::Leave(_) => self.leave()?,
                FromSender::File(file) => self.file(&file)?,
                FromSender::Symlink(link) => self.symlink(&link)?,
                FromSender::Note(note) => self.peer_note(&note),
                FromSender::Working(working) => self.working(&working),
                FromSender::End(end) => return self.end(&end),
                FromSender::Failed(failed) => {
                    return Err(CopyError::Failed(bounded(&failed.why)));
                }
                FromSender::ResumeFrom(_) | FromSender::Chunk(_) | FromSender::FileEnd(_) => {
                    return Err(CopyError::Violation("content outside of a file"));
                }
            }
        }
    }

    fn end(&mut self, end: &wire::End) -> Result<(), CopyError> {
        if !self.levels.is_empty() || self.lost > 0 {
            return Err(CopyError::Violation("an end within a folder"));
        }
        if self.failed == 0 && !self.tally.equals(end.sent.as_ref()) {
            let what = match end.sent {
                Some(_) => "it has sent something else than what it states",
                None => "it does not say what it has sent",
            };
            return Err(CopyError::Violation(what));
        }
        // A descriptor was flushed with its content.
        if self.sync && !self.destination.is_stream {
            let folder = &self.destination.folder;
            fs::syncfs(folder).map_err(|error| CopyError::local(&self.destination.path, error))?;
        }
        let missing = self.report_missing();
        let peer_failed = end.failed.max(self.peer_failed).max(missing);
        self.counters.files = self.tally.files();
        self.counters.failed = self.failed.saturating_add(peer_failed);
        let (failed, stored) = (self.failed, Some(self.tally.to_wire()));
        self.send(FromReceiver::Done(wire::Done { failed, stored }))?;
        self.messages.flush()
    }

    /// Reports the requested sources that have not arrived, unless the sender has said why. Returns
    /// their number.
    fn report_missing(&mut self) -> u64 {
        let mut missing = 0;
        for (path, explained) in self.requested.iter().flat_map(Requested::missing) {
            missing += 1;
            if !explained {
                self.observer.note(&Note {
                    path: path.to_owned(),
                    why: "the other end has not sent it, and not said why".to_owned(),
                    skipped: false,
                });
            }
        }
        missing
    }

    /// The sender reports an entry that it does not send.
    fn peer_note(&mut self, note: &wire::Note) {
        let note = Note::from_wire(note);
        self.peer_failed += u64::from(!note.skipped);
        if let Some(requested) = &mut self.requested {
            requested.note(&note);
        }
        self.observer.note(&note);
    }

    fn enter(&mut self, enter: &wire::Enter) -> Result<(), CopyError> {
        if self.levels.len() + self.lost >= DEPTH {
            return Err(CopyError::Violation("too deeply nested folders"));
        }
        let meta = enter.meta.unwrap_or_default();
        let named = match (&enter.name[..], self.at_top()) {
            (b"", true) => {
                self.check_top(b"", Kind::Folder)?;
                self.destination.rename.clone()
            }
            (name, _) => Some(self.name(name, Kind::Folder)?),
        };
        match &named {
            Some(name) => self.path.push(name.as_os_str()),
            // Pushed so that leaving the folder can pop it.
            None => self.path.push("."),
        }
        if self.lost > 0 {
            self.lost += 1;
            return Ok(());
        }
        match self.make_folder(named.as_ref(), enter, meta) {
            Ok(level) => {
                self.tally.enter(&enter.name);
                self.levels.push(level);
            }
            Err(error) => {
                self.fails(error)?;
                self.lost = 1;
            }
        }
        Ok(())
    }

    /// Opens or creates a folder; without a name it is the destination.
    fn make_folder(
        &mut self,
        name: Option<&Name>,
        enter: &wire::Enter,
        meta: wire::Meta,
    ) -> io::Result<Level> {
        if self.levels.is_empty() && self.destination.is_stream {
            let why = "a folder cannot be written to a pipe or terminal";
            return Err(io::Error::new(io::ErrorKind::IsADirectory, why));
        }
        self.written
            .check_folder(&self.destination.folder, enter.identity)?;
        let Some(name) = name else {
            self.written.enter(None);
            return Ok(Level {
                folder: Arc::clone(&self.destination.folder),
                meta,
                made: false,
            });
        };
        let inside = self.current_folder();
        self.written.check(inside, name, enter.identity)?;
        let (folder, made) = destination::enter(inside, name, meta.mode)?;
        let stat = fs::fstat(&folder)?;
        self.written.remember(&stat);
        self.written.enter(Some(&stat));
        Ok(Level {
            folder: Arc::new(folder),
            meta,
            made,
        })
    }

    fn leave(&mut self) -> Result<(), CopyError> {
        if self.lost > 0 {
            self.lost -= 1;
        } else {
            let level = self.levels.pop();
            let level = level.ok_or(CopyError::Violation("a leave outside of a folder"))?;
            self.tally.leave();
            self.written.leave();
            let applied = match self.archive {
                // A guest does not change folders that were there before.
                Some(Trust::NoSetId) if !level.made => Ok(()),
                Some(trust) => attributes::apply(&level.folder, &level.meta, trust),
                None if level.made && level.meta.mode & 0o700 != 0o700 => {
                    fs::fchmod(&level.folder, attributes::umasked_mode(&level.meta))
                }
                None => Ok(()),
            };
            self.note_lost(applied.err())?;
            if self.sync
                && let Err(error) = sync_mounted(&level.folder, self.current_folder())
            {
                self.fails(error)?;
            }
        }
        self.path.pop();
        Ok(())
    }

    fn symlink(&mut self, link: &wire::Symlink) -> Result<(), CopyError> {
        let name = self.name(&link.name, Kind::Symlink)?;
        if !(1..=TARGET).contains(&link.target.len()) || link.target.contains(&0) {
            return Err(CopyError::Violation("an invalid target of a symbolic link"));
        }
        if self.lost > 0 {
            return Ok(());
        }
        self.path.push(name.as_os_str());
        match self.make_symlink(&name, link) {
            Ok(lost) => {
                self.counters.files += 1;
                self.tally.symlink(&link.name, &link.target);
                self.note_lost(lost)?;
            }
            Err(error) => self.fails(error)?,
        }
        self.path.pop();
        Ok(())
    }

    /// Makes a symbolic link. Returns why its attributes are not preserved.
    fn make_symlink(&mut self, name: &Name, link: &wire::Symlink) -> io::Result<Option<Errno>> {
        if self.at_top() && self.destination.is_stream {
            let why = "a symbolic link cannot be written to a pipe or terminal";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        self.written.check(self.current_folder(), name, 0)?;
        let folder = &Arc::clone(self.current_folder());
        target::may_become_link(folder, name)?;
        let temporary = name.random_part();
        fs::symlinkat(&link.target[..], folder, temporary.as_os_str())?;
        let lost = match (self.archive, link.meta) {
            (Some(_), Some(meta)) => attributes::apply_to_link(folder, &temporary, &meta).err(),
            _ => None,
        };
        let finished = fs::statat(folder, temporary.as_os_str(), AtFlags::SYMLINK_NOFOLLOW);
        let finished = finished.and_then(|stat| {
            fs::renameat(folder, temporary.as_os_str(), folder, name.as_os_str())?;
            Ok(stat)
        });
        match finished {
            Ok(stat) => {
                self.written.remember(&stat);
                Ok(lost)
            }
            Err(error) => {
                let _ = fs::unlinkat(folder, temporary.as_os_str(), AtFlags::empty());
                Err(error.into())
            }
        }
    }

    /// Reports what the sender waits for.
    fn working(&mut self, working: &wire::Working) {
        if !working.waiting_for.is_empty() {
            let what = bounded(&working.waiting_for);
            self.observer.waiting(&self.path, &what);
        }
    }

    /// The folder in which entries are created.
    fn current_folder(&self) -> &Arc<OwnedFd> {
        match self.levels.last() {
            Some(level) => &level.folder,
            None => &self.destination.folder,
        }
    }

    fn at_top(&self) -> bool {
        self.levels.is_empty() && self.lost == 0
    }

    /// Validates a received name. At the top level, applies the rename.
    fn name(&mut self, bytes: &[u8], kind: Kind) -> Result<Name, CopyError> {
        let name = Name::new(bytes);
        let name =
            name.map_err(|_| CopyError::Violation("a name that is not a single path component"))?;
        if !self.at_top() {
            return Ok(name);
        }
        self.check_top(bytes, kind)?;
        Ok(self.destination.rename.clone().unwrap_or(name))
    }

    /// Checks an entry at the top level.
    fn check_top(&mut self, name: &[u8], kind: Kind) -> Result<(), CopyError> {
        if let Some(requested) = &mut self.requested {
            requested
                .arrives(name, kind)
                .map_err(CopyError::Violation)?;
        }
        self.top_entries += 1;
        if self.top_entries > 1 && self.destination.is_single() {
            let error = io::Error::from(io::ErrorKind::NotADirectory);
            return Err(CopyError::local(&self.destination.path, error));
        }
        Ok(())
    }

    /// Reports that an entry cannot be created. The copy continues, unless the error concerns all
    /// further entries.
    fn fails(&mut self, error: impl Into<io::Error>) -> Result<(), CopyError> {
        let error: io::Error = error.into();
        if self.is_fatal(&error) {
            return Err(CopyError::local(&self.path, error));
        }
        self.note(error.to_string())
    }

    /// Reports that an entry is there, but not with the attributes of its source.
    fn note_lost(&mut self, error: Option<Errno>) -> Result<(), CopyError> {
        match error {
            Some(error) => {
                let error = io::Error::from(error);
                self.note(format!("its attributes were not preserved: {error}"))
            }
            None => Ok(()),
        }
    }

    /// Whether an error concerns all further entries: the destination's filesystem is full. All
    /// others, also a full or read-only filesystem below the destination, concern some entries.
    fn is_fatal(&self, error: &io::Error) -> bool {
        let no_space = error.raw_os_error() == Some(Errno::NOSPC.raw_os_error());
        no_space
            && fs::fstatvfs(&self.destination.folder).is_ok_and(|state| {
                let space = state.f_bavail.saturating_mul(state.f_frsize);
                // Some filesystems have no table of inodes and report 0 of 0.
                space < FULL || (state.f_files > 0 && state.f_favail == 0)
            })
    }

    fn note(&mut self, why: String) -> Result<(), CopyError> {
        self.failed += 1;
        self.send_note(why, false)
    }

    /// Reports something about an entry that is no further failure.
    fn tell(&mut self, why: String) -> Result<(), CopyError> {
        self.send_note(why, true)
    }

    /// Reports that a file is incomplete, because of a failure that is counted already.
    fn incomplete(&mut self) -> Result<(), CopyError> {
        let why = "it was overwritten in place, and is incomplete now";
        self.observer.note(&Note {
            path: self.path.clone(),
            why: why.to_owned(),
            skipped: false,
        });
        self.send_only(why.to_owned(), true)
    }

    fn send_note(&mut self, why: String, skipped: bool) -> Result<(), CopyError> {
        self.observer.note(&Note {
            path: self.path.clone(),
            why: why.clone(),
            skipped,
        });
        self.send_only(why, skipped)
    }

    fn send_only(&mut self, why: String, skipped: bool) -> Result<(), CopyError> {
        let path = self.path.clone();
        let note = Note { path, why, skipped };
        if self.notes_sent == NOTES {
            return Ok(());
        }
        self.notes_sent += 1;
        self.send(FromReceiver::Note(note.to_wire()))?;
        self.messages.flush()
    }

    /// Tells both users what the copy waits for.
    fn waits_for(&mut self, what: &str) -> Result<(), CopyError> {
        self.observer.waiting(&self.path, what);
        let waiting_for = what.to_owned();
        self.send(FromReceiver::Working(wire::Working { waiting_for }))?;
        self.messages.flush()
    }

    /// Sends a keepalive if it is time for one.
    fn keep_alive(&mut self) -> Result<(), CopyError> {
        if !self.messages.keepalive_due() {
            return Ok(());
        }
        self.send(FromReceiver::Working(wire::Working::default()))?;
        self.messages.flush()
    }

    fn send(&mut self, what: FromReceiver) -> Result<(), CopyError> {
        self.messages
            .send(&wire::ReceiverMessage { what: Some(what) })
    }

    fn receive(&mut self) -> Result<FromSender, CopyError> {
        let message: wire::SenderMessage = self.messages.receive()?;
        message.what.ok_or(CopyError::Violation("an empty message"))
    }
}
/// Flushes the filesystem of a folder if it is another than that of its parent.
fn sync_mounted(folder: &OwnedFd, parent: &OwnedFd) -> rustix::io::Result<()> {
    match fs::fstat(folder)?.st_dev == fs::fstat(parent)?.st_dev {
        true => Ok(()),
        false => fs::syncfs(folder),
    }
}
