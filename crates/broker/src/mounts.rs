//! Mounts of containers that lead to a removed folder.
//!
//! A container's mount is of the directory that its endpoint's folder was when the container started. When
//! somebody removes that directory, or another container gets the name, the mount stays, and no new endpoint
//! can ever be in it. The kernel says so in the list of mounts of the container's processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::path::Path;

use hvsock_endpoint::Dirs;
use hvsock_text::printable;

/// What the kernel adds to the path of a removed directory.
const DELETED: &str = "//deleted";
/// The most bytes that are read of one list of mounts, and the most lists that are read.
const MAX_LIST: u64 = 4 << 20;
const MAX_LISTS: usize = 4096;

/// The containers that have a process whose mount leads to a removed folder, with such a process in words.
pub(crate) fn stale(dirs: &Dirs) -> BTreeMap<String, String> {
    let folder = dirs.containers();
    let folder = fs::canonicalize(&folder).unwrap_or(folder);
    let own = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let Some(root) = folder.to_str().and_then(|folder| within(&own, folder)) else {
        return BTreeMap::new();
    };
    let mut found = BTreeMap::new();
    let (mut namespaces, mut lists) = (BTreeSet::new(), 0);
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // The processes of one container share its mounts. Who may not see which ones are the same reads more.
        let namespace = fs::read_link(entry.path().join("ns/mnt"));
        if namespace.is_ok_and(|namespace| !namespaces.insert(namespace)) {
            continue;
        }
        lists += 1;
        if lists > MAX_LISTS {
            break;
        }
        for container in stale_in(&list(&entry.path()), &root) {
            let process = || format!("{pid} ({})", program(&entry.path()));
            found.entry(container).or_insert_with(process);
        }
    }
    found
}

fn list(process: &Path) -> String {
    let mut bytes = Vec::new();
    // A process may end meanwhile.
    if let Ok(file) = fs::File::open(process.join("mountinfo")) {
        let _ = file.take(MAX_LIST).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn program(process: &Path) -> String {
    let name = fs::read(process.join("comm")).unwrap_or_default();
    printable(String::from_utf8_lossy(&name).trim_end()).to_string()
}

/// One mount of a list, as in proc_pid_mountinfo(5): what of the file system is mounted, and where.
fn mounts(list: &str) -> impl Iterator<Item = (String, String)> {
    list.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(3);
        Some((unescaped(fields.next()?), unescaped(fields.next()?)))
    })
}

/// The path of a folder within its file system, by the list of mounts that this process sees.
fn within(list: &str, folder: &str) -> Option<String> {
    let is_above = |point: &str| {
        let rest = folder.strip_prefix(point.trim_end_matches('/'));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let above = mounts(list).filter(|(_, point)| is_above(point));
    // Of two at one point, the later one is on top.
    let (root, point) = above.max_by_key(|(_, point)| point.len())?;
    let rest = &folder[point.trim_end_matches('/').len()..];
    Some(format!("{}{rest}", root.trim_end_matches('/')))
}

/// The names of the removed folders in `root` that are mounted.
fn stale_in(list: &str, root: &str) -> Vec<String> {
    let removed = mounts(list).filter_map(|(mounted, _)| {
        let path = mounted.strip_suffix(DELETED)?;
        let name = path.strip_prefix(root)?.strip_prefix('/')?;
        (!name.contains('/')).then(|| name.to_owned())
    });
    removed.collect()
}

/// A field without the octal escapes of the kernel.
fn unescaped(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let [first, after @ ..] = rest {
        let octal = after
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let octal = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
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

    const OWN: &str = "\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
24 27 0:25 / /run rw,nosuid - tmpfs tmpfs rw
31 27 0:30 /sub /srv/a\\040b rw - btrfs /dev/vdb rw
32 27 0:31 / /run rw,nosuid - tmpfs tmpfs rw
";

    #[test]
    fn the_folder_within_its_file_system_is_found_by_the_nearest_mount() {
        for (folder, want) in [
            ("/run/hvsock/containers", "/hvsock/containers"),
            ("/runner/containers", "/runner/containers"),
            ("/srv/a b/containers", "/sub/containers"),
            ("/srv/a b", "/sub"),
            ("/srv", "/srv"),
        ] {
            assert_eq!(within(OWN, folder).as_deref(), Some(want));
        }
        assert_eq!(within("", "/run"), None);
    }

    #[test]
    fn a_mount_is_stale_if_its_folder_was_removed() {
        let list = "\
65 44 0:25 /hvsock/containers/web//deleted /run/hvsock ro - tmpfs tmpfs rw
66 44 0:25 /hvsock/containers/db /run/hvsock ro - tmpfs tmpfs rw
67 44 0:25 /hvsock/containers/a/b//deleted /x ro - tmpfs tmpfs rw
68 44 0:25 /other/containers/web2//deleted /x ro - tmpfs tmpfs rw
69 44 0:25 /hvsock/containers//deleted /x ro - tmpfs tmpfs rw
70 44
\u{fffd} a b \\1 \\999 \\
";
        assert_eq!(stale_in(list, "/hvsock/containers"), ["web"]);
    }
}
