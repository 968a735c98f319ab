//! The processes of a guest.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::io::FdFlags;
use tempfile::TempDir;

use crate::config::Config;
use crate::error::{Error, quoted};
use crate::initramfs;
use crate::kit::Kit;
use crate::lock::locked;
use crate::vmm::{Boot, Connect, Prepared};

/// Minimum memory in MiB for an initramfs of this size in bytes. During unpacking it exists twice, and its
/// tmpfs is limited to half of the memory. With less memory, files are silently truncated.
fn min_memory_mib(initramfs: usize) -> u32 {
    const SYSTEM: u32 = 128;
    let size = u32::try_from(initramfs >> 20).unwrap_or(u32::MAX);
    size.saturating_mul(3).saturating_add(SYSTEM)
}

/// A running QEMU or User-mode Linux.
#[derive(Debug)]
pub struct Machine {
    name: String,
    vmm: &'static str,
    folder: TempDir,
    pid: u32,
    end: Arc<Mutex<Option<ExitStatus>>>,
    ended: Mutex<Receiver<()>>,
    kill: Sender<()>,
}

impl Machine {
    /// Starts it. Returns what connects to it.
    pub fn start(kit: &Kit, config: &Config) -> Result<(Self, Connect), Error> {
        let parent = config.folder.clone();
        let folder = tempfile::Builder::new()
            .prefix("hvsock-guest-")
            .tempdir_in(parent.unwrap_or_else(std::env::temp_dir))
            .map_err(Error::io("cannot create a folder for the guest"))?;
        let initramfs = initramfs::build(kit, config).map_err(Error::io(format!(
            "cannot create {}'s initramfs",
            config.name
        )))?;
        let config = &Config {
            memory_mib: config.memory_mib.max(min_memory_mib(initramfs.len())),
            ..config.clone()
        };
        fs::write(folder.path().join("initramfs"), initramfs)
            .map_err(Error::io("cannot write the initramfs"))?;
        let errors = fs::File::create(folder.path().join("errors"))
            .map_err(Error::io("cannot write the VMM's messages"))?;
        let vmm = kit.vmm.name();
        let prepared = kit.vmm.driver().prepare(&Boot {
            program: &kit.program,
            kernel: &kit.kernel,
            config,
            folder: folder.path(),
        });
        let Prepared {
            mut command,
            inherited,
            connect,
        } = prepared.map_err(Error::io(format!("cannot prepare {vmm}")))?;
        command.stderr(errors);
        let (kill, kill_requests) = mpsc::channel();
        let (started, start) = mpsc::channel();
        let (ends, ended) = mpsc::channel();
        let end = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&end);
        thread::Builder::new()
            .name(format!("{vmm} {}", config.name))
            .spawn(move || match spawn_with(&mut command, &inherited) {
                Ok(mut child) => {
                    // Closes our copies of the guest's ends, so that its end is seen.
                    drop((command, inherited));
                    let _ = started.send(Ok(child.id()));
                    *locked(&slot) = supervise(&mut child, &kill_requests);
                    drop(ends);
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            })
            .map_err(Error::io("cannot start a thread"))?;
        let failed = || Error::io(format!("cannot start {vmm}"));
        let pid = match start.recv() {
            Ok(Ok(pid)) => pid,
            Ok(Err(error)) => return Err(failed()(error)),
            Err(gone) => return Err(failed()(io::Error::other(gone))),
        };
        let machine = Self {
            name: config.name.clone(),
            vmm,
            folder,
            pid,
            end,
            ended: Mutex::new(ended),
            kill,
        };
        Ok((machine, connect))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of what runs the guest.
    pub fn vmm(&self) -> &'static str {
        self.vmm
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The path of a file or socket in the guest's folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The console output of the guest's kernel and init.
    pub fn console(&self) -> String {
        let bytes = fs::read(self.folder.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// The last 30 lines of the console and the VMM's standard error, for messages.
    pub fn diagnostics(&self) -> String {
        let errors = fs::read(self.folder.path().join("errors")).unwrap_or_default();
        let console = self.console();
        let lines: Vec<&str> = console.lines().collect();
        let tail = lines[lines.len().saturating_sub(30)..].join("\n");
        quoted(
            &format!("{}'s stderr", self.vmm),
            &String::from_utf8_lossy(&errors),
        ) + &quoted("console", &tail)
    }

    /// Fails if the VMM has ended or the guest's kernel has panicked.
    pub fn check(&self) -> Result<(), Error> {
        let what = if let Some(status) = *locked(&self.end) {
            format!("{} of the guest {} ended: {status}", self.vmm, self.name)
        } else if self.console().contains("Kernel panic - ") {
            format!("the kernel of the guest {} panicked", self.name)
        } else {
            return Ok(());
        };
        let seen = self.diagnostics();
        Err(Error::Ended { what, seen })
    }

    /// The error of an ended VMM. A closed socket may be noticed before the VMM's end, so this waits for up to
    /// 500 ms.
    pub fn ended_soon(&self) -> Option<Error> {
        self.wait(Duration::from_millis(500));
        self.check().err()
    }

    /// Kills the guest's processes and waits for the VMM's end.
    pub fn kill(&self) {
        let _ = self.kill.send(());
        self.wait(Duration::from_secs(10));
    }

    /// Waits for the VMM's end. Returns `false` on a timeout.
    pub fn wait(&self, limit: Duration) -> bool {
        let waited = locked(&self.ended).recv_timeout(limit);
        waited == Err(RecvTimeoutError::Disconnected)
    }

    pub fn timed_out(&self, what: impl Into<String>, limit: Duration) -> Error {
        Error::TimedOut {
            what: what.into(),
            limit,
            seen: self.diagnostics(),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits for the child's end or for a kill request. Dropping its standard input ends the other processes of a
/// guest in User-mode Linux. Runs in the thread that started it, whose end
/// would end QEMU.
fn supervise(child: &mut Child, kill_requests: &Receiver<()>) -> Option<ExitStatus> {
    let _group = child.stdin.take();
    let mut interval = Duration::from_millis(1);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) => {}
            Err(_) => return None,
        }
        match kill_requests.recv_timeout(interval) {
            Err(RecvTimeoutError::Timeout) => interval = Duration::from_millis(20),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                let _ = child.kill();
                return child.wait().ok();
            }
        }
    }
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
