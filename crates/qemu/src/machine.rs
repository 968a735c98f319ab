//! QEMU's command line and its process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::error::{Error, quoted};
use crate::initramfs::{self, File};
use crate::kit::Kit;
use crate::tools;

/// The memory that a guest needs for an initramfs of so many bytes. While it is unpacked it is there
/// twice, and what it is unpacked to has at most half of the memory: with less, files are cut short
/// and nobody says so.
fn least_memory_mib(initramfs: usize) -> u32 {
    const SYSTEM: u32 = 128;
    let size = u32::try_from(initramfs >> 20).unwrap_or(u32::MAX);
    size.saturating_mul(3).saturating_add(SYSTEM)
}

/// What a guest is to have.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its host name, and its name in messages.
    pub name: String,
    /// Its memory, 256 MiB unless changed; more where its files, which are in it, need that.
    pub memory_mib: u32,
    /// Its processors, one unless changed.
    pub processors: u32,
    /// Its vsock device, if it is to have one.
    pub vsock: Option<Vsock>,
    /// Its network, if it is to have one.
    pub network: Option<Network>,
    /// Files beside busybox.
    pub files: Vec<File>,
    /// How its instructions are carried out; none: as `HVSOCK_GUEST_ACCEL` says, else TCG.
    pub accelerator: Option<Accelerator>,
    /// The folder in which its own temporary one is made; none: the system's.
    pub folder: Option<PathBuf>,
    /// How long its start may take.
    pub boot_limit: Duration,
}

impl Config {
    /// A guest with nothing but busybox.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            memory_mib: 256,
            processors: 1,
            vsock: None,
            network: None,
            files: Vec::new(),
            accelerator: None,
            folder: None,
            // Some fifteen times what it takes where nothing else runs.
            boot_limit: Duration::from_secs(90),
        }
    }
}

/// A vhost-user-vsock device. The guest's CID is told by the back-end.
#[derive(Debug, Clone)]
pub struct Vsock {
    /// The socket at which the back-end listens.
    pub socket: PathBuf,
}

/// QEMU's network for a user: the guest is 10.0.2.15, and the host's loopback is 10.0.2.2.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// The guest's TCP ports that a port of the host's loopback leads to;
    /// [`Guest::forwarded`](crate::Guest::forwarded) tells which.
    pub forwarded: Vec<u16>,
}

/// How a guest's instructions are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// By translation. Works everywhere.
    Tcg,
    /// By the processor. Needs `/dev/kvm`, and a kernel that may do so.
    Kvm,
}

impl Accelerator {
    fn chosen(config: &Config) -> Self {
        let wish = std::env::var("HVSOCK_GUEST_ACCEL");
        let of_environment = match wish.as_deref() {
            Ok("kvm") => Self::Kvm,
            _ => Self::Tcg,
        };
        config.accelerator.unwrap_or(of_environment)
    }

    fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Tcg => ["-accel", "tcg", "-cpu", "max"],
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
        }
    }
}

/// How many ports for commands a guest has, so many run at once.
pub const PORTS: usize = 8;

/// QEMU, running.
#[derive(Debug)]
pub struct Machine {
    name: String,
    folder: TempDir,
    pid: u32,
    end: Arc<Mutex<Option<ExitStatus>>>,
    ended: Mutex<Receiver<()>>,
    kill: Sender<()>,
}

