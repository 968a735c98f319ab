//! OCI containers for tests. The rootfs is one static program, the runtime is runc.
//!
//! ```no_run
//! # use std::path::Path;
//! # use hvsock_testkit::{container::Bundle, require};
//! let Some(runc) = require::runc() else { return };
//! let mut bundle = Bundle::new(&runc, Path::new("a-static-program")).unwrap();
//! bundle.bind(Path::new("/run/user/1000/hvsock/containers/web"), "/run/hvsock");
//! let output = bundle.run(&["connect", "parent", "echo"], b"hi").unwrap();
//! ```
//!
//! A container has its own PID, mount, network, IPC and UTS namespaces, no network and no capability. Its
//! user is root. Started by a user other than root, it also has a user namespace.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{getegid, geteuid};
use serde_json::{Map, Value, json};

use super::oci::{self, Configuration};
use crate::TempFolder;
use crate::process::{self, Running};

/// Timeout of [`Bundle::run`] and [`Container::exec`].
pub const RUN_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout of runc's commands that control a container.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(10);
/// Path of the program in the container.
const PROGRAM: &str = "/program";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A rootfs with one program, and the configuration of its containers.
#[derive(Debug)]
pub struct Bundle {
    runc: PathBuf,
    folder: Arc<TempFolder>,
    mounts: Vec<Value>,
    environment: Vec<String>,
    descriptors: u64,
    hooks: Map<String, Value>,
    annotations: Map<String, Value>,
    /// The user of the host that is root in a user namespace of the container.
    root: Option<u32>,
    /// What arguments follow: the program, or nothing if they begin with one of the host's.
    program: &'static [&'static str],
    /// `linux.seccomp`.
    seccomp: Value,
}

/// Folders of programs and libraries of the host.
const HOST_FOLDERS: [&str; 5] = ["/usr", "/bin", "/lib", "/lib64", "/etc/alternatives"];

impl Bundle {
    /// Creates a rootfs with the programs of this machine. The arguments of what is run in a container begin with
    /// a program.
    ///
    /// # Errors
    /// Any I/O error.
    pub fn of_host(runc: &Path) -> io::Result<Self> {
        let mut bundle = Self::empty(runc)?;
        for folder in HOST_FOLDERS.map(Path::new) {
            let inside = bundle.in_rootfs(&folder.to_string_lossy())?;
            match fs::read_link(folder) {
                Ok(target) => std::os::unix::fs::symlink(target, inside)?,
                Err(_) if !folder.exists() => {}
                Err(_) => {
                    fs::create_dir_all(inside)?;
                    bundle.mount(oci::bind(folder, &folder.to_string_lossy(), "ro"));
                }
            }
        }
        bundle.program = &[];
        bundle.environment = vec!["PATH=/usr/bin:/bin".to_owned()];
        Ok(bundle)
    }

