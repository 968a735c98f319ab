//! A real OCI container for tests: its rootfs is one static program, its runtime is runc.
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
//! The container has pid, mount, network, IPC and UTS namespaces of its own, no network, no
//! capability, and is root inside; started by another user than root it has a user namespace too.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{getegid, geteuid};
use serde_json::{Value, json};

use crate::TempFolder;
use crate::process::{self, Running};

/// The longest that [`Bundle::run`] waits for a container to end.
pub const LONGEST_RUN: Duration = Duration::from_secs(30);
/// The longest that a clean-up waits for runc.
const LONGEST_CLEAN_UP: Duration = Duration::from_secs(10);
/// What the program is called in the container.
const PROGRAM: &str = "/program";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A rootfs with one program, and what its containers are to be like.
#[derive(Debug)]
pub struct Bundle {
    runc: PathBuf,
    folder: Arc<TempFolder>,
    mounts: Vec<Value>,
    environment: Vec<String>,
    descriptors: u64,
}

impl Bundle {
    /// Copies the program into a new rootfs. A program that needs an interpreter (a dynamic
    /// linker) is refused here, because in the container it would only be "not found".
    pub fn new(runc: &Path, program: &Path) -> io::Result<Self> {
        let bytes = fs::read(program)?;
        if needs_interpreter(&bytes).unwrap_or(true) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} is no static ELF program", program.display()),
            ));
        }
        let folder = TempFolder::new();
        let rootfs = folder.join("rootfs");
        // Folders to mount on: the rootfs is read-only once the container runs.
        for name in ["proc", "dev", "run", "tmp"] {
            fs::create_dir_all(rootfs.join(name))?;
        }
        let inside = rootfs.join(&PROGRAM[1..]);
        fs::write(&inside, bytes)?;
        fs::set_permissions(&inside, fs::Permissions::from_mode(0o755))?;
        Ok(Self {
            runc: runc.to_owned(),
            folder: Arc::new(folder),
            mounts: Vec::new(),
            environment: vec!["PATH=/".to_owned()],
            descriptors: 1024,
        })
    }

    /// Copies a file of the host into the rootfs, with its mode. A program must be a static one.
    pub fn copy_in(&mut self, host: &Path, inside: &str) -> io::Result<&mut Self> {
        let place = self.in_rootfs(inside)?;
        fs::copy(host, place)?;
        Ok(self)
    }

    /// Makes a symbolic link in the rootfs.
    pub fn link_in(&mut self, target: &str, inside: &str) -> io::Result<&mut Self> {
        let place = self.in_rootfs(inside)?;
        std::os::unix::fs::symlink(target, place)?;
        Ok(self)
    }

    /// Where a path of the container is on the host, its folder made.
    fn in_rootfs(&self, inside: &str) -> io::Result<PathBuf> {
        let place = self
            .folder
            .join("rootfs")
            .join(inside.trim_start_matches('/'));
        place.parent().map_or(Ok(()), fs::create_dir_all)?;
        Ok(place)
    }

    /// Binds a folder of the host to a path in the container.
    pub fn bind(&mut self, folder: &Path, inside: &str) -> &mut Self {
        self.mount(json!({
            "destination": inside,
            "type": "bind",
            "source": folder,
            "options": ["rbind", "rw"],
        }))
    }

    /// Adds an entry of OCI's `mounts`, for instance one that a program printed.
    pub fn mount(&mut self, entry: Value) -> &mut Self {
        self.mounts.push(entry);
        self
    }

    /// Sets a variable of the program's environment.
    pub fn env(&mut self, name: &str, value: &str) -> &mut Self {
        self.environment.push(format!("{name}={value}"));
        self
    }

    /// Sets how many descriptors the program may have; 1024 if not said.
    pub fn limit_descriptors(&mut self, most: u64) -> &mut Self {
        self.descriptors = most;
        self
    }

    /// Runs the program with these arguments and this input to its end, in a new container.
    pub fn run(&self, arguments: &[&str], input: &[u8]) -> io::Result<Output> {
        let place = self.place(arguments)?;
        process::output(&mut place.command(), input, LONGEST_RUN)
    }

    /// Starts the program in a new container, with pipes on its stdin, stdout and stderr.
    pub fn start(&self, arguments: &[&str]) -> io::Result<Container> {
        let place = self.place(arguments)?;
        let mut command = place.command();
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(Container {
            running: Running::start(&mut command)?,
            place,
        })
    }

    fn place(&self, arguments: &[&str]) -> io::Result<Place> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("hvsock-test-{}-{number}", std::process::id());
        let bundle = self.folder.join(&id);
        fs::create_dir(&bundle)?;
        fs::write(
            bundle.join("config.json"),
            self.config(arguments).to_string(),
        )?;
        Ok(Place {
            runc: self.runc.clone(),
            state: self.folder.join("state"),
            bundle,
            id,
            _folder: Arc::clone(&self.folder),
        })
    }

    fn config(&self, arguments: &[&str]) -> Value {
        let args: Vec<&str> = [PROGRAM].iter().chain(arguments).copied().collect();
        let mut mounts = vec![
            json!({"destination": "/proc", "type": "proc", "source": "proc"}),
            tmpfs("/dev", "dev"),
            tmpfs("/run", "nodev"),
            tmpfs("/tmp", "nodev"),
        ];
        mounts.extend(self.mounts.iter().cloned());
        let mut namespaces: Vec<Value> = ["pid", "mount", "network", "ipc", "uts"]
            .iter()
            .map(|kind| json!({"type": kind}))
            .collect();
        let mut linux = json!({
            "maskedPaths": ["/proc/kcore", "/proc/keys"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
        });
        let (uid, gid) = (geteuid(), getegid());
        if !uid.is_root() {
            namespaces.push(json!({"type": "user"}));
            let map = |host: u32| json!([{"containerID": 0, "hostID": host, "size": 1}]);
            linux["uidMappings"] = map(uid.as_raw());
            linux["gidMappings"] = map(gid.as_raw());
        }
        linux["namespaces"] = namespaces.into();
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false,
                "user": {"uid": 0, "gid": 0},
                "args": args,
                "env": self.environment,
                "cwd": "/",
                "capabilities": {"bounding": [], "effective": [], "permitted": []},
                "rlimits": [
                    {"type": "RLIMIT_NOFILE", "hard": self.descriptors, "soft": self.descriptors},
                    {"type": "RLIMIT_CORE", "hard": 0, "soft": 0},
                ],
                "noNewPrivileges": true,
            },
            "root": {"path": self.folder.join("rootfs"), "readonly": true},
            "hostname": "hvsock-test",
            "mounts": mounts,
            "linux": linux,
        })
    }
}

