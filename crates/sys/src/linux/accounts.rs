//! Users and groups, from `/etc/passwd` and `/etc/group` (passwd(5), group(5)).
//!
//! The C library's name service (NSS) is not used: it loads code into the process, may access the
//! network without a time limit, and does not exist in a static program. Accounts from other sources
//! have numbers only, unless the caller gets their lines elsewhere ([`User::parse`]).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// User and group names of this machine, reloaded when the files change.
#[derive(Debug)]
pub struct Accounts {
    users: Table,
    groups: Table,
}

/// The contents of one file: lines of `name:password:number:…`.
#[derive(Debug)]
struct Table {
    path: PathBuf,
    /// Modification time and length of the file when it was read.
    version: Option<(SystemTime, u64)>,
    names: HashMap<u32, Arc<str>>,
}

/// Maximum bytes read of either file.
const MAX_FILE: u64 = 64 << 20;
/// "No user" to system calls such as setresuid(2).
const NO_USER: u32 = u32::MAX;

impl Default for Accounts {
    fn default() -> Self {
        Self::in_folder(Path::new("/etc"))
    }
}

impl Accounts {
    /// The names in the files `passwd` and `group` of `folder`.
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            users: Table::new(folder.join("passwd")),
            groups: Table::new(folder.join("group")),
        }
    }

    /// The name of a user id; `None` if it has none. Costs one `stat` of the file.
    pub fn user(&mut self, uid: u32) -> Option<Arc<str>> {
        self.users.name(uid)
    }

    /// The name of a group id, as [`user`](Self::user).
    pub fn group(&mut self, gid: u32) -> Option<Arc<str>> {
        self.groups.name(gid)
    }
}

/// A user, as a line of `passwd` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name; not empty.
    pub name: String,
    /// The user id; never `u32::MAX`, which means "no user" to system calls.
    pub uid: u32,
    /// The id of the primary group.
    pub gid: u32,
    /// The home; may be empty.
    pub home: PathBuf,
    /// The login shell; may be empty, which stands for `/bin/sh`.
    pub shell: PathBuf,
}

impl User {
    /// Parses a line of `passwd`, which may also come from `getent passwd`.
    pub fn parse(line: &[u8]) -> Option<Self> {
        Self::of(&Entry::parse(line)?)
    }

    fn of(entry: &Entry<'_>) -> Option<Self> {
        let fields: Vec<&[u8]> = entry.rest.split(|byte| *byte == b':').collect();
        let [gid, _, home, shell] = fields[..] else {
            return None;
        };
        Some(Self {
            name: entry.name.to_owned(),
            uid: Some(entry.number).filter(|uid| *uid != NO_USER)?,
            gid: number(gid)?,
            home: OsStr::from_bytes(home).into(),
            shell: OsStr::from_bytes(shell).into(),
        })
    }

    /// The user with this name, or else with this decimal number, in the file `passwd` of `folder`.
    pub fn find(folder: &Path, who: &str) -> Option<Self> {
        let file = read(&folder.join("passwd")).ok()?;
        let users = || entries(&file).filter_map(|entry| Self::of(&entry));
        let named = users().find(|user| user.name == who);
        named.or_else(|| {
            let uid: u32 = who.parse().ok()?;
            users().find(|user| user.uid == uid)
        })
    }
}

/// The ids of the groups that have this user as a member, in the file `group` of `folder`. The
/// user's primary group is not necessarily among them.
pub fn groups_of(folder: &Path, user: &str) -> Vec<u32> {
    let file = read(&folder.join("group")).unwrap_or_default();
    let is_member = |entry: &Entry<'_>| {
        let mut members = entry.rest.split(|byte| *byte == b',');
        members.any(|member| member == user.as_bytes())
    };
    entries(&file)
        .filter(is_member)
        .map(|entry| entry.number)
        .collect()
}

/// The user id of a name, or of a decimal number. `None` if no user has this name.
pub fn uid(user: &str) -> Option<u32> {
    uid_in(Path::new("/etc"), user)
}

/// The group id of a name, or of a decimal number. `None` if no group has this name.
pub fn gid(group: &str) -> Option<u32> {
    gid_in(Path::new("/etc"), group)
}

fn gid_in(folder: &Path, group: &str) -> Option<u32> {
    let numbered = group.parse().ok().filter(|gid| *gid != NO_USER);
    numbered.or_else(|| {
        let file = read(&folder.join("group")).ok()?;
        let found = entries(&file).find(|entry| entry.name == group)?;
        Some(found.number).filter(|gid| *gid != NO_USER)
    })
}

/// The ids of all groups of a user: its primary one, and those that have it as a member.
pub fn all_groups_of(uid: u32) -> Vec<u32> {
    let folder = Path::new("/etc");
    let file = read(&folder.join("passwd")).unwrap_or_default();
    let user = entries(&file).filter_map(|entry| User::of(&entry));
    let Some(user) = user.into_iter().find(|user| user.uid == uid) else {
        return Vec::new();
    };
    let mut groups = groups_of(folder, &user.name);
    groups.push(user.gid);
    groups.sort_unstable();
    groups.dedup();
    groups
}

