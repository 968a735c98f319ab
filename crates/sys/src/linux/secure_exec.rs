//! Programs that the kernel starts with more rights than their caller has, and in which the dynamic loader therefore
//! ignores `LD_PRELOAD` (`AT_SECURE`, ld.so(8)).

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{getgid, getuid};

const SET_USER_ID: u32 = 0o4000;
const SET_GROUP_ID: u32 = 0o2010;

/// Whether the program gets another user, another group or capabilities when this process executes it.
///
/// `false` in a process that may gain no privileges (`PR_SET_NO_NEW_PRIVS`). A file system that is mounted
/// without set-user-ID programs (`nosuid`) is not considered.
///
/// # Errors
///
/// Those of `stat` and `getxattr`.
#[doc(alias = "AT_SECURE")]
pub fn gains_rights(program: &Path) -> io::Result<bool> {
    if rustix::thread::no_new_privs()? {
        return Ok(false);
    }
    let file = std::fs::metadata(program)?;
    let has = |bits| file.mode() & bits == bits;
    let other_user = has(SET_USER_ID) && file.uid() != getuid().as_raw();
    let other_group = has(SET_GROUP_ID) && file.gid() != getgid().as_raw();
    // Root has the capabilities of a file in any case.
    Ok(other_user || other_group || (!getuid().is_root() && has_capabilities(program)?))
}

fn has_capabilities(program: &Path) -> io::Result<bool> {
    let mut none: [u8; 0] = [];
    match rustix::fs::getxattr(program, c"security.capability", &mut none[..]) {
        Ok(_) | Err(Errno::RANGE) => Ok(true),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;

    #[test]
    fn a_program_of_another_user_or_group_with_its_bit_gains_rights() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path();
        let gains = |mode: u32| {
            set_permissions(path, Permissions::from_mode(mode)).unwrap();
            gains_rights(path).unwrap()
        };
        // Its own user and group.
        assert!([0o755, 0o4755, 0o2755].into_iter().all(|mode| !gains(mode)));
        if !getuid().is_root() {
            return;
        }
        chown(path, Some(65_534), Some(65_534)).unwrap();
        assert!(!gains(0o755));
        assert!(gains(0o4755) && gains(0o2755));
        // Without the group's right to execute, the bit means mandatory locking.
        assert!(!gains(0o2745));
    }

    #[test]
    fn a_program_that_does_not_exist_is_an_error() {
        let error = gains_rights(Path::new("/nowhere/at/all")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