fn tmpfs(destination: &str, devices: &str) -> Value {
    json!({
        "destination": destination,
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", devices, "mode=755", "size=1m"],
    })
}

/// A container that runs; it is deleted when this is dropped.
#[derive(Debug)]
pub struct Container {
    /// runc in the foreground, which carries the program's streams and ends as it ends.
    pub running: Running,
    place: Place,
}

impl Container {
    /// Ends the program by `SIGKILL`. What [`Container::running`] then ends with is runc's word
    /// for it, 137.
    pub fn kill(&self) -> io::Result<()> {
        self.place.runc(&["kill", &self.place.id, "KILL"])
    }

    /// Runs the program once more in this container, with other arguments and this input, to its
    /// end.
    pub fn exec(&self, arguments: &[&str], input: &[u8]) -> io::Result<Output> {
        let mut command = self.place.runc_command();
        command
            .args(["exec", &self.place.id, PROGRAM])
            .args(arguments);
        process::output(&mut command, input, LONGEST_RUN)
    }

    /// Waits for the program's end and gives its exit status.
    pub fn wait(&mut self, limit: Duration) -> io::Result<std::process::ExitStatus> {
        self.running.wait(limit)
    }
}

/// Where runc keeps one container. Deletes it, dead or alive, when dropped.
#[derive(Debug)]
struct Place {
    runc: PathBuf,
    state: PathBuf,
    bundle: PathBuf,
    id: String,
    /// With the rootfs, which a container that runs goes on needing.
    _folder: Arc<TempFolder>,
}

impl Place {
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
        let output = process::output(&mut command, b"", LONGEST_CLEAN_UP)?;
        if output.status.success() {
            return Ok(());
        }
        Err(io::Error::other(
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A container that ended by itself is gone already, and runc's complaint is of no use.
        let _ = self.runc(&["delete", "--force", &self.id]);
        let _ = fs::remove_dir_all(&self.bundle);
    }
}

/// Whether a 64-bit little-endian ELF file has a program header of type `PT_INTERP` (3); nothing
/// if it is no such file. Offsets are those of `Elf64_Ehdr` in elf.h.
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
    fn a_program_that_is_not_static_is_refused_by_name() {
        let this = std::env::current_exe().expect("this program");
        let expected = needs_interpreter(&fs::read(&this).expect("readable"));
        if expected == Some(true) {
            let error = Bundle::new(Path::new("runc"), &this).expect_err("it is dynamic");
            assert!(
                error.to_string().contains("no static ELF program"),
                "{error}"
            );
        }
        assert_eq!(needs_interpreter(b"#!/bin/sh\n"), None);
        assert_eq!(needs_interpreter(b"\x7fELF\x02\x01"), None);
    }
}
