//! A running guest.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::config::Config;
use crate::deadline::until;
use crate::error::{Error, quoted};
use crate::kit::Kit;
use crate::lock::{locked, unpoisoned};
use crate::machine::Machine;
use crate::port::{Answer, Attached, Port, Request};
use crate::vmm::{Control, SPARE_MONITOR, Started, Vmm};

/// Extra time for an answer beyond the limit of its command.
const GRACE: Duration = Duration::from_secs(15);

/// Polling interval of waits.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A running guest. Dropping it kills its processes.
#[derive(Debug)]
pub struct Guest {
    vmm: Vmm,
    control: Box<dyn Control>,
    ports: Mutex<Ports>,
    returned: Condvar,
    boot: Mutex<String>,
    spawned: AtomicU64,
    forwarded: Vec<(u16, u16)>,
    boot_limit: Duration,
    vsock: Option<PathBuf>,
    machine: Machine,
}

#[derive(Debug)]
struct Ports {
    idle: Vec<Port>,
    /// Number of ports that are not attached to a command.
    all: usize,
}

/// The result of a command in a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit status; 128 plus the signal's number if a signal ended it.
    pub status: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Whether the exit status is 0.
    pub fn success(&self) -> bool {
        self.status == 0
    }

    /// Standard output as text, without trailing whitespace.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Standard error as text, without trailing whitespace.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end().to_owned()
    }
}

impl From<Answer> for Output {
    fn from(answer: Answer) -> Self {
        Self {
            status: answer.status,
            stdout: answer.stdout,
            stderr: answer.stderr,
        }
    }
}

impl Guest {
    /// Boots a guest and waits until it accepts commands.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the VMM cannot be started; [`Error::Ended`] if it or the kernel ends;
    /// [`Error::Unsupported`] for a network or a systemd that the VMM does not give; [`Error::TimedOut`] after [`Config::boot_limit`].
    pub fn boot(kit: &Kit, config: &Config) -> Result<Self, Error> {
        let deadline = Instant::now() + config.boot_limit;
        let (driver, vmm) = (kit.vmm.driver(), kit.vmm.name());
        let unsupported = |what| Err(Error::Unsupported { what, vmm });
        if config.network.is_some() && !driver.has_network() {
            return unsupported("a network");
        }
        if config.systemd && !driver.has_machine_files() {
            return unsupported("the machine's systemd");
        }
        let (machine, connect) = Machine::start(kit, config)?;
        let connected = connect(&Started {
            deadline,
            check: &|| machine.check(),
            ended_soon: &|| machine.ended_soon(),
        })?;
        let idle: Vec<Port> = connected.ports.into_iter().map(Port::new).collect();
        let guest = Self {
            vmm: kit.vmm,
            control: connected.control,
            ports: Mutex::new(Ports {
                all: idle.len(),
                idle,
            }),
            returned: Condvar::new(),
            boot: Mutex::new(String::new()),
            spawned: AtomicU64::new(0),
            forwarded: connected.forwarded,
            boot_limit: config.boot_limit,
            vsock: config.vsock.as_ref().map(|vsock| vsock.socket.clone()),
            machine,
        };
        guest.wait_until_ready(deadline)?;
        Ok(guest)
    }

    /// The guest's name.
    pub fn name(&self) -> &str {
        self.machine.name()
    }

    /// What it runs under.
    pub fn vmm(&self) -> Vmm {
        self.vmm
    }

    /// Process id of its VMM.
    pub fn pid(&self) -> u32 {
        self.machine.pid()
    }

    /// The console output of its kernel and init.
    pub fn console(&self) -> String {
        self.machine.console()
    }

    /// The port of the host's loopback that is forwarded to a TCP port of the guest.
    pub fn forwarded(&self, guest: u16) -> Option<u16> {
        let mut ports = self.forwarded.iter();
        ports.find(|(to, _)| *to == guest).map(|(_, from)| *from)
    }

