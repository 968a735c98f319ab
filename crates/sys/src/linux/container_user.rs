//! The user of a process at the other end of a Unix socket, as the container that it is in numbers it.
//!
//! `SO_PEERCRED` has the number in this process's user namespace. A container may have one of its own,
//! and any process may create another one inside it and be root there. So the process's own namespace
//! says nothing. What counts is the user namespace that owns the *container's* PID namespace: the
//! outermost one between this process's and the other's. A process cannot leave the PID namespace that
//! its container's runtime created it in.
//!
//! A container may share this process's PID namespace. Then any user in it may create both namespaces,
//! which look like a container's. So a user namespace counts only if root or this process's user
//! created it: nobody else is trusted to decide who is root.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

use rustix::event::{PollFd, PollFlags, Timespec};

use super::peer::{self, Credentials};

/// The user of a process inside its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerUser {
    /// The container has no user namespace of its own: the number is that of [`Credentials::uid`].
    Shared,
    /// The number in the container's user namespace.
    Mapped(u32),
    /// It has no number there, or that cannot be found out: the process is gone, in a user namespace
    /// that neither root nor this process's user created, or may not be examined.
    Unknown,
}

/// More than the 32 levels that the kernel allows (`MAX_PID_NS_LEVEL`).
const MAX_LEVELS: usize = 40;
/// Maximum bytes read of `uid_map`: 340 lines of 33 characters.
const MAX_MAP: u64 = 16 << 10;

/// The user of the process at the other end of `socket` inside its container. `peer` has its
/// credentials. To examine processes of other users takes `CAP_SYS_PTRACE` in their user namespace,
/// which root has, and also the user who created that namespace.
pub fn of_peer(socket: impl AsFd, peer: &Credentials) -> ContainerUser {
    examine(socket, peer).unwrap_or(ContainerUser::Unknown)
}

fn examine(socket: impl AsFd, peer: &Credentials) -> io::Result<ContainerUser> {
    let Some(pid) = peer.pid else {
        return Ok(ContainerUser::Unknown);
    };
    let process = peer::process(socket)?;
    let found = container_user(pid, peer.uid)?;
    // While the process exists, its number is not used again: so it was the one examined.
    Ok(match has_ended(&process)? {
        true => ContainerUser::Unknown,
        false => found,
    })
}

fn container_user(pid: u32, uid: u32) -> io::Result<ContainerUser> {
    // Before Linux 6.5 the number may be that of another process by now. So it must at least have the
    // same user; or root, to whom /proc attributes a process that changed its user.
    if ![uid, 0].contains(&fs::metadata(format!("/proc/{pid}"))?.uid()) {
        return Ok(ContainerUser::Unknown);
    }
    let open = |pid: &str, kind: &str| File::open(format!("/proc/{pid}/ns/{kind}"));
    let number = pid.to_string();
    let (own_user, own_pid) = (open("self", "user")?, open("self", "pid")?);
    let (user, pid_namespace) = (open(&number, "user")?, open(&number, "pid")?);
    let owner = match outermost_below(pid_namespace.into(), &own_pid)? {
        Some(container) => namespace_of(&container, libc::NS_GET_USERNS)?,
        None => match is_child(&user, &own_user)? && is_creator_trusted(&user)? {
            true => user.try_clone()?.into(),
            false => return Ok(ContainerUser::Shared),
        },
    };
    if is_same(&owner, &own_user)? {
        return Ok(ContainerUser::Shared);
    }
    // A process in another namespace inside the container has a map that says nothing about the
    // container's.
    if !is_same(&owner, &user)? || !is_creator_trusted(&owner)? {
        return Ok(ContainerUser::Unknown);
    }
    let mut map = String::new();
    let file = File::open(format!("/proc/{pid}/uid_map"))?;
    file.take(MAX_MAP).read_to_string(&mut map)?;
    Ok(inside(&map, uid).map_or(ContainerUser::Unknown, ContainerUser::Mapped))
}

/// The number in a user namespace with this `uid_map` of a user with the number `uid` outside.
fn inside(map: &str, uid: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
        let mut next = || numbers.next()?.ok();
        let (inside, outside, length) = (next()?, next()?, next()?);
        let offset = uid.checked_sub(outside)?;
        (offset < length).then(|| inside.checked_add(offset))?
    })
}

