//! Names of users and groups, from `/etc/passwd` and `/etc/group`.
//!
//! The C library's name service (NSS) is not used: it loads code into the process, may access the
//! network without a time limit, and does not exist in a static program. Accounts from other sources
//! have numbers only.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
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

/// The user id of a name, or of a decimal number. `None` if no user has this name.
pub fn uid(user: &str) -> Option<u32> {
    uid_in(Path::new("/etc"), user)
}

fn uid_in(folder: &Path, user: &str) -> Option<u32> {
    let named = || {
        let users = read(&folder.join("passwd")).ok()?;
        let found = users.into_iter().find(|(_, name)| **name == *user);
        found.map(|(uid, _)| uid)
    };
    // `u32::MAX` means "no user" to system calls.
    user.parse()
        .ok()
        .filter(|uid| *uid < u32::MAX)
        .or_else(named)
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
            self.names = read(&self.path).unwrap_or_default();
            self.version = now;
        }
        self.names.get(&number).cloned()
    }
}

fn read(path: &Path) -> io::Result<HashMap<u32, Arc<str>>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    let mut names = HashMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b':');
        let field = |bytes| std::str::from_utf8(bytes).ok();
        let name = fields
            .next()
            .and_then(field)
            .filter(|name| !name.is_empty());
        let number = fields.nth(1).and_then(field).and_then(|n| n.parse().ok());
        if let (Some(name), Some(number)) = (name, number) {
            // The first of several names wins, as in the C library.
            names.entry(number).or_insert_with(|| name.into());
        }
    }
    Ok(names)
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
    }
}
