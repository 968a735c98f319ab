//! Containers whose first process is the probe.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use hvsock_guests::Attached;
use rustix::process::{getegid, geteuid};
use serde_json::Value;

use super::guest::{GuestBroker, LIMIT, Programs};
use super::probe::Probe;
use crate::TempFolder;
use crate::os::linux::oci::{self, Configuration};
use crate::process::Running;

/// What Docker gives the root of a container, as far as an agent uses it.
const CAPABILITIES: [&str; 8] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];
/// Mount points of a rootfs.
const FOLDERS: [&str; 9] = [
    "bin", "dev", "etc", "lib", "lib64", "proc", "run", "tmp", "usr",
];
/// Folders of programs and libraries, which a container shares with whoever started it.
const SHARED: [&str; 4] = ["/bin", "/lib", "/lib64", "/usr"];
const PATH: &str = "PATH=/opt:/bin:/usr/bin:/sbin:/usr/sbin";

/// A container in a VM.
#[derive(Debug)]
pub struct ContainerInVm {
    vm: GuestBroker,
    name: String,
    probe: Probe,
}

impl ContainerInVm {
    /// Adds a container to the VM's broker and starts it. Its first process is the probe.
    ///
    /// # Panics
    /// If it does not start.
    #[track_caller]
    pub fn start(vm: &GuestBroker, name: &str) -> Self {
        let command = start_command(vm, name, &["/bin/hvsock-probe"]);
        Self {
            vm: vm.clone(),
            name: name.to_owned(),
            probe: vm.attached(name, &command),
        }
    }

    /// As [`start`](Self::start), but its first process is another program of the VM, whose standard input
    /// and output the caller uses.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn attach(vm: &GuestBroker, name: &str, args: &[&str]) -> Attached {
        let command = start_command(vm, name, args);
        vm.attach(&command)
    }

    /// Its name in the VM's broker.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The probe in it.
    pub fn probe(&self) -> &Probe {
        &self.probe
    }

    /// Runs the OCI runtime's command `VERB CONTAINER ARGUMENTS` in the VM.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn runtime(&self, verb: &str, arguments: &str) {
        let runtime = self.vm.programs().runtime_name();
        let name = &self.name;
        self.vm
            .shell(&format!("{runtime} {verb} {name} {arguments}"));
    }
}

/// Adds a container to the VM's broker and makes it ready to run. Returns the command that starts it.
#[track_caller]
fn start_command(vm: &GuestBroker, name: &str, args: &[&str]) -> String {
    let printed = vm.shell(&format!(
        "hvsock -q container add {name} >&2 && hvsock container show {name} --mount --format oci"
    ));
    let folder = PathBuf::from(format!("/run/containers/{name}"));
    let rootfs = folder.join("rootfs");
    let config = configuration(&rootfs, name, args, entry(&printed), None, &[]);
    let folders = FOLDERS.join(" ");
    let (folder, rootfs) = (folder.display(), rootfs.display());
    vm.shell(&format!(
        "mkdir -p /lib /lib64 /usr {rootfs} && cd {rootfs} && mkdir -p {folders}"
    ));
    let path = format!("{folder}/config.json");
    let pushed = vm.guest().push(&path, config.to_string().as_bytes());
    pushed.unwrap_or_else(|error| panic!("{error}"));
    let runtime = vm.programs().runtime_name();
    format!("exec {runtime} run --detach --bundle {folder} {name}")
}

/// A container of this machine.
#[derive(Debug)]
pub struct ContainerOnHost {
    probe: Probe,
}

impl ContainerOnHost {
    /// Starts it with what `hvsock container show --mount --format oci` printed.
    ///
    /// # Errors
    /// If the runtime cannot start it.
    pub fn start(programs: &Programs, name: &str, printed: &str) -> io::Result<Self> {
        let probe = ["/opt/hvsock-probe"];
        let (input, output, running) = Self::attach(programs, name, printed, &probe)?;
        let probe = Probe::new(name, input, output, LIMIT)?;
        Ok(Self {
            probe: probe.keeping(running),
        })
    }