    /// Creates a rootfs with a copy of the program.
    ///
    /// # Errors
    /// `InvalidInput` if the program is not a static ELF file: the container has no dynamic linker, and
    /// the kernel would only report "not found". Any I/O error.
    pub fn new(runc: &Path, program: &Path) -> io::Result<Self> {
        let bytes = fs::read(program)?;
        if needs_interpreter(&bytes).unwrap_or(true) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} is not a static ELF program", program.display()),
            ));
        }
        let bundle = Self::empty(runc)?;
        let inside = bundle.in_rootfs(PROGRAM)?;
        fs::write(&inside, bytes)?;
        fs::set_permissions(&inside, fs::Permissions::from_mode(0o755))?;
        Ok(bundle)
    }

    /// Creates a rootfs without programs.
    fn empty(runc: &Path) -> io::Result<Self> {
        let folder = TempFolder::new();
        let rootfs = folder.join("rootfs");
        // Mount points must exist: the rootfs is read-only in the container.
        for name in ["proc", "dev", "run", "tmp"] {
            fs::create_dir_all(rootfs.join(name))?;
        }
        Ok(Self {
            runc: runc.to_owned(),
            folder: Arc::new(folder),
            mounts: Vec::new(),
            environment: vec!["PATH=/".to_owned()],
            descriptors: 1024,
            hooks: Map::new(),
            annotations: Map::new(),
            root: None,
            program: &[PROGRAM],
            seccomp: Value::Null,
        })
    }

    /// Sets `linux.seccomp` of the OCI configuration.
    pub fn seccomp(&mut self, profile: Value) -> &mut Self {
        self.seccomp = profile;
        self
    }

    /// Copies a file of the host into the rootfs, with its mode. Programs must be static.
    ///
    /// # Errors
    /// Any I/O error of the copy.
    pub fn copy_in(&mut self, host: &Path, inside: &str) -> io::Result<&mut Self> {
        fs::copy(host, self.in_rootfs(inside)?)?;
        Ok(self)
    }

    /// Creates a symbolic link in the rootfs.
    ///
    /// # Errors
    /// If the link cannot be created, for example because the path exists.
    pub fn link_in(&mut self, target: &str, inside: &str) -> io::Result<&mut Self> {
        std::os::unix::fs::symlink(target, self.in_rootfs(inside)?)?;
        Ok(self)
    }

    /// The path on the host of a path in the container. Creates its parent folder.
    fn in_rootfs(&self, inside: &str) -> io::Result<PathBuf> {
        let path = self
            .folder
            .join("rootfs")
            .join(inside.trim_start_matches('/'));
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        Ok(path)
    }

    /// Adds a bind mount of a folder of the host.
    pub fn bind(&mut self, folder: &Path, inside: &str) -> &mut Self {
        self.mount(oci::bind(folder, inside, "rw"))
    }

    /// Adds an entry to `mounts` of the OCI configuration, for example one that a program printed.
    pub fn mount(&mut self, entry: Value) -> &mut Self {
        self.mounts.push(entry);
        self
    }

    /// Adds a hook of a kind that the OCI runtime specification names, such as `createRuntime`.
    pub fn hook(&mut self, kind: &str, program: &Path, arguments: &[&str]) -> &mut Self {
        let args: Vec<&str> = ["hook"].iter().chain(arguments).copied().collect();
        let hook = json!({"path": program, "args": args});
        let hooks = self.hooks.entry(kind).or_insert_with(|| json!([]));
        if let Some(hooks) = hooks.as_array_mut() {
            hooks.push(hook);
        }
        self
    }

    /// Sets an annotation.
    pub fn annotation(&mut self, name: &str, value: &str) -> &mut Self {
        self.annotations.insert(name.to_owned(), value.into());
        self
    }

    /// Gives the container a user namespace, whose root is this user of the host. Needs root.
    ///
    /// # Errors
    /// If the rootfs cannot be made accessible to that user.
    pub fn map_root(&mut self, user: u32) -> io::Result<&mut Self> {
        fs::set_permissions(self.folder.path(), fs::Permissions::from_mode(0o755))?;
        self.root = Some(user);
        Ok(self)
    }

    /// Sets an environment variable of the program.
    pub fn env(&mut self, name: &str, value: &str) -> &mut Self {
        self.environment.push(format!("{name}={value}"));
        self
    }

    /// Sets the program's limit on descriptors (`RLIMIT_NOFILE`). The default is 1024.
    pub fn limit_descriptors(&mut self, most: u64) -> &mut Self {
        self.descriptors = most;
        self
    }

    /// Runs the program in a new container, with these arguments and this stdin, until it exits.
    ///
    /// # Errors
    /// If runc cannot be started, or `TimedOut` after [`RUN_TIMEOUT`].
    pub fn run(&self, arguments: &[&str], input: &[u8]) -> io::Result<Output> {
        let instance = self.instance(arguments)?;
        process::output(&mut instance.command(), input, RUN_TIMEOUT)
    }

    /// Starts the program in a new container, with pipes on its stdin, stdout and stderr.
    ///
    /// # Errors
    /// If runc cannot be started.
    pub fn start(&self, arguments: &[&str]) -> io::Result<Container> {
        let instance = self.instance(arguments)?;
        let mut command = instance.command();
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(Container {
            running: Running::start(&mut command)?,
            instance,
        })
    }

    fn instance(&self, arguments: &[&str]) -> io::Result<Instance> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("hvsock-test-{}-{number}", std::process::id());
        let bundle = self.folder.join(&id);
        fs::create_dir(&bundle)?;
        fs::write(
            bundle.join("config.json"),
            self.config(arguments).to_string(),
        )?;
        Ok(Instance {
            runc: self.runc.clone(),
            state: self.folder.join("state"),
            bundle,
            id,
            program: self.program,
            _folder: Arc::clone(&self.folder),
        })
    }

    fn config(&self, arguments: &[&str]) -> Value {
        let (uid, gid) = (geteuid(), getegid());
        let configuration = Configuration {
            args: &[self.program, arguments].concat(),
            environment: &self.environment,
            rootfs: &self.folder.join("rootfs"),
            hostname: "hvsock-test",
            mounts: &self.mounts,
            capabilities: &[],
            descriptors: self.descriptors,
            mapped: match self.root {
                Some(user) => Some((user, user)),
                None => (!uid.is_root()).then(|| (uid.as_raw(), gid.as_raw())),
            },
        };
        let mut json = configuration.to_json();
        json["hooks"] = self.hooks.clone().into();
        json["annotations"] = self.annotations.clone().into();
        if !self.seccomp.is_null() {
            json["linux"]["seccomp"] = self.seccomp.clone();
        }
        json
    }
}

