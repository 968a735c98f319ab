//! User-mode Linux: a Linux kernel as a program, which needs no emulated processor.
//!
//! Its serial lines are Unix sockets that it inherits, so commands take the same way as over QEMU's
//! virtio-serial ports. It runs as a group of processes: the kernel, its helpers, and one for each process
//! of the guest. [`command`] starts a shell beside them that kills the group as soon as the pipe on its
//! standard input closes, which is at the latest when this process ends.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::driver::{Boot, Connected, Control, Driver, Prepared};
use crate::config::{Config, PORTS};
use crate::error::Missing;
use crate::kernel::Kernel;
use crate::tools;

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

/// The driver of User-mode Linux.
pub struct Uml;

/// Debian's package has the kernel and its modules.
const PACKAGE: &str = "user-mode-linux";

impl Driver for Uml {
    fn name(&self) -> &'static str {
        "User-mode Linux"
    }

    fn install(&self) -> &'static str {
        "apt-get install user-mode-linux busybox-static"
    }

    fn can_pause(&self) -> bool {
        false
    }

    fn find(&self, _fetch: bool) -> Result<(PathBuf, Kernel), Missing> {
        let found = tools::program("HVSOCK_GUEST_UML", "linux.uml")
            .and_then(|linux| Ok((linux.clone(), Kernel::user_mode(linux)?)));
        found.map_err(|why| Missing::package(why, PACKAGE, self.install()))
    }

    fn modules(&self) -> &'static [&'static str] {
        // Its devices are built in.
        &[]
    }

    fn port_files(&self) -> String {
        let files: Vec<_> = (0..PORTS)
            .map(|index| format!("/dev/ttyS{index}"))
            .collect();
        files.join(" ")
    }

    fn has_network(&self) -> bool {
        false
    }

    fn has_machine_files(&self) -> bool {
        true
    }

    fn prepare(&self, boot: &Boot<'_>) -> io::Result<Prepared> {
        let console = fs::File::create(boot.folder.join("console"))?;
        let (ours, theirs) = ports()?;
        let mut command = command(boot, &theirs);
        command.stdout(console);
        Ok(Prepared {
            command,
            inherited: theirs,
            connect: Box::new(move |_| {
                Ok(Connected {
                    ports: ours,
                    forwarded: Vec::new(),
                    control: Box::new(Running),
                })
            }),
        })
    }
}

/// A running User-mode Linux. It has no monitor.
#[derive(Debug)]
struct Running;

impl Control for Running {
    fn name(&self) -> &'static str {
        Uml.name()
    }
}

/// Our ends and the guest's ends of its serial lines.
fn ports() -> io::Result<(Vec<UnixStream>, Vec<OwnedFd>)> {
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for _ in 0..PORTS {
        let (near, far) = UnixStream::pair()?;
        ours.push(near);
        theirs.push(rustix::io::fcntl_dupfd_cloexec(far, FIRST)?);
    }
    Ok((ours, theirs))
}

/// The command that starts the guest with these ends of its serial lines.
fn command(boot: &Boot<'_>, ports: &[OwnedFd]) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", START, "sh"]).arg(boot.program);
    command.args(arguments(boot.config, boot.folder, ports));
    command.stdin(Stdio::piped()).process_group(0);
    if has_space(boot.config) {
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
