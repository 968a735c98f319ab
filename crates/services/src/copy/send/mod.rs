//! The sending end. It walks trees depth first, and waits for the peer only before the content of a
//! large file.

mod content;
mod count;
mod extents;
mod source;
mod stdin;

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::bytes::Bytes;
use rustix::fs::{self, AtFlags, CWD, Dir, FileType, OFlags, Stat};
use rustix::io::Errno;

pub(super) use extents::sum_of;
pub use source::Source;

use super::identity;
use super::message_stream::{IDLE_TIMEOUT, Link, MessageStream};
use super::name::Name;
use super::note::{CopyCounters, Note, Observer, bounded};
use super::own_descriptor;
use super::tally::Tally;
use super::{BUFFER, CopyError, DEPTH, NOTES};
use crate::wire::copy as wire;
use source::{At, open};
use wire::receiver_message::What as FromReceiver;
use wire::sender_message::What as FromSender;

/// The sending end of one copy.
pub struct Sender<'a, L> {
    messages: &'a mut MessageStream<L>,
    observer: &'a mut dyn Observer,
    /// Whether to copy folders with their contents, and symbolic links as links.
    recursive: bool,
    /// The current path, for messages to people.
    path: PathBuf,
    buffer: Vec<u8>,
    counters: CopyCounters,
    /// The cost of the entries sent since the receiver's messages were last read.
    unpolled: u32,
    tally: Tally,
    /// Files that the receiver has refused to receive.
    refused: u64,
    /// The receiver's notes, and those of them that report a failure.
    notes: u64,
    failures_noted: u64,
    /// How long to wait for the first process that writes to a pipe.
    writer_timeout: Duration,
    refuses_own: bool,
}

impl<'a, L: Link> Sender<'a, L> {
    /// Sends over `messages`, on which only `Open` has been sent.
    pub fn new(
        messages: &'a mut MessageStream<L>,
        observer: &'a mut dyn Observer,
        recursive: bool,
    ) -> Self {
        Self {
            messages,
            observer,
            recursive,
            path: PathBuf::new(),
            buffer: vec![0; BUFFER],
            counters: CopyCounters::default(),
            unpolled: 0,
            tally: Tally::new(),
            refused: 0,
            notes: 0,
            failures_noted: 0,
            writer_timeout: IDLE_TIMEOUT,
            refuses_own: false,
        }
    }

    #[cfg(test)]
    pub(super) fn writer_timeout(mut self, timeout: Duration) -> Self {
        self.writer_timeout = timeout;
        self
    }

    /// Refuses sources that are descriptors of this process, such as `/dev/stdin`: they are not those of
    /// the user who names them.
    pub fn refuse_own_descriptors(mut self) -> Self {
        self.refuses_own = true;
        self
    }

