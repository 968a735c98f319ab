//! Mounting a folder in a container that is being created.
//!
//! A `createRuntime` hook runs when the container's mount namespace has its mounts and its root is not yet the
//! root of that namespace. So a hook can add what a hook's result cannot: it enters that namespace and
//! mounts below the root. The container's image is not trusted: symbolic links in it are followed inside the
//! root only.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::thread::ThreadNameSpaceType;

use super::pidfd::Process;

// linux/mount.h
const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;
const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_NOSUID: u64 = 0x2;
const MOUNT_ATTR_NODEV: u64 = 0x4;
const MOUNT_ATTR_NOEXEC: u64 = 0x8;

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Mounts `folder` of this mount namespace at `inside`, below `root` in the mount namespace of `process`,
/// read-only and without programs and devices. `root` is a path there. Creates the mount point.
///
/// # Errors
///
/// If that mount namespace is the caller's own; `EPERM` without `CAP_SYS_ADMIN` in its user namespace; `ENOSYS` before Linux 5.12;
/// those of resolving the paths, such as `EROFS` if the mount point is missing and cannot be made.
pub fn mount(process: &Process, folder: &Path, root: &Path, inside: &Path) -> io::Result<()> {
    let tree = clone_tree(folder)?;
    set_attributes(tree.as_fd())?;
    // The namespace is that of one thread, which then ends.
    std::thread::scope(|scope| {
        let attached = scope.spawn(|| {
            // The thread's root and working directory become its own; else it could not enter.
            // SAFETY: it has no effect on memory or descriptors.
            if unsafe { libc::unshare(libc::CLONE_FS) } != 0 {
                return Err(io::Error::last_os_error());
            }
            enter_other(process)?;
            attach(tree.as_fd(), root, inside)
        });
        let panicked = |_| Err(io::Error::other("a thread has panicked"));
        attached.join().unwrap_or_else(panicked)
    })
}

/// Enters the mount namespace of a process, unless it is the present one: a mount there would hide what the
/// host has at that path.
fn enter_other(process: &Process) -> io::Result<()> {
    let own = File::open("/proc/thread-self/ns")?;
    let namespace = || rustix::fs::statat(&own, "mnt", AtFlags::empty());
    let before = namespace()?;
    rustix::thread::move_into_thread_name_spaces(process.as_fd(), ThreadNameSpaceType::MOUNT)?;
    let after = namespace()?;
    if (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino) {
        return Err(io::Error::other("it has no mount namespace of its own"));
    }
    Ok(())
}

/// A mount of a folder that is nowhere yet.
fn clone_tree(folder: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(folder.as_os_str().as_bytes())?;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint;
    // SAFETY: the path is a string that is valid for the call, which returns a descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_attributes(tree: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = MountAttr {
        attr_set: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
        ..MountAttr::default()
    };
    // SAFETY: the path and the structure, whose size is given, are valid for the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    checked(done)
}

/// Attaches a mount below `root`.
fn attach(tree: BorrowedFd<'_>, root: &Path, inside: &Path) -> io::Result<()> {
    let root = File::open(root)?;
    let inside = inside.strip_prefix("/").unwrap_or(inside);
    let mut folder = OwnedFd::from(root.try_clone()?);
    let mut below = std::path::PathBuf::new();
    for part in inside {
        below.push(part);
        let open = || {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            rustix::fs::openat2(&root, &below, flags, Mode::empty(), resolve)
        };
        folder = match open() {
            Err(rustix::io::Errno::NOENT) => {
                rustix::fs::mkdirat(&folder, part, Mode::from_raw_mode(0o755))?;
                open()?
            }
            opened => opened?,
        };
    }
    let empty: &CStr = c"";
    // SAFETY: both paths are valid for the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            empty.as_ptr(),
            folder.as_raw_fd(),
            empty.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        )
    };
    checked(done)
}

fn checked(result: libc::c_long) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::process::{Command, Stdio};

    use rustix::event::{PollFd, PollFlags};

    use super::*;

    #[test]
    fn nothing_is_mounted_for_a_process_without_a_mount_namespace_of_its_own() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (source, root) = (folder.path().join("source"), folder.path().join("root"));
        fs::create_dir(&source).unwrap();
        fs::create_dir(&root).unwrap();
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        for pid in [child.id(), std::process::id()] {
            let process = Process::open(pid).unwrap();
            mount(&process, &source, &root, Path::new("/run/hvsock")).unwrap_err();
            assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
        }
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn a_folder_is_mounted_below_the_root_of_another_namespace_and_links_do_not_leave_it() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (source, root) = (folder.path().join("source"), folder.path().join("root"));
        fs::create_dir(&source).unwrap();
        fs::write(source.join("endpoint"), "it").unwrap();
        fs::create_dir(&root).unwrap();
        let outside = folder.path().join("outside");
        fs::create_dir_all(root.join("real")).unwrap();
        fs::create_dir(&outside).unwrap();
        // In the root, it leads to `/real`, and so does an absolute one.
        symlink("../../../real", root.join("run")).unwrap();
        let script = "mount --make-rprivate / && echo ready && { read line || true; } && \
                      cat \"$1/real/hvsock/endpoint\" && ! touch \"$1/real/hvsock/x\" 2>/dev/null";
        let mut child = Command::new("unshare")
            .args(["--mount", "sh", "-c", script, "sh"])
            .arg(&root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = child.stdout.take().unwrap();
        let mut ready = [0; 6];
        io::Read::read_exact(&mut output, &mut ready).unwrap();
        let process = Process::open(child.id()).unwrap();
        let made = mount(&process, &source, &root, Path::new("/run/hvsock"));
        if made
            .as_ref()
            .is_err_and(|error| error.raw_os_error() == Some(libc::EPERM))
        {
            let _ = child.wait();
            return;
        }
        made.unwrap();
        drop(child.stdin.take());
        let mut fds = [PollFd::new(&process, PollFlags::IN)];
        rustix::event::poll(&mut fds, None).unwrap();
        assert_eq!(io::read_to_string(output).unwrap(), "it");
        assert!(child.wait().unwrap().success());
        // Not in this namespace.
        assert!(!root.join("real/hvsock/endpoint").exists());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert!(mount(&process, &source, &root, Path::new("/run/hvsock")).is_err());
    }
}