    /// Runs a shell command to its end. At most eight commands run concurrently, one for each port. After
    /// `limit` (rounded up to seconds) the command is killed.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`], with the output so far; [`Error::Rebooted`]; [`Error::Ended`].
    pub fn run(&self, command: &str, limit: Duration) -> Result<Output, Error> {
        let seconds = limit.as_secs_f64().ceil().max(1.0) as u64;
        let start = Instant::now();
        let output = self.request(&Request::Run { seconds, command }, limit, command)?;
        if output.status == 128 + 9 && start.elapsed() >= limit {
            let seen = quoted("stdout", &output.text()) + &quoted("stderr", &output.stderr_text());
            let what = format!("`{command}` in the guest {}", self.name());
            return Err(Error::TimedOut { what, limit, seen });
        }
        Ok(output)
    }

    /// Starts a shell command in the background.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn spawn(&self, command: &str) -> Result<Spawned<'_>, Error> {
        let number = self.spawned.fetch_add(1, Ordering::Relaxed);
        self.request(&Request::Spawn { number, command }, GRACE, command)?;
        Ok(Spawned {
            guest: self,
            folder: format!("/run/spawned/{number}"),
            command: command.to_owned(),
        })
    }

    /// Starts a shell command whose stdin and stdout the caller uses. It occupies one of the guest's ports
    /// permanently.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn attach(&self, command: &str) -> Result<Attached, Error> {
        let deadline = Instant::now() + GRACE;
        let port = self.take_port(deadline)?;
        // This port does not return to the pool.
        locked(&self.ports).all -= 1;
        port.attach(command, deadline)
    }

    /// Writes a file in the guest; creates its parent folders.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run); [`Error::Protocol`] if the file cannot be written.
    pub fn push(&self, path: &str, content: &[u8]) -> Result<(), Error> {
        // Allows for 1 MB/s on a slow machine.
        let limit = GRACE + Duration::from_micros(content.len() as u64);
        let output = self.request(&Request::Push { path, content }, limit, "push")?;
        self.expect(output, &format!("writing {path}")).map(drop)
    }

    /// Reads a file of the guest.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run); [`Error::Protocol`] if the file cannot be read.
    pub fn pull(&self, path: &str) -> Result<Vec<u8>, Error> {
        let output = self.run(&format!("cat '{path}'"), Duration::from_secs(60))?;
        Ok(self.expect(output, &format!("reading {path}"))?.stdout)
    }

    /// Pauses processors and devices until [`resume`](Self::resume).
    ///
    /// # Errors
    ///
    /// As [`monitor`](Self::monitor).
    pub fn pause(&self) -> Result<(), Error> {
        self.control.pause()
    }

    /// Resumes the guest after [`pause`](Self::pause).
    ///
    /// # Errors
    ///
    /// As [`monitor`](Self::monitor).
    pub fn resume(&self) -> Result<(), Error> {
        self.control.resume()
    }

    /// Resets the guest and waits until it has booted. Running commands fail with [`Error::Rebooted`];
    /// attached ones are lost.
    ///
    /// # Errors
    ///
    /// As [`boot`](Self::boot) and [`monitor`](Self::monitor).
    pub fn reset(&self) -> Result<(), Error> {
        let deadline = Instant::now() + self.boot_limit;
        self.control.reset()?;
        self.wait_until_ready(deadline)
    }

    /// Waits until the guest has booted again, after a reboot from inside.
    ///
    /// # Errors
    ///
    /// As [`boot`](Self::boot).
    pub fn wait_for_reboot(&self) -> Result<(), Error> {
        self.wait_until_ready(Instant::now() + self.boot_limit)
    }

    /// Waits for the VMM's end, after a power-off from inside.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`] after [`Config::boot_limit`].
    pub fn wait_for_power_off(self) -> Result<(), Error> {
        if self.machine.wait(self.boot_limit) {
            return Ok(());
        }
        Err(self.machine.timed_out(self.end(), self.boot_limit))
    }

    /// The socket of a second monitor of QEMU, for a program that is tested. User-mode Linux has none.
    pub fn spare_monitor(&self) -> PathBuf {
        self.machine.file(SPARE_MONITOR)
    }

    /// Hot-unplugs the vsock device and plugs a new one. This connects to a restarted back-end, because QEMU
    /// does not reconnect by itself.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`] if there is no vsock device; otherwise as [`monitor`](Self::monitor).
    pub fn replug_vsock(&self) -> Result<(), Error> {
        let Some(socket) = &self.vsock else {
            return Err(Error::Protocol("the guest has no vsock device".into()));
        };
        self.control.replug_vsock(socket)
    }

    /// Quits the VMM and waits for its end, as when a machine is switched off.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`] if the VMM does not end; the errors of [`monitor`](Self::monitor) for QEMU.
    pub fn quit(self) -> Result<(), Error> {
        if !self.control.quit()? {
            // It may end before it has answered.
            drop(self.spawn("poweroff -f"));
        }
        if self.machine.wait(GRACE) {
            Ok(())
        } else {
            Err(self.machine.timed_out(self.end(), GRACE))
        }
    }

    fn end(&self) -> String {
        format!("{}'s end", self.machine.vmm())
    }

    /// Kills the guest's processes with `SIGKILL`.
    pub fn kill(self) {
        self.machine.kill();
    }

    /// Executes a command of QEMU's monitor (QMP) and returns its reply.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] without QEMU; [`Error::Protocol`] if QEMU refuses the command;
    /// [`Error::Io`] or [`Error::Ended`] if it is gone.
    pub fn monitor(&self, command: &str, arguments: &Value) -> Result<Value, Error> {
        self.control.monitor(command, arguments)
    }

    fn request(&self, request: &Request<'_>, limit: Duration, what: &str) -> Result<Output, Error> {
        let deadline = Instant::now() + limit + GRACE;
        let mut port = self.take_port(deadline)?;
        let answer = port.request(request, deadline);
        self.return_port(port);
        match answer {
            Ok(Some(answer)) => Ok(answer.into()),
            Ok(None) => {
                self.machine.check()?;
                let what = format!("`{what}` in the guest {}", self.name());
                Err(self.machine.timed_out(what, limit + GRACE))
            }
            Err(error @ Error::Io { .. }) => Err(self.machine.ended_soon().unwrap_or(error)),
            Err(error) => Err(error),
        }
    }

    fn expect(&self, output: Output, what: &str) -> Result<Output, Error> {
        if output.success() {
            return Ok(output);
        }
        let (name, status, why) = (self.name(), output.status, output.stderr_text());
        Err(Error::Protocol(format!(
            "{what} in the guest {name}: status {status}: {why}"
        )))
    }

    fn take_port(&self, deadline: Instant) -> Result<Port, Error> {
        let mut ports = locked(&self.ports);
        loop {
            if let Some(port) = ports.idle.pop() {
                return Ok(port);
            }
            if Instant::now() >= deadline {
                return Err(self.machine.timed_out("a free port of the guest", GRACE));
            }
            let waited = self.returned.wait_timeout(ports, until(deadline));
            ports = unpoisoned(waited).0;
        }
    }

    fn return_port(&self, port: Port) {
        // At the end of the pool: a port with a late answer pending is used last.
        locked(&self.ports).idle.insert(0, port);
        self.returned.notify_one();
    }

    /// Waits for `ready` of a new boot on every port.
    fn wait_until_ready(&self, deadline: Instant) -> Result<(), Error> {
        let before = locked(&self.boot).clone();
        let all = locked(&self.ports).all;
        let mut ready = Vec::new();
        let mut result = Ok(());
        while ready.len() < all && result.is_ok() {
            match self.take_port(deadline) {
                Ok(mut port) => {
                    result = self.wait_for_port(&mut port, &before, deadline);
                    ready.push(port);
                }
                Err(error) => result = Err(error),
            }
        }
        for port in ready {
            self.return_port(port);
        }
        result
    }

    fn wait_for_port(&self, port: &mut Port, before: &str, deadline: Instant) -> Result<(), Error> {
        loop {
            // The VMM's end closes the port at once; a kernel panic appears only on the console.
            let next_check = deadline.min(Instant::now() + Duration::from_millis(500));
            match port.ready(next_check) {
                Ok(Some(boot)) if boot != before => {
                    *locked(&self.boot) = boot;
                    return Ok(());
                }
                Ok(_) => self.machine.check()?,
                Err(error) => return Err(self.machine.ended_soon().unwrap_or(error)),
            }
            if Instant::now() >= deadline {
                let what = format!("the boot of the guest {}", self.name());
                return Err(self.machine.timed_out(what, self.boot_limit));
            }
        }
    }
}

