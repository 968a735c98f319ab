//! The freezer of a process's control group (cgroup), by which container runtimes pause: that of cgroup v2
//! (`cgroup.freeze`), and that of v1 (`freezer.state`).
//!
//! A process is in one cgroup of each hierarchy, and frozen if any of them is. A change of v2's shows at
//! `cgroup.events` as `POLLPRI`. v1 has no notification: who freezes writes to `freezer.state` of the cgroup
//! or of one above it, which inotify reports.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Maximum bytes read of one file.
const MAX_STATE: usize = 512;
/// Most cgroups above one of which changes are watched.
const MAX_DEPTH: usize = 32;

/// The freezer of a cgroup.
#[derive(Debug)]
pub struct CgroupFreezer {
    file: File,
    version: Version,
    /// The files whose modification may change it.
    watched: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// Whether a cgroup is frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frozen {
    /// No.
    No,
    /// Not all of its processes are. No notification follows when all of them are.
    Partly,
    /// Yes.
    Yes,
}

impl CgroupFreezer {
    /// The freezers of the cgroups that a process is in now. Empty if those are the system's outermost ones,
    /// which have none, or if this process sees none of them.
    ///
    /// # Errors
    ///
    /// Those of reading `/proc/PID/cgroup` and `/proc/self/mountinfo`.
    pub fn of_process(pid: u32) -> io::Result<Vec<Self>> {
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let open = |(version, folder): (Version, Folder)| {
            let file = File::open(folder.path.join(version.file())).ok()?;
            Some(Self {
                file,
                version,
                watched: match version {
                    Version::V1 => folder.files_to_the_root(version.file()),
                    Version::V2 => Vec::new(),
                },
            })
        };
        Ok(folders(&cgroups, &mounts)
            .into_iter()
            .filter_map(open)
            .collect())
    }

    /// Its state now.
    ///
    /// # Errors
    ///
    /// `ENODEV` if the cgroup is gone.
    pub fn state(&self) -> io::Result<Frozen> {
        let mut buffer = [0; MAX_STATE];
        let len = self.file.read_at(&mut buffer, 0)?;
        let text = String::from_utf8_lossy(buffer.get(..len).unwrap_or_default());
        Ok(self.version.parse(&text))
    }

    /// The files that inotify watches for modifications. Empty if a change shows as `POLLPRI`.
    pub fn watched(&self) -> &[PathBuf] {
        &self.watched
    }
}

impl AsRawFd for CgroupFreezer {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl Version {
    /// The file that says whether a cgroup is frozen.
    fn file(self) -> &'static str {
        match self {
            Self::V1 => "freezer.state",
            Self::V2 => "cgroup.events",
        }
    }

    fn parse(self, text: &str) -> Frozen {
        match self {
            Self::V1 => match text.trim() {
                "FROZEN" => Frozen::Yes,
                "FREEZING" => Frozen::Partly,
                _ => Frozen::No,
            },
            Self::V2 => match text.lines().any(|line| line.trim() == "frozen 1") {
                true => Frozen::Yes,
                false => Frozen::No,
            },
        }
    }
}

/// The folder of a cgroup.
#[derive(Debug, PartialEq, Eq)]
struct Folder {
    path: PathBuf,
    /// How many folders above it are shown.
    depth: usize,
}

impl Folder {
    /// A file of this name in the folder and in those above it that are shown.
    fn files_to_the_root(&self, name: &str) -> Vec<PathBuf> {
        let above = self.path.ancestors().take(self.depth.min(MAX_DEPTH) + 1);
        above.map(|folder| folder.join(name)).collect()
    }
}

/// The folders of the cgroups with a freezer, from the text of `/proc/PID/cgroup` and of
/// `/proc/self/mountinfo`.
fn folders(cgroups: &str, mounts: &str) -> Vec<(Version, Folder)> {
    let mounts: Vec<Mount> = mounts.lines().filter_map(Mount::parse).collect();
    let of_line = |line: &str| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let version = match (number, controllers) {
            ("0", "") => Version::V2,
            (_, controllers) if controllers.split(',').any(|one| one == "freezer") => Version::V1,
            _ => return None,
        };
        let all = mounts.iter().filter(|mount| mount.version == version);
        let found = all.filter_map(|mount| mount.folder(Path::new(path)));
        // The mount that shows the most of the hierarchy.
        Some((version, found.max_by_key(|folder| folder.depth)?))
    };
    cgroups.lines().filter_map(of_line).collect()
}

