//! Unix sockets in a folder that an untrusted user may write to.
//!
//! Such a user can put a symbolic link, another user's socket or another file in the place of each name, at
//! any time, and rename the folder. So every call here is about a folder that is held open, follows no
//! symbolic link, and acts on the file that it has looked at.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::{listening, temporary};

/// A file, whatever its name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// The file with this number on this device, as another process has seen it.
    pub fn new(device: u64, inode: u64) -> Self {
        Self { device, inode }
    }

    /// The number of the device.
    pub fn device(self) -> u64 {
        self.device
    }

    /// The number of the file on its device.
    pub fn inode(self) -> u64 {
        self.inode
    }

    #[allow(
        clippy::unnecessary_cast,
        reason = "the fields have other types on other processors"
    )]
    fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
        }
    }
}

/// A folder that is held open.
#[derive(Debug)]
pub struct SocketFolder {
    folder: OwnedFd,
    id: FileId,
}

impl AsFd for SocketFolder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

impl SocketFolder {
    /// Opens the folder at an absolute path.
    ///
    /// # Errors
    ///
    /// `FilesystemLoop` (`ELOOP`) if the path leads through a symbolic link; `NotADirectory`; those of
    /// `openat2`.
    pub fn open(path: &Path) -> io::Result<Self> {
        // With NOFOLLOW, a link at the end would be reported as ENOTDIR.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let open = || rustix::fs::openat2(rustix::fs::CWD, path, flags, Mode::empty(), resolve);
        let folder = super::retry(open)?;
        let id = FileId::of(&rustix::fs::fstat(&folder)?);
        Ok(Self { folder, id })
    }

