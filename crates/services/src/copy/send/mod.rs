//! The end that sends: it walks trees in depth and never waits for the other end, but before the
//! content of a large file.

mod content;

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use prost::bytes::Bytes;
use rustix::fs::{self, AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

pub(super) use content::sum_of;

use super::line::{Line, Link};
use super::name::Name;
use super::note::{Note, Observer, Tally, bounded};
use super::{CHUNK, CopyError, DEPTH, NOTES};
use crate::wire::copy as wire;
use wire::{sent, told};

/// Something to be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    path: PathBuf,
    name: Option<Name>,
}

impl Source {
    /// What is at `path`. Its name over there is the path's last component; for a path that ends
    /// in `.`, `..` or the root it is what is in the folder, without a name.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let bytes = path.as_os_str().as_bytes();
        let end = bytes.iter().rposition(|byte| *byte != b'/');
        let bytes = &bytes[..end.map_or(0, |last| last + 1)];
        let last = bytes.rsplit(|byte| *byte == b'/').next();
        let name = last.and_then(|last| Name::new(last).ok());
        Self { path, name }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name that it gets.
    pub fn name(&self) -> Option<&Name> {
        self.name.as_ref()
    }
}

/// The sending end of one copy.
pub struct Sender<'a, L> {
    line: &'a mut Line<L>,
    observer: &'a mut dyn Observer,
    /// Folders with what is in them, and symbolic links as such.
    recursive: bool,
    /// Where it is, as it is told to people.
    path: PathBuf,
    buffer: Vec<u8>,
    tally: Tally,
    /// Entries since it last listened.
    deaf: u32,
    heard: u64,
}

/// An entry that is looked at: a name in an open folder, or the path of a source.
#[derive(Clone, Copy)]
struct At<'a> {
    folder: BorrowedFd<'a>,
    name: &'a Path,
    follow: bool,
}

impl<'a, L: Link> Sender<'a, L> {
    /// Sends over `line`, on which nothing but `Open` has been said.
    pub fn new(line: &'a mut Line<L>, observer: &'a mut dyn Observer, recursive: bool) -> Self {
        Self {
            line,
            observer,
            recursive,
            path: PathBuf::new(),
            buffer: vec![0; CHUNK],
            tally: Tally::default(),
            deaf: 0,
            heard: 0,
        }
    }

