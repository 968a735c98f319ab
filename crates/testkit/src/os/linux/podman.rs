//! Containers of podman for tests. The rootfs is one static program, and nothing is pulled or installed.
//!
//! podman runs in a mount namespace of its own, in which `/sys/fs/cgroup` is cgroup v2, so that it works on
//! machines that have both versions, and in which it finds the CDI devices of a test. Containers are privileged
//! and share the host's network: tests may run in a container that allows no more. Root only.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use crate::TempFolder;
use crate::process;

/// Timeout of one command, which takes seconds on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Path of the program in the containers.
const PROGRAM: &str = "/program";

/// Prepares the mount namespace, and becomes the command after the first argument, the folder of CDI devices.
const PREPARE: &str = r#"
mount --make-rprivate / && mount -t cgroup2 none /sys/fs/cgroup || exit 99
mkdir -p /run/cdi && mount --bind "$1" /run/cdi || exit 99
shift
exec "$@"
"#;

/// An installation of podman with its own storage. Dropping it removes its containers.
#[derive(Debug)]
pub struct Podman {
    podman: PathBuf,
    runtime: PathBuf,
    folder: TempFolder,
    devices: PathBuf,
    hooks: Option<PathBuf>,
}

impl Podman {
    /// With a rootfs that has a copy of this static program, this OCI runtime, and the CDI devices of a
    /// folder.
    ///
    /// # Errors
    /// Any I/O error.
    pub fn new(podman: &Path, runtime: &Path, program: &Path, devices: &Path) -> io::Result<Self> {
        let folder = TempFolder::new();
        let rootfs = folder.join("rootfs");
        for name in ["proc", "dev", "run", "tmp", "sys", "etc"] {
            fs::create_dir_all(rootfs.join(name))?;
        }
        let inside = rootfs.join(&PROGRAM[1..]);
        fs::copy(program, &inside)?;
        fs::set_permissions(&inside, fs::Permissions::from_mode(0o755))?;
        Ok(Self {
            podman: podman.to_owned(),
            runtime: runtime.to_owned(),
            folder,
            devices: devices.to_owned(),
            hooks: None,
        })
    }

    /// Uses the OCI hooks of a folder.
    pub fn hooks(&mut self, folder: &Path) -> &mut Self {
        self.hooks = Some(folder.to_owned());
        self
    }

    /// Runs a command of podman.
    ///
    /// # Errors
    /// If it cannot be started, or `TimedOut`.
    pub fn run<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> io::Result<Output> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", PREPARE, "sh"]);
        command.arg(&self.devices).arg(&self.podman);
        for (option, folder) in [("--root", "storage"), ("--runroot", "run")] {
            command.arg(option).arg(self.folder.join(folder));
        }
        command.args(["--cgroup-manager", "cgroupfs", "--runtime"]);
        command.arg(&self.runtime);
        if let Some(hooks) = &self.hooks {
            command.arg("--hooks-dir").arg(hooks);
        }
        command.args(arguments).current_dir("/");
        process::output(&mut command, b"", TIMEOUT)
    }

    /// Starts a container with these options, in which the program runs with these arguments.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn start(&self, name: &str, options: &[&str], arguments: &[&str]) -> io::Result<Output> {
        let rootfs = self.folder.join("rootfs").display().to_string();
        let first = ["run", "--detach", "--name", name, "--privileged"];
        let network = ["--network", "host", "--pids-limit", "0"];
        let limits = [
            "--ulimit",
            "nofile=20000:20000",
            "--ulimit",
            "nproc=1000:1000",
        ];
        let rest = ["--rootfs", &rootfs, PROGRAM];
        self.run([&first[..], &network, &limits, options, &rest, arguments].concat())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.run(["rm", "--all", "--force", "--time", "0"]);
    }
}