    /// As [`start`](Self::start), but its first process is another program, whose standard input and output the
    /// caller uses.
    ///
    /// # Errors
    /// If the runtime cannot start it.
    pub fn attach(
        programs: &Programs,
        name: &str,
        printed: &str,
        args: &[&str],
    ) -> io::Result<(ChildStdin, ChildStdout, RunningContainer)> {
        let folder = TempFolder::new();
        let rootfs = folder.join("rootfs");
        for name in FOLDERS {
            fs::create_dir_all(rootfs.join(name))?;
        }
        let opt = rootfs.join("opt");
        fs::create_dir(&opt)?;
        let mut mounts = Vec::new();
        let agent = programs.agent.as_ref().map(|agent| ("hvsock-agent", agent));
        let load = programs.load.as_ref().map(|load| ("hvsock-load", load));
        let own = [
            ("hvsock", &programs.hvsock),
            ("hvsock-probe", &programs.probe),
        ];
        for (name, program) in own.into_iter().chain(agent).chain(load) {
            fs::write(opt.join(name), "")?;
            mounts.push(oci::bind(program, &format!("/opt/{name}"), "ro"));
        }
        let (uid, gid) = (geteuid(), getegid());
        let mapped = (!uid.is_root()).then(|| (uid.as_raw(), gid.as_raw()));
        let endpoint = entry(printed);
        let config = configuration(&rootfs, name, args, endpoint, mapped, &mounts);
        fs::write(folder.join("config.json"), config.to_string())?;
        let instance = Instance {
            runtime: programs.runtime.clone(),
            id: format!("hvsock-nested-{}-{name}", std::process::id()),
            folder,
        };
        let mut command = instance.command("run");
        command
            .arg("--bundle")
            .arg(instance.folder.path())
            .arg(&instance.id);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut running = Running::start(&mut command)?;
        let input = running.take_stdin().ok_or(io::ErrorKind::BrokenPipe)?;
        let output = running.take_stdout().ok_or(io::ErrorKind::BrokenPipe)?;
        let container = RunningContainer {
            _running: running,
            _instance: instance,
        };
        Ok((input, output, container))
    }

    /// The probe in it.
    pub fn probe(&self) -> &Probe {
        &self.probe
    }
}

/// A container of this machine, which is deleted when this is dropped.
pub struct RunningContainer {
    _running: Running,
    _instance: Instance,
}

/// A container known to the runtime. Dropping it deletes the container, running or not.
struct Instance {
    runtime: PathBuf,
    id: String,
    folder: TempFolder,
}

impl Instance {
    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.runtime);
        command
            .arg("--root")
            .arg(self.folder.join("state"))
            .arg(verb);
        command
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let mut delete = self.command("delete");
        let _ = delete.args(["--force", &self.id]).output();
    }
}

/// The entry for `mounts` that the command printed.
fn entry(printed: &str) -> Value {
    serde_json::from_str(printed).unwrap_or_else(|error| panic!("{error}: {printed:?}"))
}

/// Its programs are those of whoever started it, and `own`.
fn configuration(
    rootfs: &Path,
    name: &str,
    args: &[&str],
    endpoint: Value,
    mapped: Option<(u32, u32)>,
    own: &[Value],
) -> Value {
    let shared = SHARED.map(Path::new);
    // Those of a VM are there.
    let shared = shared
        .into_iter()
        .filter(|path| own.is_empty() || path.exists());
    let mut mounts: Vec<Value> = shared
        .map(|path| oci::bind(path, &path.to_string_lossy(), "ro"))
        .collect();
    mounts.extend(own.iter().cloned());
    mounts.push(endpoint);
    let configuration = Configuration {
        args,
        environment: &[PATH.to_owned(), "HOME=/tmp".to_owned()],
        rootfs,
        hostname: name,
        mounts: &mounts,
        capabilities: &CAPABILITIES,
        descriptors: 1024,
        mapped,
    };
    configuration.to_json()
}
