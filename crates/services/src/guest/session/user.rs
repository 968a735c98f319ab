//! Looks up the user of a command.
//!
//! Users come from `/etc/passwd` and `/etc/group`. Others are looked up by the program `getent`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hvsock_sys::accounts::{User, groups_of};

use crate::getent::getent;

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

/// How long a query of the name service may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// `NGROUPS_MAX`, the kernel's limit.
const MAX_GROUPS: usize = 65_536;
/// The highest user id means "no user" to system calls such as setresuid(2).
const NO_USER: u32 = u32::MAX;
/// The folder of `passwd` and `group`.
const ETC: &str = "/etc";

impl Account {
    /// Finds a user by name or number. May block for two times ten seconds.
    pub(super) fn find(who: &str) -> Result<Self, String> {
        // Such a text must not become an option of `getent` or match a line of the file.
        if who.is_empty() || who.starts_with('-') || who.contains([':', '\n', '\0']) {
            return Err(format!("{who:?} is not a user name"));
        }
        let found = Self::in_files(Path::new(ETC), who).or_else(|| Self::by_getent(who));
        found
            .or_else(|| {
                let uid = who.parse().ok().filter(|uid| *uid != NO_USER);
                uid.map(Self::unnamed)
            })
            .ok_or_else(|| format!("no user {who:?}"))
    }

    /// The user that runs this program.
    pub(super) fn own() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let named = Self::in_files(Path::new(ETC), &uid.to_string());
        let mut account = named.unwrap_or_else(|| Self::unnamed(uid));
        account.gid = rustix::process::getegid().as_raw();
        account
    }

    fn in_files(etc: &Path, who: &str) -> Option<Self> {
        let user = User::find(etc, who)?;
        let groups = groups_of(etc, &user.name);
        Some(Self::new(user, groups))
    }

    fn by_getent(who: &str) -> Option<Self> {
        let query = |arguments: &[&str]| getent(arguments, TIMEOUT).ok().flatten();
        let output = query(&["passwd", who])?;
        let user = output.split(|byte| *byte == b'\n').find_map(User::parse)?;
        // `alice   4 24 1000`
        let output = query(&["initgroups", &user.name]).unwrap_or_default();
        let output = String::from_utf8_lossy(&output);
        let groups = output.split_whitespace().skip(1);
        let groups = groups.filter_map(|group| group.parse().ok());
        Some(Self::new(user, groups))
    }

    fn new(user: User, more_groups: impl IntoIterator<Item = u32>) -> Self {
        let or = |path: PathBuf, default: &str| match path.as_os_str().is_empty() {
            true => default.into(),
            false => path,
        };
        let mut groups = vec![user.gid];
        for group in more_groups {
            if groups.len() < MAX_GROUPS && !groups.contains(&group) {
                groups.push(group);
            }
        }
        Self {
            name: Some(user.name),
            uid: user.uid,
            gid: user.gid,
            groups,
            home: or(user.home, "/"),
            shell: or(user.shell, "/bin/sh"),
        }
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
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_user_of_the_files_has_all_groups_and_a_default_shell() {
        let etc = tempfile::tempdir().unwrap();
        fs::write(
            etc.path().join("passwd"),
            "alice:x:1000:100::/home/alice:\n",
        )
        .unwrap();
        let group = "sudo:x:27:bob,alice\nusers:x:100:alice\ndocker:x:99:alice";
        fs::write(etc.path().join("group"), group).unwrap();
        let expected = Account {
            name: Some("alice".to_owned()),
            uid: 1000,
            gid: 100,
            groups: vec![100, 27, 99],
            home: "/home/alice".into(),
            shell: "/bin/sh".into(),
        };
        assert_eq!(Account::in_files(etc.path(), "1000"), Some(expected));
    }

    #[test]
    fn getent_finds_the_same_user_as_the_files() {
        let root = Account::by_getent("root").unwrap();
        assert_eq!(Some(root), Account::in_files(Path::new(ETC), "root"));
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