/// A mount of a hierarchy.
#[derive(Debug)]
struct Mount {
    version: Version,
    /// The cgroup that is mounted.
    root: PathBuf,
    point: PathBuf,
}

impl Mount {
    /// A line of `mountinfo` (proc_pid_mountinfo(5)).
    fn parse(line: &str) -> Option<Self> {
        let (first, last) = line.split_once(" - ")?;
        let mut fields = first.split(' ').skip(3);
        let (root, point) = (unescape(fields.next()?), unescape(fields.next()?));
        let mut last = last.split(' ');
        let (kind, _source, options) = (last.next()?, last.next()?, last.next()?);
        let version = match kind {
            "cgroup2" => Version::V2,
            "cgroup" if options.split(',').any(|one| one == "freezer") => Version::V1,
            _ => return None,
        };
        Some(Self {
            version,
            root: root.into(),
            point: point.into(),
        })
    }

    /// The folder of the cgroup at `path`, if this mount shows it.
    fn folder(&self, path: &Path) -> Option<Folder> {
        // A cgroup outside this process's cgroup namespace has a path that begins with `/..`.
        let is_plain = |path: &Path| !path.components().any(|part| part.as_os_str() == "..");
        let below = path
            .strip_prefix(&self.root)
            .ok()
            .filter(|path| is_plain(path))?;
        Some(Folder {
            path: self.point.join(below),
            depth: below.components().count(),
        })
    }
}

/// Replaces the escapes of `mountinfo`: a backslash and three octal digits.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after.get(..3).filter(|_| *first == b'\\');
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
24 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
25 24 0:23 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
26 24 0:24 / /sys/fs/cgroup/cpu,freezer rw,relatime shared:7 - cgroup cgroup rw,cpu,freezer
27 24 0:25 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
";

    fn found(cgroups: &str, mounts: &str) -> Vec<(Version, String, usize)> {
        let found = folders(cgroups, mounts).into_iter();
        found
            .map(|(version, folder)| (version, folder.path.display().to_string(), folder.depth))
            .collect()
    }

    #[test]
    fn a_cgroup_is_found_below_the_mount_that_shows_it() {
        let v1 = (Version::V1, "/sys/fs/cgroup/cpu,freezer/a/b".to_owned(), 2);
        let v2 = (Version::V2, "/sys/fs/cgroup/unified/x".to_owned(), 1);
        let both = "9:memory:/m\n6:cpu,freezer:/a/b\n0::/x\n";
        assert_eq!(found(both, HYBRID), [v1, v2]);
        // Not shown, or without a freezer.
        for none in ["0::/../x\n", "7:memory:/a\n", "", "x\n::\n0:\n"] {
            assert_eq!(found(none, HYBRID), [], "{none}");
        }
        // A container, in which a part of the hierarchy is mounted, and a path with a space.
        let part = "25 24 0:23 /pods/one /c\\040g rw - cgroup2 cgroup2 rw\n";
        let folder = "/c g/two".to_owned();
        assert_eq!(
            found("0::/pods/one/two\n", part),
            [(Version::V2, folder, 1)]
        );
        assert_eq!(found("0::/pods/onetwo\n", part), []);
        assert_eq!(found("0::/other\n", part), []);
    }

    #[test]
    fn a_freezer_of_v1_is_watched_in_all_cgroups_that_are_shown() {
        let folder = Folder {
            path: "/sys/fs/cgroup/freezer/a/b".into(),
            depth: 2,
        };
        let files = folder.files_to_the_root("freezer.state");
        let want = [
            "/sys/fs/cgroup/freezer/a/b/freezer.state",
            "/sys/fs/cgroup/freezer/a/freezer.state",
            "/sys/fs/cgroup/freezer/freezer.state",
        ];
        assert_eq!(files, want.map(PathBuf::from));
    }

    #[test]
    fn the_states_of_both_versions_are_read() {
        for (version, text, want) in [
            (Version::V1, "THAWED\n", Frozen::No),
            (Version::V1, "FREEZING\n", Frozen::Partly),
            (Version::V1, "FROZEN\n", Frozen::Yes),
            (Version::V2, "populated 1\nfrozen 0\n", Frozen::No),
            (Version::V2, "populated 1\nfrozen 1\n", Frozen::Yes),
            (Version::V2, "populated 1\n", Frozen::No),
            (Version::V2, "", Frozen::No),
        ] {
            assert_eq!(version.parse(text), want, "{text}");
        }
    }
}