/// A background command in a guest.
#[derive(Debug)]
pub struct Spawned<'a> {
    guest: &'a Guest,
    folder: String,
    command: String,
}

impl Spawned<'_> {
    /// The exit status, if the command has ended.
    ///
    /// # Errors
    ///
    /// As [`Guest::run`].
    pub fn status(&self) -> Result<Option<i32>, Error> {
        let command = format!("cat {}/status 2>/dev/null || :", self.folder);
        Ok(self.guest.run(&command, GRACE)?.text().parse().ok())
    }

    /// Waits for the command's end and returns its result. After `limit` it keeps running.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`], with the output so far; otherwise as [`Guest::run`].
    pub fn wait(&self, limit: Duration) -> Result<Output, Error> {
        let deadline = Instant::now() + limit;
        let folder = &self.folder;
        let wait = format!(
            "i=0; while [ ! -e {folder}/status ] && [ $i -lt 40 ]; do sleep 0.05; i=$((i+1)); done; \
             cat {folder}/status 2>/dev/null"
        );
        loop {
            let status = self.guest.run(&wait, GRACE)?.text();
            if let Ok(status) = status.parse() {
                return Ok(Output {
                    status,
                    stdout: self.stdout()?,
                    stderr: self.stderr()?,
                });
            }
            if Instant::now() >= deadline {
                let seen = quoted("stdout", &String::from_utf8_lossy(&self.stdout()?))
                    + &quoted("stderr", &String::from_utf8_lossy(&self.stderr()?));
                let what = format!("`{}` in the guest {}", self.command, self.guest.name());
                return Err(Error::TimedOut { what, limit, seen });
            }
        }
    }

    /// Waits until standard output contains a text.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`], with the output so far; otherwise as [`Guest::run`].
    pub fn wait_for(&self, wanted: &str, limit: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + limit;
        loop {
            let printed = self.stdout()?;
            let text = String::from_utf8_lossy(&printed);
            if text.contains(wanted) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let seen = quoted("stdout", &text)
                    + &quoted("stderr", &String::from_utf8_lossy(&self.stderr()?));
                let what = format!("{wanted:?} of `{}`", self.command);
                return Err(Error::TimedOut { what, limit, seen });
            }
            thread::sleep(POLL_INTERVAL * 10);
        }
    }

    /// Standard output so far.
    ///
    /// # Errors
    ///
    /// As [`Guest::pull`].
    pub fn stdout(&self) -> Result<Vec<u8>, Error> {
        self.guest.pull(&format!("{}/out", self.folder))
    }

    /// Standard error so far.
    ///
    /// # Errors
    ///
    /// As [`Guest::pull`].
    pub fn stderr(&self) -> Result<Vec<u8>, Error> {
        self.guest.pull(&format!("{}/err", self.folder))
    }

    /// Kills the command and its children with `SIGKILL`. Does nothing if it has ended.
    ///
    /// # Errors
    ///
    /// As [`Guest::run`].
    pub fn kill(&self) -> Result<(), Error> {
        let command = format!("kill -KILL -$(cat {}/pid) 2>/dev/null || :", self.folder);
        self.guest.run(&command, GRACE).map(drop)
    }
}
