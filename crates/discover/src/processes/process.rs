//! A process, as `/proc` shows it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// The bytes of a file that are read. Those of a VMM have some kilobytes.
const MAX_BYTES: u64 = 1 << 20;
/// The same of a command line. A longer one is no VMM's.
const MAX_LINE: u64 = 128 << 10;

/// The ids of all processes, in ascending order, by the user that they run as. The ids of users that a user may
/// take in a user namespace are high, so these come last.
pub fn pids_by_user(proc: &Path) -> io::Result<BTreeMap<u32, Vec<u32>>> {
    let mut users = BTreeMap::<u32, Vec<u32>>::new();
    for entry in fs::read_dir(proc)?.flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(pid) = pid else { continue };
        // One that cannot be looked at has ended.
        if let Ok(process) = fs::metadata(entry.path()) {
            users.entry(process.uid()).or_default().push(pid);
        }
    }
    for pids in users.values_mut() {
        pids.sort_unstable();
    }
    Ok(users)
}

/// A process.
#[derive(Debug)]
pub struct Process {
    /// Its folder in `/proc`.
    folder: PathBuf,
    /// The user that it runs as.
    pub uid: u32,
    /// Whether that user has given it its arguments, as far as can be seen.
    pub is_of_its_user: bool,
    /// The last part of its program's path, as it names itself.
    pub program: String,
    /// Its arguments, without the program. Bytes that are not UTF-8 are replaced.
    pub arguments: Vec<String>,
    /// The folder that its absolute paths start at, as this process reaches it.
    root: PathBuf,
    /// The folder that its relative paths start at.
    working: PathBuf,
}

impl Process {
    /// Reads a process. `None` if it has ended, is a kernel thread, or may not be read.
    pub fn read(proc: &Path, pid: u32) -> Option<Self> {
        let folder = proc.join(pid.to_string());
        let uid = fs::metadata(&folder).ok()?.uid();
        let line = bounded(&folder.join("cmdline"), MAX_LINE + 1)?;
        if line.len() as u64 > MAX_LINE {
            return None;
        }
        let line = line.strip_suffix(&[0]).unwrap_or(&line);
        let mut words = line
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned());
        let first = words.next().filter(|first| !first.is_empty())?;
        let program = first.rsplit('/').next().unwrap_or_default().to_owned();
        // The links' texts are as good as the links, unless the process has mounts of its own.
        let mounts = |pid: &str| fs::read_link(proc.join(pid).join("ns/mnt")).ok();
        let (own, its) = (mounts("self"), mounts(&pid.to_string()));
        let place = |name: &str| {
            let link = folder.join(name);
            let text = fs::read_link(&link).ok().filter(|_| its == own);
            text.filter(|text| text.is_absolute()).unwrap_or(link)
        };
        // Of a process of another user nothing is known but its arguments; most have no root of their own.
        let root = match its {
            Some(_) => place("root"),
            None => PathBuf::from("/"),
        };
        Some(Self {
            uid,
            is_of_its_user: is_of_its_user(proc, &folder),
            program,
            arguments: words.collect(),
            root,
            working: place("cwd"),
            folder,
        })
    }

    /// A path of the process, as this process reaches it.
    pub fn path(&self, path: &str) -> PathBuf {
        match path.strip_prefix('/') {
            Some(rest) => self.root.join(rest),
            None => self.working.join(path),
        }
    }

    /// The value after the last argument that is one of these options, or after its equals sign.
    pub fn option(&self, names: &'static [&'static str]) -> Option<&str> {
        self.options(names).last()
    }

    /// The values of all arguments that are one of these options.
    pub fn options<'a>(&'a self, names: &'a [&str]) -> impl Iterator<Item = &'a str> {
        let pairs = self.arguments.iter().enumerate();
        pairs.filter_map(move |(at, argument)| {
            names.iter().find_map(|name| {
                let rest = argument.strip_prefix(name)?;
                match rest.strip_prefix('=') {
                    Some(value) => Some(value),
                    None if rest.is_empty() => self.arguments.get(at + 1).map(String::as_str),
                    None => None,
                }
            })
        })
    }

    /// Its network namespace, if context ids belong to namespaces (Linux 7.0) and it is not this process's.
    pub fn netns(&self) -> Option<PathBuf> {
        if !Path::new("/proc/sys/net/vsock/ns_mode").exists() {
            return None;
        }
        let link = self.folder.join("ns/net");
        let (own, its) = (fs::read_link("/proc/self/ns/net"), fs::read_link(&link));
        (own.ok()? != its.ok()?).then_some(link)
    }

    /// A regular file of the process, up to a limit.
    pub fn file(&self, path: &str) -> Option<Vec<u8>> {
        bounded(&self.path(path), MAX_BYTES)
    }

    /// The path of a socket that belongs to the user of the process. Nothing is asked of a socket of somebody
    /// else, to which the process only refers.
    pub fn own_socket(&self, path: &str) -> Option<PathBuf> {
        let path = self.path(path);
        let found = fs::metadata(&path).ok()?;
        (found.file_type().is_socket() && found.uid() == self.uid).then_some(path)
    }
}

/// Whether the arguments of a process are those of the user that it runs as. A program with the set-user-ID bit
/// has them from whoever runs it, and the root of a container is not that of this machine.
fn is_of_its_user(proc: &Path, folder: &Path) -> bool {
    const SET_ID: u32 = 0o6000;
    let is_plain = |exe: fs::Metadata| exe.mode() & SET_ID == 0;
    let ids = |folder: &Path| {
        bounded(&folder.join("status"), MAX_BYTES).map(|status| count_of_ids(&status))
    };
    let (Some(its), Some(own)) = (ids(folder), ids(&proc.join("self"))) else {
        return false;
    };
    its <= own && fs::metadata(folder.join("exe")).is_ok_and(is_plain)
}

/// In how many nested PID namespaces a process has an id, by its `status`. 0 if the kernel has none.
fn count_of_ids(status: &[u8]) -> usize {
    let mut lines = status.split(|byte| *byte == b'\n');
    let ids = lines.find_map(|line| line.strip_prefix(b"NSpid:"));
    ids.map_or(0, |ids| {
        let words = ids.split(u8::is_ascii_whitespace);
        words.filter(|word| !word.is_empty()).count()
    })
}

/// The bytes of a regular file, up to a limit. A FIFO would block.
fn bounded(path: &Path, most: u64) -> Option<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}
