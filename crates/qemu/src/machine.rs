//! The processes of a guest, and QEMU's command line.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::config::{Accelerator, Config, PORTS};
use crate::error::{Error, quoted};
use crate::initramfs;
use crate::kit::{Kit, Vmm};
use crate::lock::locked;
use crate::{tools, uml};

/// Minimum memory in MiB for an initramfs of this size in bytes. During unpacking it exists twice, and its
/// tmpfs is limited to half of the memory. With less memory, files are silently truncated.
fn min_memory_mib(initramfs: usize) -> u32 {
    const SYSTEM: u32 = 128;
    let size = u32::try_from(initramfs >> 20).unwrap_or(u32::MAX);
    size.saturating_mul(3).saturating_add(SYSTEM)
}

/// The socket of QEMU's second monitor.
pub const SPARE_MONITOR: &str = "qmp2";

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
    /// Starts it. Returns the host's ends of the ports that need no connect.
    pub fn start(kit: &Kit, config: &Config) -> Result<(Self, Vec<UnixStream>), Error> {
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
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        let mut command = match &kit.vmm {
            Vmm::Qemu(qemu) => {
                let mut command = with_parent(qemu);
                command.args(arguments(kit, config, folder.path()));
                command.stdin(Stdio::null()).stdout(Stdio::null());
                command
            }
            Vmm::UserModeLinux => {
                let console = fs::File::create(folder.path().join("console"))
                    .map_err(Error::io("cannot write the guest's console"))?;
                (ours, theirs) = uml::ports().map_err(Error::io("cannot create serial lines"))?;
                let mut command = uml::command(kit, config, folder.path(), &theirs);
                command.stdout(console);
                command
            }
        };
        command.stderr(errors);
        let (kill, kill_requests) = mpsc::channel();
        let (started, start) = mpsc::channel();
        let (ends, ended) = mpsc::channel();
        let end = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&end);
        thread::Builder::new()
            .name(format!("{vmm} {}", config.name))
            .spawn(move || match uml::spawn_with(&mut command, &theirs) {
                Ok(mut child) => {
                    // Closes our copies of the guest's ends, so that its end is seen.
                    drop((command, theirs));
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
            Err(gone) => return Err(failed()(std::io::Error::other(gone))),
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
        Ok((machine, ours))
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

    /// Path of one of its sockets.
    pub fn socket(&self, name: &str) -> PathBuf {
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
/// guest in User-mode Linux. Runs in the thread that started it: see
/// [`with_parent`].
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

/// A QEMU that the kernel kills when the starting thread ends, even if this process is killed
/// (`PR_SET_PDEATHSIG`). That thread must outlive QEMU. Without `setpriv`, a killed process leaves QEMU
/// running.
fn with_parent(qemu: &Path) -> Command {
    match tools::find("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(qemu);
            command
        }
        None => Command::new(qemu),
    }
}

fn arguments(kit: &Kit, config: &Config, folder: &Path) -> Vec<String> {
    let mut arguments = Vec::new();
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(|word| (*word).to_owned()));
    let text = |path: &Path| path.display().to_string();
    // A comma separates options, and is doubled within a value.
    let escaped = |path: &Path| text(path).replace(',', ",,");
    let own = |name: &str| escaped(&folder.join(name));
    add(&["-name", &config.name, "-nodefaults", "-no-user-config"]);
    add(&["-display", "none"]);
    add(&Accelerator::chosen(config).arguments());
    add(&["-machine", "q35,memory-backend=memory"]);
    // vhost-user requires shared memory.
    let memory = format!(
        "memory-backend-memfd,id=memory,share=on,size={}M",
        config.memory_mib
    );
    add(&["-object", &memory, "-m", &format!("{}M", config.memory_mib)]);
    add(&["-smp", &config.processors.to_string()]);
    add(&["-kernel", &text(&kit.kernel.image)]);
    add(&["-initrd", &text(&folder.join("initramfs"))]);
    // Boots faster without mitigations and with few messages.
    let line = "console=ttyS0 loglevel=4 mitigations=off nokaslr panic=0";
    add(&["-append", line]);
    let console = format!("file,id=console,path={}", own("console"));
    add(&["-chardev", &console, "-serial", "chardev:console"]);
    let monitor = format!("socket,id=monitor,path={},server=on,wait=off", own("qmp"));
    add(&["-chardev", &monitor, "-mon", "chardev=monitor,mode=control"]);
    // A monitor serves one client at a time, and the first one is the guest's own.
    let spare = format!("unix:{},server=on,wait=off", own(SPARE_MONITOR));
    add(&["-qmp", &spare]);
    // Port 0 is reserved for a console.
    let ports = format!("virtio-serial-pci,max_ports={}", PORTS + 1);
    add(&["-device", &ports]);
    for index in 0..PORTS {
        let path = own(&format!("port{index}"));
        let port = format!("socket,id=port{index},path={path},server=on,wait=off");
        add(&["-chardev", &port]);
        let device = format!("virtserialport,chardev=port{index},name=hvsock.{index}");
        add(&["-device", &device]);
    }
    if let Some(vsock) = &config.vsock {
        let backend = format!("socket,id=vsock,path={}", escaped(&vsock.socket));
        add(&["-chardev", &backend]);
        // A separate PCIe root port makes the device hot-pluggable.
        add(&["-device", "pcie-root-port,id=vsock-port,slot=1"]);
        let device = "vhost-user-vsock-pci,id=vsock-device,chardev=vsock,bus=vsock-port";
        add(&["-device", device]);
    }
    if let Some(network) = &config.network {
        let mut user = "user,id=network".to_owned();
        for port in &network.forwarded {
            user.push_str(&format!(",hostfwd=tcp:127.0.0.1:0-:{port}"));
        }
        add(&["-netdev", &user]);
        add(&["-device", "virtio-net-pci,netdev=network,romfile="]);
    }
    arguments
}

/// Time left until a deadline, at least 1 ms: some calls take 0 as no limit.
pub fn until(deadline: Instant) -> Duration {
    deadline
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(1))
}