    /// Sends all of `sources`, after a word on how much that is if `count` says so.
    pub fn run(mut self, sources: &[Source], count: bool) -> Result<Tally, CopyError> {
        match self.all(sources, count) {
            Ok(()) => Ok(self.tally),
            // What the receiver said before it went is the better reason.
            Err(CopyError::Broken(error)) => Err(self.last_words(error)),
            Err(error @ CopyError::Here { .. }) => {
                let _ = self.say(sent::What::Failed(wire::Failed::new(&error)));
                let _ = self.line.flush();
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    fn all(&mut self, sources: &[Source], count: bool) -> Result<(), CopyError> {
        if count {
            let (files, bytes) = content::count(sources, self.recursive);
            self.observer.total(files, bytes);
            self.say(sent::What::Total(wire::Total { files, bytes }))?;
        }
        for source in sources {
            let path = source.path();
            self.path = match &source.name {
                Some(name) => PathBuf::from(name.as_os_str()),
                None => path.to_owned(),
            };
            let at = At {
                folder: CWD,
                name: path,
                follow: !self.recursive || source.name.is_none(),
            };
            self.entry(at, source.name.as_ref(), 0)?;
        }
        let failed = self.tally.failed;
        self.say(sent::What::End(wire::End { failed }))?;
        self.line.flush()?;
        loop {
            match self.hear()? {
                told::What::Done(done) => {
                    self.tally.failed = self.tally.failed.saturating_add(done.failed);
                    return Ok(());
                }
                other => self.heard(other)?,
            }
        }
    }

    fn entry(&mut self, at: At<'_>, name: Option<&Name>, depth: usize) -> Result<(), CopyError> {
        self.listen(1)?;
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
                self.note("a folder, which is copied with -r only".into(), false)
            }
            (FileType::Directory, _) if depth == DEPTH => {
                let why = format!("folders are copied up to {DEPTH} deep");
                self.note(why, false)
            }
            (FileType::Directory, name) => self.folder(at, name, depth),
            (FileType::RegularFile, Some(name)) => self.file(at, name),
            (FileType::Symlink, Some(name)) => self.symlink(at, name, &stat),
            (FileType::RegularFile | FileType::Symlink, None) => {
                self.note("it is not a folder".into(), false)
            }
            (kind, _) => {
                let kind = match kind {
                    FileType::Fifo => "a pipe",
                    FileType::Socket => "a socket",
                    _ => "a device",
                };
                self.note(format!("{kind} is not copied"), true)
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
        self.say(sent::What::Enter(wire::Enter {
            name: name.map_or(Bytes::new(), bytes_of),
            meta: Some(meta(&stat)),
        }))?;
        while let Some(entry) = entries.read() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.fails(error)?;
                    break;
                }
            };
            let entry: &CStr = entry.file_name();
            let Ok(name) = Name::new(entry.to_bytes()) else {
                continue; // itself, and the folder above
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
        self.say(sent::What::Leave(wire::Leave {}))
    }

    fn symlink(&mut self, at: At<'_>, name: &Name, stat: &Stat) -> Result<(), CopyError> {
        let target = match fs::readlinkat(at.folder, at.name, Vec::new()) {
            Ok(target) => target,
            Err(error) => return self.fails(error),
        };
        self.tally.files += 1;
        self.say(sent::What::Symlink(wire::Symlink {
            name: bytes_of(name),
            target: target.into_bytes().into(),
            meta: Some(meta(stat)),
        }))
    }

    /// Something is not sent, and the rest is.
    fn fails(&mut self, error: Errno) -> Result<(), CopyError> {
        self.note(io::Error::from(error).to_string(), false)
    }

    fn note(&mut self, why: String, skipped: bool) -> Result<(), CopyError> {
        let path = self.path.clone();
        let note = Note { path, why, skipped };
        self.tally.failed += u64::from(!skipped);
        self.observer.note(&note);
        self.say(sent::What::Note(note.to_wire()))
    }

    fn say(&mut self, what: sent::What) -> Result<(), CopyError> {
        self.line.send(&wire::Sent { what: Some(what) })
    }

    fn hear(&mut self) -> Result<told::What, CopyError> {
        let told: wire::Told = self.line.receive()?;
        told.what.ok_or(CopyError::Violation("an empty message"))
    }

    /// Hears what the receiver has to say, if it is time to: `cost` is 64 for what takes long.
    fn listen(&mut self, cost: u32) -> Result<(), CopyError> {
        self.deaf += cost;
        if self.deaf < 64 {
            return Ok(());
        }
        self.deaf = 0;
        while self.line.heard()? {
            let what = self.hear()?;
            self.heard(what)?;
        }
        Ok(())
    }

    /// Takes what may be said at any time.
    fn heard(&mut self, what: told::What) -> Result<(), CopyError> {
        match what {
            told::What::Working(_) => Ok(()),
            told::What::Note(note) => {
                self.heard += 1;
                if self.heard > NOTES {
                    return Err(CopyError::Violation("more notes than a receiver may send"));
                }
                self.observer.note(&Note::from_wire(&note));
                Ok(())
            }
            told::What::Failed(failed) => Err(CopyError::Failed(bounded(&failed.why))),
            told::What::Answer(_) | told::What::Done(_) => {
                Err(CopyError::Violation("an answer that nobody asked for"))
            }
        }
    }

    /// Why the connection broke: what the receiver said last, else what the system says.
    fn last_words(&mut self, error: io::Error) -> CopyError {
        // It can hardly have said more, and if it did, that is no reason to go on.
        for _ in 0..2 * NOTES {
            match self.hear().map(|what| self.heard(what)) {
                Ok(Ok(())) => {}
                Ok(Err(failed @ CopyError::Failed(_))) => return failed,
                Ok(Err(_)) | Err(_) => break,
            }
        }
        CopyError::Broken(error)
    }
}

/// Opens a file or folder to be read, and nothing that opening alone does something to.
fn open(at: At<'_>, kind: OFlags) -> rustix::io::Result<OwnedFd> {
    let follow = match at.follow {
        true => OFlags::empty(),
        false => OFlags::NOFOLLOW,
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    fs::openat(at.folder, at.name, flags | follow | kind, Mode::empty())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_named_by_its_last_component_or_not_at_all() {
        for (path, name) in [
            ("a", Some("a")),
            ("/x/a", Some("a")),
            ("a/", Some("a")),
            ("a//", Some("a")),
            ("..a", Some("..a")),
            ("/", None),
            ("", None),
            (".", None),
            ("a/.", None),
            ("a/./", None),
            ("..", None),
            ("a/..", None),
        ] {
            let source = Source::new(path);
            let found = source.name().map(|name| name.as_os_str().to_str().unwrap());
            assert_eq!(found, name, "{path:?}");
        }
    }
}