/// Whether the process of a pidfd has ended.
fn has_ended(process: &OwnedFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    let ready = super::retry(|| rustix::event::poll(&mut fds, Some(&Timespec::default())))?;
    Ok(ready > 0)
}

/// The outermost PID namespace that contains `inner` and is inside `own`. `None` if `inner` is `own`.
fn outermost_below(inner: OwnedFd, own: &File) -> io::Result<Option<OwnedFd>> {
    if is_same(&inner, own)? {
        return Ok(None);
    }
    let mut outermost = inner;
    for _ in 0..MAX_LEVELS {
        let parent = namespace_of(&outermost, libc::NS_GET_PARENT)?;
        if is_same(&parent, own)? {
            return Ok(Some(outermost));
        }
        outermost = parent;
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// Whether a user namespace is a child of this process's own.
fn is_child(user: &File, own: &File) -> io::Result<bool> {
    Ok(!is_same(user, own)? && is_same(&namespace_of(user, libc::NS_GET_PARENT)?, own)?)
}

/// Whether root or this process's user created a user namespace.
fn is_creator_trusted(user: &impl AsRawFd) -> io::Result<bool> {
    let mut uid: libc::uid_t = 0;
    // SAFETY: the kernel writes one uid_t (ioctl_ns(2)).
    let result = unsafe { libc::ioctl(user.as_raw_fd(), libc::NS_GET_OWNER_UID, &raw mut uid) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(uid == 0 || uid == rustix::process::geteuid().as_raw())
}

/// A namespace related to another one: `NS_GET_USERNS` or `NS_GET_PARENT` of ioctl_ns(2).
fn namespace_of(namespace: &impl AsRawFd, request: libc::Ioctl) -> io::Result<OwnedFd> {
    // SAFETY: these requests have no argument and return a new descriptor.
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), request) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether two descriptors are of one namespace (namespaces(7)).
fn is_same(one: &impl AsFd, other: &impl AsFd) -> io::Result<bool> {
    let (one, other) = (rustix::fs::fstat(one)?, rustix::fs::fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_map_translates_what_is_inside_its_ranges_and_nothing_else() {
        let map = "         0       1000          1\n         1     100000      65536\n";
        for (outside, want) in [
            (1000, Some(0)),
            (100_000, Some(1)),
            (100_032, Some(33)),
            (165_535, Some(65_536)),
            (165_536, None),
            (0, None),
            (1001, None),
        ] {
            assert_eq!(inside(map, outside), want, "{outside}");
        }
        for odd in [
            "",
            "0",
            "0 0",
            "a b c",
            "0 0 0",
            "4294967295 5 3\n",
            "-1 0 1",
        ] {
            assert_eq!(inside(odd, 6), None, "{odd:?}");
        }
        assert_eq!(inside("0 0 4294967295", u32::MAX), None);
    }

    /// Not the one that PATH finds, which may be in a home that other users cannot enter.
    const PYTHON: &str = "/usr/bin/python3";

    /// Runs a command as root of a user namespace whose ids 0 to 999 are 100000 to 100999 outside.
    const MAPPED: &str = "\
import ctypes, os, sys
process, (ready, done) = os.getpid(), os.pipe()
helper = os.fork()
if helper == 0:
    os.read(ready, 1)
    for kind in 'uid', 'gid':
        with open(f'/proc/{process}/{kind}_map', 'w') as map: map.write('0 100000 1000')
    os._exit(0)
if ctypes.CDLL(None).unshare(0x10000000): sys.exit('unshare failed')
os.write(done, b'1')
os.waitpid(helper, 0)
os.setresgid(0, 0, 0)
os.setresuid(0, 0, 0)
os.execvp(sys.argv[1], sys.argv[1:])";

    /// Whether this user may make other users and namespaces.
    fn can_make_containers() -> bool {
        rustix::process::geteuid().is_root()
            && run(&["unshare", "-Urpf", PYTHON, "-c", ""]).is_ok_and(|status| status)
    }

    fn run(command: &[&str]) -> io::Result<bool> {
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        setpriv.args(command).stderr(Stdio::null());
        Ok(setpriv.status()?.success())
    }

    /// Runs a shell that connects to `path` and stays, by the prefix of a command. Returns what was
    /// found out about it.
    fn ask(prefix: &[&str], path: &Path) -> (Credentials, ContainerUser) {
        let listener = crate::seqpacket::listen(path, 0o666, 4).unwrap();
        let python = "import socket,sys,time\n\
                      s=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET)\n\
                      s.connect(sys.argv[1])\ns.recv(1)";
        let mut command = Command::new(prefix[0]);
        command.args(&prefix[1..]).args([PYTHON, "-c", python]);
        let child: Child = command.arg(path).spawn().unwrap();
        struct Ended(Child);
        impl Drop for Ended {
            fn drop(&mut self) {
                let _ = self.0.kill();
                let _ = self.0.wait();
            }
        }
        let _child = Ended(child);
        let mut fds = [PollFd::new(&listener, PollFlags::IN)];
        let wait = Timespec::try_from(Duration::from_secs(20)).unwrap();
        rustix::event::poll(&mut fds, Some(&wait)).unwrap();
        let socket = crate::seqpacket::accept(&listener)
            .unwrap()
            .expect("it connects");
        let peer = peer::credentials(&socket).unwrap();
        let found = of_peer(&socket, &peer);
        let _ = fs::remove_file(path);
        (peer, found)
    }

    #[test]
    fn the_user_is_the_one_in_the_containers_namespace_and_not_in_one_that_a_process_made_for_itself()
     {
        if !can_make_containers() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(dir.path(), mode).unwrap();
        let path = dir.path().join("s");
        let user = [
            "setpriv",
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
        ];
        let nested = |outer: &[&'static str], inner: &[&'static str]| {
            let command: Vec<&str> = outer.iter().chain(inner).copied().collect();
            ask(&command, &path)
        };
        // No namespace at all, and one that the user made to be root in.
        let (peer, found) = nested(&user, &[]);
        assert_eq!((peer.uid, found), (65534, ContainerUser::Shared));
        let (peer, found) = nested(&user, &["unshare", "-Ur"]);
        assert_eq!((peer.uid, found), (65534, ContainerUser::Shared));
        // A user in a container that shares the PID namespace can make the same namespaces as a
        // container of that user has.
        for own in [&["unshare", "-Urpf"][..], &["unshare", "-Urpmf"]] {
            let (peer, found) = nested(&user, own);
            assert_eq!(
                (peer.uid, found),
                (65534, ContainerUser::Unknown),
                "{own:?}"
            );
        }
        // A container of root with a user namespace, with and without a PID namespace, and in it a user
        // who makes itself root.
        let mapped = [PYTHON, "-c", MAPPED];
        for more in [&["unshare", "-pf"][..], &[]] {
            let container: Vec<&str> = mapped.iter().chain(more).copied().collect();
            for (ids, outside, inside) in [(["0"; 2], 100_000, 0), (["33"; 2], 100_033, 33)] {
                let inner = [
                    "setpriv",
                    "--reuid",
                    ids[0],
                    "--regid",
                    ids[1],
                    "--clear-groups",
                ];
                let (peer, found) = nested(&container, &inner);
                assert_eq!((peer.uid, found), (outside, ContainerUser::Mapped(inside)));
            }
            let inner = [
                "setpriv",
                "--reuid",
                "33",
                "--clear-groups",
                "unshare",
                "-Urpf",
            ];
            let (peer, found) = nested(&container, &inner);
            assert_eq!(peer.uid, 100_033);
            assert_eq!(found, ContainerUser::Unknown, "{more:?}");
        }
        // A container of root without a user namespace, in which another user makes itself root.
        let container = ["unshare", "-pmf"];
        for own in [
            &["unshare", "-Ur"][..],
            &["unshare", "-Urpf"],
            &["unshare", "-Urpmf"],
        ] {
            let inner: Vec<&str> = user.iter().chain(own).copied().collect();
            let (peer, found) = nested(&container, &inner);
            assert_eq!((peer.uid, found), (65534, ContainerUser::Shared), "{own:?}");
        }
        // In a container with a user namespace, a further one has no number.
        let inner = ["unshare", "-Urpf", "unshare", "-Ur"];
        let (_, found) = nested(&user, &inner);
        assert_eq!(found, ContainerUser::Unknown);
    }
}
