//! Acting with the rights of another user for a moment, in one thread.

use std::io;

use super::remote::Credentials;

/// Calls `action` with the effective user, group and supplementary groups of `credentials`, in this thread only.
/// What it connects to sees those as its peer's (`SO_PEERCRED`).
///
/// If they cannot be given back, the process aborts: it must not go on with another's rights, nor with too few.
///
/// # Errors
///
/// `EPERM` if this process may not become that user; those of `setgroups`, `setresgid` and `setresuid`.
pub fn with_credentials<T>(credentials: &Credentials, action: impl FnOnce() -> T) -> io::Result<T> {
    let own = own()?;
    if own == *credentials {
        return Ok(action());
    }
    let restore = Restore(own);
    // The user last, whose rights the other two need.
    set_groups(&credentials.groups)?;
    set_group(credentials.group)?;
    set_user(credentials.user)?;
    let done = action();
    drop(restore);
    Ok(done)
}

struct Restore(Credentials);

impl Drop for Restore {
    fn drop(&mut self) {
        let Credentials {
            user,
            group,
            groups,
        } = &self.0;
        let restored = set_user(*user)
            .and_then(|()| set_group(*group))
            .and_then(|()| set_groups(groups));
        if restored.is_err() {
            std::process::abort();
        }
    }
}

/// The effective user and group of this thread, and its supplementary groups.
///
/// # Errors
///
/// Those of `getgroups`.
pub fn own() -> io::Result<Credentials> {
    let groups = rustix::process::getgroups()?;
    Ok(Credentials {
        user: rustix::process::geteuid().as_raw(),
        group: rustix::process::getegid().as_raw(),
        groups: groups
            .into_iter()
            .map(rustix::process::Gid::as_raw)
            .collect(),
    })
}

/// The system call concerns the thread; the C library's function would change all threads.
fn set_user(user: u32) -> io::Result<()> {
    // SAFETY: numbers only. −1 leaves an id as it is.
    check(unsafe { libc::syscall(libc::SYS_setresuid, -1, user, -1) })
}

fn set_group(group: u32) -> io::Result<()> {
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_setresgid, -1, group, -1) })
}

fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer is to as many numbers as are said.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })
}

fn check(done: libc::c_long) -> io::Result<()> {
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{peer, stream};

    #[test]
    fn the_rights_of_another_user_are_the_threads_and_end_with_the_action() {
        let before = own().unwrap();
        if before.user != 0 {
            return;
        }
        let other = Credentials {
            user: 65534,
            group: 65533,
            groups: vec![65532, 65531],
        };
        let seen = with_credentials(&other, || {
            let other_thread = std::thread::spawn(|| own().unwrap()).join();
            let (a, _b) = stream::pair().unwrap();
            (peer::credentials(&a).unwrap(), own().unwrap(), other_thread)
        });
        let (peer, inside, _) = seen.unwrap();
        assert_eq!((peer.uid, peer.gid), (65534, 65533));
        assert_eq!((inside.user, inside.group), (65534, 65533));
        assert_eq!(own().unwrap(), before);
    }
}