fn uid_in(folder: &Path, user: &str) -> Option<u32> {
    let numbered = user.parse().ok().filter(|uid| *uid != NO_USER);
    numbered.or_else(|| User::find(folder, user).map(|user| user.uid))
}

impl Table {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            version: None,
            names: HashMap::new(),
        }
    }

    fn name(&mut self, number: u32) -> Option<Arc<str>> {
        let now = fs::metadata(&self.path)
            .and_then(|meta| Ok((meta.modified()?, meta.len())))
            .ok();
        if now.is_none() || now != self.version {
            self.names.clear();
            for entry in entries(&read(&self.path).unwrap_or_default()) {
                // The first of several names wins, as in the C library.
                let name = self.names.entry(entry.number);
                name.or_insert_with(|| entry.name.into());
            }
            self.version = now;
        }
        self.names.get(&number).cloned()
    }
}

/// A line of `passwd` or `group`: `name:password:number:rest`.
struct Entry<'a> {
    name: &'a str,
    number: u32,
    /// The fields that differ between the files.
    rest: &'a [u8],
}

impl<'a> Entry<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.trim_ascii_end().splitn(4, |byte| *byte == b':');
        let name = std::str::from_utf8(fields.next()?).ok()?;
        let number = number(fields.nth(1)?)?;
        let rest = fields.next().unwrap_or_default();
        (!name.is_empty()).then_some(Self { name, number, rest })
    }
}

fn entries(file: &[u8]) -> impl Iterator<Item = Entry<'_>> {
    file.split(|byte| *byte == b'\n').filter_map(Entry::parse)
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_the_names_in_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let passwd = "root:x:0:0:root:/root:/bin/sh\n# comment\nno-number:x\n:x:5:\n\
                      toor:x:0:0::/:\nalice:x:1000:1000::/home/alice:/bin/sh";
        fs::write(dir.path().join("passwd"), passwd).unwrap();
        let mut accounts = Accounts::in_folder(dir.path());
        assert_eq!(accounts.user(0).as_deref(), Some("root"));
        assert_eq!(accounts.user(1000).as_deref(), Some("alice"));
        assert_eq!(accounts.user(5), None);
        assert_eq!(accounts.group(0), None);
        assert_eq!(uid_in(dir.path(), "alice"), Some(1000));
        // The second name of a number, too.
        assert_eq!(uid_in(dir.path(), "toor"), Some(0));
        assert_eq!(uid_in(dir.path(), "77"), Some(77));
        for unknown in ["", "carol", "4294967295", "-1"] {
            assert_eq!(uid_in(dir.path(), unknown), None, "{unknown}");
        }
        fs::write(dir.path().join("passwd"), "bob:x:5:5::/:\n").unwrap();
        assert_eq!(accounts.user(5).as_deref(), Some("bob"));
        assert_eq!(accounts.user(0), None);
        fs::write(
            dir.path().join("group"),
            b"\xff\xfe:x:7:\nusers:x:100:a,b\n",
        )
        .unwrap();
        assert_eq!(accounts.group(100).as_deref(), Some("users"));
        assert_eq!(accounts.group(7), None);
        assert_eq!(gid_in(dir.path(), "users"), Some(100));
        assert_eq!(gid_in(dir.path(), "7"), Some(7));
        for unknown in ["", "staff", "4294967295", "-1"] {
            assert_eq!(gid_in(dir.path(), unknown), None, "{unknown}");
        }
    }

    #[test]
    fn users_are_found_by_name_and_number_with_their_groups() {
        let etc = tempfile::tempdir().unwrap();
        let passwd = b"root:x:0:0:root:/root:/bin/bash\nodd\n\xff:x:9:9::/:\n\
            alice:x:1000:100:\xff:/home/alice:\n7:x:8:8::/seven:/bin/sh\nall:x:4294967295:1::/:\n\
            short:x:10:10:/:\n";
        fs::write(etc.path().join("passwd"), passwd).unwrap();
        let group = "users:x:100:\nsudo:x:27:bob,alice\nx:x:notanumber:alice\nwheel:x:10:alicex\n\
            docker:x:99:alice";
        fs::write(etc.path().join("group"), group).unwrap();

        let alice = User {
            name: "alice".to_owned(),
            uid: 1000,
            gid: 100,
            home: "/home/alice".into(),
            shell: "".into(),
        };
        let find = |who: &str| User::find(etc.path(), who);
        assert_eq!(find("alice").as_ref(), Some(&alice));
        assert_eq!(find("1000"), Some(alice));
        // A name of digits is a name first.
        assert_eq!(find("7").unwrap().uid, 8);
        assert_eq!(find("8").unwrap().home, Path::new("/seven"));
        for unknown in ["carol", "all", "9", "", "odd", "short", "10"] {
            assert_eq!(find(unknown), None, "{unknown}");
        }
        assert_eq!(groups_of(etc.path(), "alice"), [27, 99]);
        assert!(groups_of(etc.path(), "carol").is_empty());
    }
}