impl Machine {
    pub fn start(kit: &Kit, config: &Config) -> Result<Self, Error> {
        let place = config.folder.clone();
        let folder = tempfile::Builder::new()
            .prefix("hvsock-guest-")
            .tempdir_in(place.unwrap_or_else(std::env::temp_dir))
            .map_err(Error::io("cannot make a folder for a guest"))?;
        let initramfs = initramfs::build(kit, config).map_err(Error::io(format!(
            "cannot make {}'s initramfs",
            config.name
        )))?;
        let config = &Config {
            memory_mib: config.memory_mib.max(least_memory_mib(initramfs.len())),
            ..config.clone()
        };
        fs::write(folder.path().join("initramfs"), initramfs)
            .map_err(Error::io("cannot write the initramfs"))?;
        let errors = fs::File::create(folder.path().join("errors"))
            .map_err(Error::io("cannot write QEMU's messages"))?;
        let mut command = with_parent(&kit.qemu);
        command
            .args(arguments(kit, config, folder.path()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors);
        let (kill, kills) = mpsc::channel();
        let (started, start) = mpsc::channel();
        let (ends, ended) = mpsc::channel();
        let end = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&end);
        thread::Builder::new()
            .name(format!("qemu {}", config.name))
            .spawn(move || match command.spawn() {
                Ok(mut child) => {
                    let _ = started.send(Ok(child.id()));
                    *locked(&slot) = keep(&mut child, &kills);
                    drop(ends);
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            })
            .map_err(Error::io("cannot start a thread"))?;
        let failed = || Error::io(format!("cannot start {}", kit.qemu.display()));
        let pid = match start.recv() {
            Ok(Ok(pid)) => pid,
            Ok(Err(error)) => return Err(failed()(error)),
            Err(gone) => return Err(failed()(std::io::Error::other(gone))),
        };
        Ok(Self {
            name: config.name.clone(),
            folder,
            pid,
            end,
            ended: Mutex::new(ended),
            kill,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Where one of its sockets is.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Everything that the guest's kernel and first process have said.
    pub fn console(&self) -> String {
        let bytes = fs::read(self.folder.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// The end of that, and what QEMU complained about, for messages.
    pub fn last_words(&self) -> String {
        let errors = fs::read(self.folder.path().join("errors")).unwrap_or_default();
        let console = self.console();
        let lines: Vec<&str> = console.lines().collect();
        let tail = lines[lines.len().saturating_sub(30)..].join("\n");
        quoted("QEMU said", &String::from_utf8_lossy(&errors)) + &quoted("console", &tail)
    }

    /// An error if QEMU or the guest's kernel has ended.
    pub fn check(&self) -> Result<(), Error> {
        let what = if let Some(status) = *locked(&self.end) {
            format!("QEMU of the guest {} ended: {status}", self.name)
        } else if self.console().contains("Kernel panic - ") {
            format!("the kernel of the guest {} ended", self.name)
        } else {
            return Ok(());
        };
        let seen = self.last_words();
        Err(Error::Ended { what, seen })
    }

    /// Why one of QEMU's sockets fails, if it is because QEMU ends: that shows a moment later.
    pub fn ended_soon(&self) -> Option<Error> {
        self.wait(Duration::from_millis(500));
        self.check().err()
    }

    /// Ends QEMU by `SIGKILL` and waits for that.
    pub fn kill(&self) {
        let _ = self.kill.send(());
        self.wait(Duration::from_secs(10));
    }

    /// Waits for QEMU's end; false if it did not come.
    pub fn wait(&self, limit: Duration) -> bool {
        let waited = locked(&self.ended).recv_timeout(limit);
        waited == Err(RecvTimeoutError::Disconnected)
    }

    pub fn timed_out(&self, what: impl Into<String>, limit: Duration) -> Error {
        Error::TimedOut {
            what: what.into(),
            limit,
            seen: self.last_words(),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits for the child's end, or for the wish to end it, as its parent for the kernel: see
/// [`with_parent`].
fn keep(child: &mut Child, kills: &Receiver<()>) -> Option<ExitStatus> {
    let mut pause = Duration::from_millis(1);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) => {}
            Err(_) => return None,
        }
        match kills.recv_timeout(pause) {
            Err(RecvTimeoutError::Timeout) => pause = Duration::from_millis(20),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                let _ = child.kill();
                return child.wait().ok();
            }
        }
    }
}

/// A QEMU that ends with the thread that starts it, even if this process is killed; so that thread
/// must live for as long as QEMU may. Where there is no `setpriv`, a killed process leaves it behind.
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
    let shown = |path: &Path| path.display().to_string();
    // A comma separates options, and is doubled within one.
    let within = |path: &Path| shown(path).replace(',', ",,");
    let own = |name: &str| within(&folder.join(name));
    add(&["-name", &config.name, "-nodefaults", "-no-user-config"]);
    add(&["-display", "none"]);
    add(&Accelerator::chosen(config).arguments());
    add(&["-machine", "q35,memory-backend=memory"]);
    // Shared, as a vhost-user device needs it.
    let memory = format!(
        "memory-backend-memfd,id=memory,share=on,size={}M",
        config.memory_mib
    );
    add(&["-object", &memory, "-m", &format!("{}M", config.memory_mib)]);
    add(&["-smp", &config.processors.to_string()]);
    add(&["-kernel", &shown(&kit.kernel.image)]);
    add(&["-initrd", &shown(&folder.join("initramfs"))]);
    // Without mitigations and extended verification it starts faster; messages cost time as well.
    let line = "console=ttyS0 loglevel=4 mitigations=off nokaslr panic=0";
    add(&["-append", line]);
    let console = format!("file,id=console,path={}", own("console"));
    add(&["-chardev", &console, "-serial", "chardev:console"]);
    let monitor = format!("socket,id=monitor,path={},server=on,wait=off", own("qmp"));
    add(&["-chardev", &monitor, "-mon", "chardev=monitor,mode=control"]);
    // Port 0 is kept for a console.
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
        let backend = format!("socket,id=vsock,path={}", within(&vsock.socket));
        add(&["-chardev", &backend]);
        // Below a port of its own it can be taken out and put in while the guest runs.
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

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is left until a deadline; never zero, which some calls take for no limit.
pub fn until(deadline: Instant) -> Duration {
    deadline
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(1))
}