    /// The folder that another process has held open.
    ///
    /// # Errors
    ///
    /// `NotADirectory` if the descriptor is not one of a folder; those of `fstat`.
    pub fn from_descriptor(folder: OwnedFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&folder)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Err(Errno::NOTDIR.into());
        }
        let id = FileId::of(&stat);
        Ok(Self { folder, id })
    }

    /// The folder itself.
    pub fn id(&self) -> FileId {
        self.id
    }

    /// The file with this name, which is not followed if it is a symbolic link.
    ///
    /// # Errors
    ///
    /// `NotFound`; those of `fstatat`.
    pub fn find(&self, name: &OsStr) -> io::Result<FileId> {
        let stat = rustix::fs::statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(FileId::of(&stat))
    }

    /// Connects to the socket with this name, if its owner is `trusted`. Returns the non-blocking socket and
    /// the file that it is connected to.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if the listener's backlog is full; `ConnectionRefused` if no process listens; `NotFound`;
    /// `InvalidInput` if the file is no socket; `PermissionDenied` if its owner is not trusted.
    pub fn connect(
        &self,
        name: &OsStr,
        trusted: impl Fn(u32) -> bool,
    ) -> io::Result<(OwnedFd, FileId)> {
        let (file, id) = self.socket(name, trusted)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let address = listening::address(&itself(file.as_fd()))?;
        super::retry(|| rustix::net::connect(&socket, &address))?;
        Ok((socket, id))
    }

    /// Listens at this name, where no file is yet, with the mode `mode` and, if given, the owner `owner`.
    /// Returns the non-blocking listener and its file.
    ///
    /// The name appears when all of that is done: who waits for it finds its owner and mode, and can connect. Until then
    /// the socket has a random name, which begins with `.hvsock-`. `getsockname` returns that one. A process that is
    /// killed in between leaves the file.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if there is a file; `InvalidFilename` if the name is too long for a socket address; those of `socket`,
    /// `bind`, `chown`, `listen` and `rename`.
    pub fn listen(
        &self,
        name: &OsStr,
        mode: u32,
        owner: Option<u32>,
        backlog: u32,
    ) -> io::Result<(OwnedFd, FileId)> {
        // No process could connect by a longer name.
        listening::address(&itself(self.folder.as_fd()).join(name))?;
        // Before a file is made that whoever watches the folder sees.
        if self.find(name).is_ok() {
            return Err(Errno::ADDRINUSE.into());
        }
        // Two processes that want the same name must not touch each other's sockets.
        let digits = temporary::random_name()?;
        let unfinished = OsString::from(format!(".hvsock-{}", String::from_utf8_lossy(&digits)));
        let listen_at = |name: &OsStr| {
            let path = itself(self.folder.as_fd()).join(name);
            let kind = SocketType::STREAM;
            let listener = listening::listen_at_new(kind, &path, mode, owner, backlog)?;
            Ok((listener, self.find(name)?))
        };
        let made = listen_at(&unfinished);
        let renamed = made.and_then(|(listener, file)| {
            let (folder, flags) = (&self.folder, RenameFlags::NOREPLACE);
            rustix::fs::renameat_with(folder, &unfinished, folder, name, flags)?;
            Ok((listener, file))
        });
        let error = match renamed {
            // Whoever can write to the folder may have exchanged it.
            Ok((listener, file)) if self.find(name).is_ok_and(|there| there == file) => {
                return Ok((listener, file));
            }
            Ok(_) => Errno::ADDRINUSE.into(),
            Err(error) => error,
        };
        let _ = rustix::fs::unlinkat(&self.folder, &unfinished, AtFlags::empty());
        match Errno::from_io_error(&error) {
            Some(Errno::EXIST) => Err(Errno::ADDRINUSE.into()),
            // The filesystem knows no flags of rename: the name appears a moment too early.
            Some(Errno::INVAL | Errno::NOSYS) => listen_at(name),
            _ => Err(error),
        }
    }

    /// Removes the file with this name if it is `id`. Returns whether it was.
    ///
    /// # Errors
    ///
    /// Those of `unlinkat`.
    pub fn remove(&self, name: &OsStr, id: FileId) -> io::Result<bool> {
        match self.find(name) {
            Ok(there) if there == id => {}
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
        rustix::fs::unlinkat(&self.folder, name, AtFlags::empty())?;
        Ok(true)
    }

    /// Removes the socket with this name if nobody listens at it and its owner is `trusted`.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if a process listens; as [`connect`](Self::connect).
    pub fn remove_stale(&self, name: &OsStr, trusted: impl Fn(u32) -> bool) -> io::Result<()> {
        let (_, id) = self.socket(name, &trusted)?;
        match self.connect(name, &trusted) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                self.remove(name, id).map(drop)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => {
                let message = "another process listens there";
                Err(io::Error::new(io::ErrorKind::AddrInUse, message))
            }
        }
    }

    /// Watches for files that appear, disappear or are renamed in the folder, and for a rename of itself.
    /// The kernel does not report that a folder is removed which is still held open.
    ///
    /// # Errors
    ///
    /// `EMFILE` or `ENOSPC` if the user has no instance or watch left.
    #[doc(alias = "inotify")]
    pub fn watch(&self) -> io::Result<SocketWatch> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let what = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        inotify::add_watch(&inotify, itself(self.folder.as_fd()), what)?;
        Ok(SocketWatch(inotify))
    }

    /// The socket with this name, and its file.
    fn socket(&self, name: &OsStr, trusted: impl Fn(u32) -> bool) -> io::Result<(OwnedFd, FileId)> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.folder, name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        let fault = |kind, message: String| Err(io::Error::new(kind, message));
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Socket => {}
            FileType::Symlink => {
                let message = "it is a symbolic link and not a socket";
                return fault(io::ErrorKind::InvalidInput, message.into());
            }
            _ => return fault(io::ErrorKind::InvalidInput, "it is not a socket".into()),
        }
        if !trusted(stat.st_uid) {
            let message = format!("it belongs to the user {}", stat.st_uid);
            return fault(io::ErrorKind::PermissionDenied, message);
        }
        Ok((file, FileId::of(&stat)))
    }
}

/// A path of an open file that leads to nothing else.
fn itself(file: BorrowedFd<'_>) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Reports changes in a [`SocketFolder`]. Its descriptor is readable when there are some.
#[derive(Debug)]
pub struct SocketWatch(OwnedFd);

/// Which names have changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Names of files, each once for each change, at most those of one read.
    pub names: Vec<OsString>,
    /// The folder itself was renamed, or changes were lost: anything may have changed.
    pub everything: bool,
}