    /// Sends all `sources`, preceded by the expected amount of data if `count` is set.
    ///
    /// # Errors
    ///
    /// [`CopyError`] if the copy is aborted. A failure of one entry is counted instead.
    pub fn run(mut self, sources: &[Source], count: bool) -> Result<CopyCounters, CopyError> {
        match self.all(sources, count) {
            Ok(()) => Ok(self.counters),
            // The receiver's final error message is more precise than the system's error.
            Err(CopyError::Broken(error)) => Err(self.closing_error(error)),
            Err(error @ CopyError::Local { .. }) => {
                let _ = self.send(FromSender::Failed(wire::Failed::new(&error)));
                let _ = self.messages.flush();
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    fn all(&mut self, sources: &[Source], count: bool) -> Result<(), CopyError> {
        self.messages.flush()?;
        loop {
            match self.receive()? {
                FromReceiver::Ready(_) => break,
                other => self.handle(other)?,
            }
        }
        if count {
            let (files, bytes) = count::expected(sources, self.recursive);
            self.observer.total(files, bytes);
            self.send(FromSender::Total(wire::Total { files, bytes }))?;
        }
        for source in sources {
            let path = source.path();
            self.path = match source.name() {
                Some(name) => PathBuf::from(name.as_os_str()),
                None if path.as_os_str().is_empty() => PathBuf::from("\"\""),
                None => path.to_owned(),
            };
            if source.is_standard_input() {
                self.standard_input()?;
                continue;
            }
            let at = At {
                folder: CWD,
                name: path,
                follow: !self.recursive || source.name().is_none(),
            };
            let name = source.name().filter(|_| at.follow);
            match name.and_then(|name| own_descriptor::of(path, name)) {
                Some(_) if self.refuses_own => {
                    let why = "this is a descriptor of the agent's own process";
                    self.note(why.to_owned(), false)?;
                }
                Some(own) if own_descriptor::is_write_only(own) => self.fails(Errno::BADF)?,
                _ => self.entry(at, source.name(), 0)?,
            }
        }
        let failed = self.counters.failed;
        let sent = Some(self.tally.to_wire());
        self.send(FromSender::End(wire::End { failed, sent }))?;
        self.messages.flush()?;
        loop {
            match self.receive()? {
                FromReceiver::Done(done) => return self.done(&done),
                other => self.handle(other)?,
            }
        }
    }

    /// Compares what the receiver says it has stored with what was sent.
    fn done(&mut self, done: &wire::Done) -> Result<(), CopyError> {
        let stored = done.stored.as_ref();
        let stored = stored.ok_or(CopyError::Violation("it does not say what it has stored"))?;
        if done.failed < self.refused.max(self.failures_noted) {
            let what = "it states fewer failures than it has reported";
            return Err(CopyError::Violation(what));
        }
        let fits = match done.failed {
            0 => self.tally.equals(Some(stored)),
            _ => self.tally.covers(stored),
        };
        if !fits {
            let what = "it has stored something else than what was sent";
            return Err(CopyError::Violation(what));
        }
        self.counters.files = stored.files + stored.symlinks;
        self.counters.failed = self.counters.failed.saturating_add(done.failed);
        Ok(())
    }

    fn entry(&mut self, at: At<'_>, name: Option<&Name>, depth: usize) -> Result<(), CopyError> {
        self.poll_receiver(1)?;
        let flags = match at.follow {
            true => AtFlags::empty(),
            false => AtFlags::SYMLINK_NOFOLLOW,
        };
        let stat = match fs::statat(at.folder, at.name, flags) {
            Ok(stat) => stat,
            Err(error) => return self.fails(error),
        };
        match (FileType::from_raw_mode(stat.st_mode), name) {
            (FileType::Directory, _) if !self.recursive => {
                self.note("a folder is copied only with -r".into(), false)
            }
            (FileType::Directory, _) if depth == DEPTH => {
                let why = format!("folders are nested more than {DEPTH} levels deep");
                self.note(why, false)
            }
            (FileType::Directory, name) => self.folder(at, name, depth),
            (FileType::RegularFile, Some(name)) => self.file(at, name, FileType::RegularFile),
            (FileType::Symlink, Some(name)) => self.symlink(at, name, &stat),
            (FileType::RegularFile | FileType::Symlink, None) => {
                self.note("it is not a folder".into(), false)
            }
            // The user has named it: what can be read from it is copied.
            (kind, Some(name)) if depth == 0 && !self.recursive && kind != FileType::Socket => {
                self.file(at, name, kind)
            }
            (kind, _) => {
                let name = match kind {
                    FileType::Fifo => "a pipe",
                    FileType::Socket => "a socket",
                    _ => "a device",
                };
                let why = match (depth, kind) {
                    (0, FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice) => {
                        format!("with -r {name} is not copied")
                    }
                    _ => format!("{name} is not copied"),
                };
                // In a tree that is no failure, but a path that was named is to be copied.
                self.note(why, depth > 0)
            }
        }
    }

    fn folder(&mut self, at: At<'_>, name: Option<&Name>, depth: usize) -> Result<(), CopyError> {
        let opened = open(at, OFlags::DIRECTORY)
            .and_then(|folder| Ok((Dir::read_from(&folder)?, fs::fstat(&folder)?, folder)));
        let (mut entries, stat, folder) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.fails(error),
        };
        self.send(FromSender::Enter(wire::Enter {
            name: name.map_or(Bytes::new(), bytes_of),
            meta: Some(meta(&stat)),
            identity: identity::shared(&stat),
        }))?;
        self.tally.enter(name.map_or(b"", Name::as_bytes));
        while let Some(entry) = entries.read() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.fails(error)?;
                    break;
                }
            };
            let entry: &CStr = entry.file_name();
            if matches!(entry.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(name) = Name::new(entry.to_bytes()) else {
                self.path.push(OsStr::from_bytes(entry.to_bytes()));
                self.note("its name is longer than 255 bytes".into(), false)?;
                self.path.pop();
                continue;
            };
            let at = At {
                folder: folder.as_fd(),
                name: Path::new(name.as_os_str()),
                follow: false,
            };
            self.path.push(name.as_os_str());
            self.entry(at, Some(&name), depth + 1)?;
            self.path.pop();
        }
        self.tally.leave();
        self.send(FromSender::Leave(wire::Leave {}))
    }

