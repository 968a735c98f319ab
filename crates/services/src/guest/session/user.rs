//! Looks up the user of a command.
//!
//! Users come from `/etc/passwd` and `/etc/group`. Others are looked up by the program `getent`:
//! the C library's name service loads plugins, which a static program cannot do.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// A user account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    /// `None` if only the number is known.
    pub(super) name: Option<String>,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// All groups, including the user's primary one.
    pub(super) groups: Vec<u32>,
    pub(super) home: PathBuf,
    pub(super) shell: PathBuf,
}

/// The most bytes of either file that are read.
const MAX_FILE: u64 = 64 << 20;
/// The most bytes of `getent`'s output that are read: the capacity of a pipe.
const MAX_OUTPUT: u64 = 64 << 10;
/// How long `getent` may take; it may query the network.
const TIMEOUT: Duration = Duration::from_secs(10);
/// `NGROUPS_MAX`, the kernel's limit.
const MAX_GROUPS: usize = 65_536;
/// The highest user id means "no user" to system calls such as setresuid(2).
const NO_USER: u32 = u32::MAX;

impl Account {
    /// Finds a user by name or number.
    pub(super) fn find(who: &str) -> Result<Self, String> {
        // Such a text must not become an option of `getent` or match a line of the file.
        if who.is_empty() || who.starts_with('-') || who.contains([':', '\n', '\0']) {
            return Err(format!("{who:?} is not a user name"));
        }
        let etc = Path::new("/etc");
        let found = in_files(etc, who).or_else(|| by_getent(who));
        found
            .or_else(|| {
                who.parse()
                    .ok()
                    .filter(|uid| *uid != NO_USER)
                    .map(Self::unnamed)
            })
            .ok_or_else(|| format!("no user {who:?}"))
    }

    /// The user that runs this program.
    pub(super) fn own() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let named = in_files(Path::new("/etc"), &uid.to_string());
        let mut account = named.unwrap_or_else(|| Self::unnamed(uid));
        account.gid = rustix::process::getegid().as_raw();
        account
    }

    /// An account of which only the number is known.
    fn unnamed(uid: u32) -> Self {
        Self {
            name: None,
            uid,
            gid: uid,
            groups: vec![uid],
            home: "/".into(),
            shell: "/bin/sh".into(),
        }
    }

    /// Parses a line of `passwd`.
    fn from_line(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        let fields: Vec<&str> = line.trim_end().split(':').collect();
        let [name, _, uid, gid, _, home, shell] = fields[..] else {
            return None;
        };
        let or = |text: &str, default: &str| match text {
            "" => default.into(),
            text => PathBuf::from(text),
        };
        let gid = gid.parse().ok()?;
        Some(Self {
            name: Some(name.to_owned()).filter(|name| !name.is_empty()),
            uid: uid.parse().ok().filter(|uid| *uid != NO_USER)?,
            gid,
            groups: vec![gid],
            home: or(home, "/"),
            shell: or(shell, "/bin/sh"),
        })
    }

    fn is(&self, who: &str) -> bool {
        self.name.as_deref() == Some(who)
    }

    fn add_groups(&mut self, groups: impl Iterator<Item = u32>) {
        for group in groups {
            if self.groups.len() < MAX_GROUPS && !self.groups.contains(&group) {
                self.groups.push(group);
            }
        }
    }
}

fn in_files(etc: &Path, who: &str) -> Option<Account> {
    let users = read(&etc.join("passwd")).ok()?;
    let users = || {
        users
            .split(|byte| *byte == b'\n')
            .filter_map(Account::from_line)
    };
    let named = users().find(|user| user.is(who));
    let mut account = named.or_else(|| {
        let uid: u32 = who.parse().ok()?;
        users().find(|user| user.uid == uid)
    })?;
    let groups = read(&etc.join("group")).unwrap_or_default();
    let name = account.name.clone().unwrap_or_default();
    let member = |line| group_of(line, &name);
    account.add_groups(groups.split(|byte| *byte == b'\n').filter_map(member));
    Some(account)
}

/// The id of the group in this line of `group`, if the user is a member of it.
fn group_of(line: &[u8], user: &str) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?;
    let fields: Vec<&str> = line.trim_end().split(':').collect();
    let [_, _, gid, members] = fields[..] else {
        return None;
    };
    let member = members.split(',').any(|member| member == user);
    gid.parse().ok().filter(|_| member)
}

fn by_getent(who: &str) -> Option<Account> {
    let output = getent(&["passwd", who])?;
    let mut account = output
        .split(|byte| *byte == b'\n')
        .find_map(Account::from_line)?;
    if let Some(name) = &account.name {
        // `alice   4 24 1000`
        let output = getent(&["initgroups", name]).unwrap_or_default();
        let output = String::from_utf8_lossy(&output).into_owned();
        let groups = output.split_whitespace().skip(1);
        account.add_groups(groups.filter_map(|group| group.parse().ok()));
    }
    Some(account)
}

/// The output of `getent`, if it succeeds in time.
fn getent(arguments: &[&str]) -> Option<Vec<u8>> {
    let mut child = Command::new("getent")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let deadline = Instant::now() + TIMEOUT;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(2)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    };
    let mut output = Vec::new();
    child
        .stdout?
        .take(MAX_OUTPUT)
        .read_to_end(&mut output)
        .ok()?;
    status.success().then_some(output)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn users_are_found_in_the_files() {
        let etc = tempfile::tempdir().unwrap();
        let passwd = b"root:x:0:0:root:/root:/bin/bash\nodd\n\xff:x:9:9::/:\n\
            alice:x:1000:100::/home/alice:\n7:x:8:8::/seven:/bin/sh\nall:x:4294967295:1::/:\n";
        fs::write(etc.path().join("passwd"), passwd).unwrap();
        let group = "users:x:100:\nsudo:x:27:bob,alice\nx:x:notanumber:alice\nwheel:x:10:alicex\n\
            docker:x:99:alice";
        fs::write(etc.path().join("group"), group).unwrap();

        let alice = in_files(etc.path(), "alice").unwrap();
        let expected = Account {
            name: Some("alice".to_owned()),
            uid: 1000,
            gid: 100,
            groups: vec![100, 27, 99],
            home: "/home/alice".into(),
            shell: "/bin/sh".into(),
        };
        assert_eq!(alice, expected);
        assert_eq!(in_files(etc.path(), "1000"), Some(expected));
        // A name of digits is a name first.
        assert_eq!(in_files(etc.path(), "7").unwrap().uid, 8);
        assert_eq!(in_files(etc.path(), "8").unwrap().home, Path::new("/seven"));
        for unknown in ["carol", "all", "9", "", "odd"] {
            assert_eq!(in_files(etc.path(), unknown), None, "{unknown}");
        }
    }

    #[test]
    fn an_invalid_name_is_not_a_user_and_never_an_option() {
        for who in [
            "--help",
            "",
            "a:b",
            "a\nb",
            "no-such-user-at-all",
            "4294967295",
        ] {
            assert!(Account::find(who).is_err(), "{who}");
        }
        let numbered = Account::find("3999999999").unwrap();
        assert_eq!(
            (numbered.uid, numbered.gid, numbered.name),
            (3_999_999_999, 3_999_999_999, None)
        );
        assert_eq!(Account::own().uid, rustix::process::geteuid().as_raw());
    }
}