impl SocketWatch {
    /// Reads the changes since the last call.
    ///
    /// # Errors
    ///
    /// Those of `read`.
    pub fn read(&self) -> io::Result<Changes> {
        /// Read at once. More changes than this holds are "everything".
        const BYTES: usize = 16 * 1024;
        const MAX_NAMES: usize = 1024;
        let mut buffer = [std::mem::MaybeUninit::uninit(); BYTES];
        let mut reader = Reader::new(&self.0, &mut buffer);
        let mut changes = Changes::default();
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => return Ok(changes),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let whole = ReadFlags::DELETE_SELF
                | ReadFlags::MOVE_SELF
                | ReadFlags::IGNORED
                | ReadFlags::UNMOUNT
                | ReadFlags::QUEUE_OVERFLOW;
            changes.everything |= event.events().intersects(whole);
            match event.file_name() {
                Some(name) if changes.names.len() < MAX_NAMES => {
                    let name = OsStr::from_bytes(name.to_bytes());
                    changes.names.push(name.to_owned());
                }
                Some(_) => changes.everything = true,
                None => {}
            }
        }
    }
}

impl AsFd for SocketWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;

    fn folder() -> (tempfile::TempDir, SocketFolder) {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        let folder = SocketFolder::open(&real).unwrap();
        (dir, folder)
    }

    fn kind<T>(result: io::Result<T>) -> io::ErrorKind {
        result.err().expect("an error").kind()
    }

    fn name(text: &str) -> &OsStr {
        OsStr::new(text)
    }

    #[test]
    fn a_path_through_a_symbolic_link_is_not_opened() {
        let (dir, _) = folder();
        let real = dir.path().join("real");
        fs::create_dir_all(real.join("inside")).unwrap();
        let link = dir.path().join("link");
        symlink(&real, &link).unwrap();
        SocketFolder::open(&real.join("inside")).unwrap();
        for path in [link.clone(), link.join("inside")] {
            let error = SocketFolder::open(&path).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ELOOP), "{error}");
        }
    }

    #[test]
    fn only_a_socket_of_a_trusted_owner_is_connected_to() {
        let (dir, folder) = folder();
        let all = |_| true;
        let _listener = UnixListener::bind(dir.path().join("s")).unwrap();
        symlink(dir.path().join("s"), dir.path().join("link")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(folder.connect(name("s"), all).is_ok());
        assert_eq!(
            kind(folder.connect(name("link"), all)),
            io::ErrorKind::InvalidInput
        );
        assert_eq!(
            kind(folder.connect(name("file"), all)),
            io::ErrorKind::InvalidInput
        );
        assert_eq!(
            kind(folder.connect(name("none"), all)),
            io::ErrorKind::NotFound
        );
        assert_eq!(
            kind(folder.connect(name("s"), |_| false)),
            io::ErrorKind::PermissionDenied
        );
    }

    #[test]
    fn only_a_socket_without_a_listener_is_stale() {
        let (dir, folder) = folder();
        let all = |_| true;
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        symlink(dir.path().join("s"), dir.path().join("link")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(
            kind(folder.remove_stale(name("s"), all)),
            io::ErrorKind::AddrInUse
        );
        drop(listener);
        for other in ["link", "file"] {
            let removed = folder.remove_stale(name(other), all);
            assert_eq!(kind(removed), io::ErrorKind::InvalidInput);
        }
        let removed = folder.remove_stale(name("s"), |_| false);
        assert_eq!(kind(removed), io::ErrorKind::PermissionDenied);
        assert!(dir.path().join("s").exists());
        folder.remove_stale(name("s"), all).unwrap();
        assert!(!dir.path().join("s").exists());
    }

    #[test]
    fn a_listener_is_at_a_new_name_only_and_is_removed_only_if_it_is_still_there() {
        let (dir, folder) = folder();
        let is_root = rustix::process::geteuid().is_root();
        let owner = is_root.then_some(12_345);
        let (_listener, id) = folder.listen(name("s"), 0o600, owner, 4).unwrap();
        let found = fs::metadata(dir.path().join("s")).unwrap();
        assert_eq!(found.mode() & 0o777, 0o600);
        assert!(owner.is_none_or(|owner| owner == found.uid()));
        assert_eq!(
            kind(folder.listen(name("s"), 0o600, None, 4)),
            io::ErrorKind::AddrInUse
        );
        symlink("/nowhere", dir.path().join("link")).unwrap();
        assert_eq!(
            kind(folder.listen(name("link"), 0o600, None, 4)),
            io::ErrorKind::AddrInUse
        );
        fs::rename(dir.path().join("s"), dir.path().join("moved")).unwrap();
        fs::write(dir.path().join("s"), "").unwrap();
        assert!(!folder.remove(name("s"), id).unwrap());
        assert!(folder.remove(name("moved"), id).unwrap());
        assert!(!folder.remove(name("moved"), id).unwrap());
    }

    #[test]
    fn a_socket_that_appears_has_its_mode_and_owner_and_can_be_connected_to() {
        const ROUNDS: usize = 300;
        let (dir, folder) = folder();
        let owner = rustix::process::geteuid().is_root().then_some(12_345);
        let path = dir.path().join("s");
        let done = std::sync::atomic::AtomicBool::new(false);
        // Until the last connect has ended.
        let mut listeners = Vec::new();
        std::thread::scope(|scope| {
            // Looks all the time, as scripts and units that wait for a socket do.
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let Ok(found) = fs::symlink_metadata(&path) else {
                        continue;
                    };
                    assert_eq!(found.mode() & 0o777, 0o600);
                    assert!(owner.is_none_or(|owner| owner == found.uid()));
                }
            });
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let connected = folder.connect(name("s"), |_| true);
                    if let Err(error) = connected {
                        let gone = io::ErrorKind::NotFound;
                        assert!(error.kind() == gone || error.kind() == io::ErrorKind::WouldBlock);
                    }
                }
            });
            for _ in 0..ROUNDS {
                let (listener, id) = folder.listen(name("s"), 0o600, owner, 4).unwrap();
                assert_eq!(folder.find(name("s")).unwrap(), id);
                std::thread::yield_now();
                // The name goes first, so that none is there without a listener.
                assert!(folder.remove(name("s"), id).unwrap());
                // A connect that has found the name before still succeeds.
                listeners.push(listener);
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn of_processes_that_want_one_name_at_a_time_one_listens() {
        const ROUNDS: usize = 100;
        let (dir, folder) = folder();
        for _ in 0..ROUNDS {
            let listen = || folder.listen(name("s"), 0o600, None, 4);
            let results = std::thread::scope(|scope| {
                let threads = [(); 4].map(|()| scope.spawn(listen));
                threads.map(|thread| thread.join().unwrap())
            });
            let (made, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
            let [Ok((_listener, id))] = &made[..] else {
                panic!("{made:?}, {refused:?}");
            };
            for result in refused {
                assert_eq!(kind(result), io::ErrorKind::AddrInUse);
            }
            folder.connect(name("s"), |_| true).unwrap();
            assert!(folder.remove(name("s"), *id).unwrap());
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn changes_are_reported_by_name_and_a_rename_of_the_folder_as_everything() {
        let (dir, folder) = folder();
        let watch = folder.watch().unwrap();
        assert_eq!(watch.read().unwrap(), Changes::default());
        fs::write(dir.path().join("a"), "").unwrap();
        fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
        fs::remove_file(dir.path().join("b")).unwrap();
        let changes = watch.read().unwrap();
        assert_eq!(changes.names, ["a", "a", "b", "b"]);
        assert!(!changes.everything);
        fs::rename(dir.path(), dir.path().with_extension("moved")).unwrap();
        fs::rename(dir.path().with_extension("moved"), dir.path()).unwrap();
        assert!(watch.read().unwrap().everything);
    }
}