/// A running container. Dropping it deletes the container.
#[derive(Debug)]
pub struct Container {
    /// runc in the foreground. It relays the program's stdio and exits with its status.
    pub running: Running,
    instance: Instance,
}

impl Container {
    /// Kills the program by `SIGKILL`. runc then exits with status 137.
    ///
    /// # Errors
    /// runc's error text.
    pub fn kill(&self) -> io::Result<()> {
        self.instance.runc(&["kill", &self.instance.id, "KILL"])
    }

    /// The runtime's id of it.
    pub fn id(&self) -> &str {
        &self.instance.id
    }

    /// Freezes all of its processes.
    ///
    /// # Errors
    /// runc's error text, such as without a freezer.
    pub fn pause(&self) -> io::Result<()> {
        self.instance.runc(&["pause", &self.instance.id])
    }

    /// Thaws its processes.
    ///
    /// # Errors
    /// runc's error text.
    pub fn resume(&self) -> io::Result<()> {
        self.instance.runc(&["resume", &self.instance.id])
    }

    /// Runs another instance of the program in this container, with these arguments and this stdin,
    /// until it exits.
    ///
    /// # Errors
    /// If runc cannot be started, or `TimedOut` after [`RUN_TIMEOUT`].
    pub fn exec(&self, arguments: &[&str], input: &[u8]) -> io::Result<Output> {
        process::output(&mut self.exec_command(arguments), input, RUN_TIMEOUT)
    }

    /// The command that does what [`exec`](Self::exec) does. It relays signals, standard streams and the exit status.
    pub fn exec_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.instance.runc_command();
        command
            .args(["exec", &self.instance.id])
            .args(self.instance.program)
            .args(arguments);
        command
    }

    /// Waits until the program exits.
    ///
    /// # Errors
    /// `TimedOut` after `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<std::process::ExitStatus> {
        self.running.wait(timeout)
    }
}

/// A container known to runc. Dropping it deletes the container, running or not.
#[derive(Debug)]
struct Instance {
    runc: PathBuf,
    state: PathBuf,
    bundle: PathBuf,
    id: String,
    program: &'static [&'static str],
    /// Keeps the rootfs while the container runs.
    _folder: Arc<TempFolder>,
}

impl Instance {
    fn command(&self) -> Command {
        let mut command = self.runc_command();
        command
            .args(["run", "--bundle"])
            .arg(&self.bundle)
            .arg(&self.id);
        command
    }

    fn runc_command(&self) -> Command {
        let mut command = Command::new(&self.runc);
        command.arg("--root").arg(&self.state);
        command
    }

    fn runc(&self, arguments: &[&str]) -> io::Result<()> {
        let mut command = self.runc_command();
        command.args(arguments);
        let output = process::output(&mut command, b"", CONTROL_TIMEOUT)?;
        if output.status.success() {
            return Ok(());
        }
        Err(io::Error::other(
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Fails if the container has exited and is deleted already.
        let _ = self.runc(&["delete", "--force", &self.id]);
        let _ = fs::remove_dir_all(&self.bundle);
    }
}

/// Whether a 64-bit little-endian ELF file has a program header of type `PT_INTERP` (3). `None` if it is
/// no such file. Offsets are those of `Elf64_Ehdr` in elf.h.
fn needs_interpreter(elf: &[u8]) -> Option<bool> {
    let number = |at: usize, size: usize| -> Option<usize> {
        let bytes = elf.get(at..at.checked_add(size)?)?;
        let mut wide = [0; 8];
        wide[..size].copy_from_slice(bytes);
        usize::try_from(u64::from_le_bytes(wide)).ok()
    };
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for index in 0..count {
        if number(table.checked_add(index * size)?, 4)? == 3 {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_refused_by_name() {
        let this = std::env::current_exe().expect("this program");
        let expected = needs_interpreter(&fs::read(&this).expect("readable"));
        if expected == Some(true) {
            let error = Bundle::new(Path::new("runc"), &this).expect_err("it is dynamic");
            assert!(
                error.to_string().contains("not a static ELF program"),
                "{error}"
            );
        }
        assert_eq!(needs_interpreter(b"#!/bin/sh\n"), None);
        assert_eq!(needs_interpreter(b"\x7fELF\x02\x01"), None);
    }
}
