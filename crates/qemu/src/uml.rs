//! User-mode Linux: a Linux kernel as a program, which needs no emulated processor.
//!
//! Its serial lines are Unix sockets that it inherits, so commands take the same way as over QEMU's
//! virtio-serial ports. It runs as a group of processes: the kernel, its helpers, and one for each process
//! of the guest. [`command`] starts a shell beside them that kills the group as soon as the pipe on its
//! standard input closes, which is at the latest when this process ends.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::io::FdFlags;

use crate::config::{Config, PORTS};
use crate::kit::Kit;

/// Device id of a vsock device (virtio 1.2 §5).
const VSOCK_DEVICE: u32 = 19;

/// The guest's memory is a file in the folder that one of these names. On a disk, the kernel would write it
/// back all the time.
const TEMPORARY: [&str; 3] = ["TMPDIR", "TMP", "TEMP"];
const SHARED_MEMORY: &str = "/dev/shm";

/// `$@` becomes the kernel, under the process id that the caller knows.
const START: &str = "exec 3<&0; ( ( read -r _ <&3; kill -KILL 0 ) & ); exec \"$@\" </dev/null 3<&-";

/// The lowest descriptor of a serial line: the shell uses lower ones.
const FIRST: i32 = 16;

/// Our ends and the guest's ends of its serial lines.
pub fn ports() -> io::Result<(Vec<UnixStream>, Vec<OwnedFd>)> {
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for _ in 0..PORTS {
        let (near, far) = UnixStream::pair()?;
        ours.push(near);
        theirs.push(rustix::io::fcntl_dupfd_cloexec(far, FIRST)?);
    }
    Ok((ours, theirs))
}

/// The files of the guest's serial lines, in the guest.
pub fn port_files() -> impl Iterator<Item = String> {
    (0..PORTS).map(|index| format!("/dev/ttyS{index}"))
}

/// The command that starts the guest with these ends of its serial lines.
pub fn command(kit: &Kit, config: &Config, folder: &Path, ports: &[OwnedFd]) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", START, "sh"]).arg(&kit.kernel.image);
    command.args(arguments(config, folder, ports));
    command.stdin(Stdio::piped()).process_group(0);
    if has_space(config) {
        for variable in TEMPORARY {
            command.env(variable, SHARED_MEMORY);
        }
    }
    command
}

/// Whether the guest's memory fits into the folder of shared memory, which a container may limit.
fn has_space(config: &Config) -> bool {
    let space = rustix::fs::statvfs(SHARED_MEMORY);
    space.is_ok_and(|space| {
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        free >= u64::from(config.memory_mib) << 20
    })
}

fn arguments(config: &Config, folder: &Path, ports: &[OwnedFd]) -> Vec<String> {
    let mut arguments = vec![
        // Its own folder there, for its management socket, instead of one in the user's home.
        "umid=uml".to_owned(),
        format!("uml_dir={}", folder.display()),
        format!("mem={}M", config.memory_mib),
        format!("initrd={}", folder.join("initramfs").display()),
        "root=/dev/ram0".to_owned(),
        "rdinit=/init".to_owned(),
        // Kernel messages go to standard output. No terminal windows are opened.
        "con=null".to_owned(),
        "con0=null,fd:1".to_owned(),
        "loglevel=4".to_owned(),
    ];
    for (index, port) in ports.iter().enumerate() {
        let fd = port.as_raw_fd();
        arguments.push(format!("ssl{index}=fd:{fd},fd:{fd}"));
    }
    if let Some(vsock) = &config.vsock {
        let socket = vsock.socket.display();
        arguments.push(format!("virtio_uml.device={socket}:{VSOCK_DEVICE}"));
    }
    arguments
}

/// Spawns `command`, which inherits `descriptors`.
///
/// Processes that another thread starts at this moment, other than by this function, inherit them too.
pub fn spawn_with(command: &mut Command, descriptors: &[OwnedFd]) -> io::Result<Child> {
    static SPAWNING: Mutex<()> = Mutex::new(());
    let _guard = SPAWNING.lock().unwrap_or_else(PoisonError::into_inner);
    let set = |flags| -> io::Result<()> {
        for fd in descriptors {
            rustix::io::fcntl_setfd(fd, flags)?;
        }
        Ok(())
    };
    let spawned = set(FdFlags::empty()).and_then(|()| command.spawn());
    set(FdFlags::CLOEXEC)?;
    spawned
}