    fn symlink(&mut self, at: At<'_>, name: &Name, stat: &Stat) -> Result<(), CopyError> {
        let target = match fs::readlinkat(at.folder, at.name, Vec::new()) {
            Ok(target) => target,
            Err(error) => return self.fails(error),
        };
        self.counters.files += 1;
        self.tally.symlink(name.as_bytes(), target.as_bytes());
        self.send(FromSender::Symlink(wire::Symlink {
            name: bytes_of(name),
            target: target.into_bytes().into(),
            meta: Some(meta(stat)),
        }))
    }

    /// Reports that an entry is not sent. The copy continues.
    fn fails(&mut self, error: Errno) -> Result<(), CopyError> {
        self.note(io::Error::from(error).to_string(), false)
    }

    fn note(&mut self, why: String, skipped: bool) -> Result<(), CopyError> {
        let path = self.path.clone();
        let note = Note { path, why, skipped };
        self.counters.failed += u64::from(!skipped);
        self.observer.note(&note);
        self.send(FromSender::Note(note.to_wire()))
    }

    /// Tells both users what the copy waits for.
    fn waiting(&mut self, what: &str) -> Result<(), CopyError> {
        self.observer.waiting(&self.path, what);
        let waiting_for = what.to_owned();
        self.send(FromSender::Working(wire::Working { waiting_for }))?;
        self.messages.flush()
    }

    fn keep_alive(&mut self) -> Result<(), CopyError> {
        keep_alive(self.messages)
    }

    fn send(&mut self, what: FromSender) -> Result<(), CopyError> {
        self.messages
            .send(&wire::SenderMessage { what: Some(what) })
    }

    fn receive(&mut self) -> Result<FromReceiver, CopyError> {
        let message: wire::ReceiverMessage = self.messages.receive()?;
        message.what.ok_or(CopyError::Violation("an empty message"))
    }

    /// Reads the receiver's pending messages once enough entries were sent: `cost` is 64 for an
    /// expensive operation.
    fn poll_receiver(&mut self, cost: u32) -> Result<(), CopyError> {
        self.unpolled += cost;
        if self.unpolled < 64 {
            return Ok(());
        }
        self.unpolled = 0;
        while self.messages.has_input()? {
            let what = self.receive()?;
            self.handle(what)?;
        }
        Ok(())
    }

    /// Handles a message that may arrive at any time.
    fn handle(&mut self, what: FromReceiver) -> Result<(), CopyError> {
        match what {
            FromReceiver::Working(working) => {
                if !working.waiting_for.is_empty() {
                    let what = bounded(&working.waiting_for);
                    self.observer.waiting(&self.path, &what);
                }
                Ok(())
            }
            FromReceiver::Note(note) => {
                self.notes += 1;
                if self.notes > NOTES {
                    return Err(CopyError::Violation("more notes than a receiver may send"));
                }
                self.failures_noted += u64::from(!note.skipped);
                self.observer.note(&Note::from_wire(&note));
                Ok(())
            }
            FromReceiver::Failed(failed) => Err(CopyError::Failed(bounded(&failed.why))),
            FromReceiver::Answer(_) | FromReceiver::Done(_) | FromReceiver::Ready(_) => {
                Err(CopyError::Violation("an unexpected answer"))
            }
        }
    }

    /// Why the connection broke: the receiver's final error message, or else the system's error.
    fn closing_error(&mut self, error: io::Error) -> CopyError {
        // The limit covers all that a receiver may have sent.
        for _ in 0..2 * NOTES {
            match self.receive().map(|what| self.handle(what)) {
                Ok(Ok(())) => {}
                Ok(Err(failed @ CopyError::Failed(_))) => return failed,
                Ok(Err(_)) | Err(_) => break,
            }
        }
        CopyError::Broken(error)
    }
}

/// Sends a keepalive if it is time for one.
fn keep_alive(messages: &mut MessageStream<impl Link>) -> Result<(), CopyError> {
    if !messages.keepalive_due() {
        return Ok(());
    }
    let what = Some(FromSender::Working(wire::Working::default()));
    messages.send(&wire::SenderMessage { what })?;
    messages.flush()
}

fn bytes_of(name: &Name) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

#[allow(
    clippy::unnecessary_cast,
    reason = "the types differ between architectures"
)]
fn meta(stat: &Stat) -> wire::Meta {
    wire::Meta {
        mode: stat.st_mode & 0o7777,
        seconds: stat.st_mtime as i64,
        nanoseconds: stat.st_mtime_nsec as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
    }
}
