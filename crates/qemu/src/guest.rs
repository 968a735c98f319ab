//! A guest that runs, and what can be done with it.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Error, quoted};
use crate::kit::Kit;
use crate::machine::{Config, Machine, PORTS, until};
use crate::port::{Answer, Attached, Port, Request};
use crate::qmp::Monitor;

/// How much longer an answer may take than the command that it is about.
const GRACE: Duration = Duration::from_secs(15);

/// How often a wait looks again.
const LOOK: Duration = Duration::from_millis(10);

/// A guest that runs. Its QEMU is killed when this is dropped.
#[derive(Debug)]
pub struct Guest {
    monitor: Mutex<Monitor>,
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
    /// Those that are not attached to a command for good.
    all: usize,
}

/// What a command in a guest came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit status; 128 and the signal's number if one ended it.
    pub status: i32,
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it complained about.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Whether it ended well.
    pub fn success(&self) -> bool {
        self.status == 0
    }

    /// What it printed, as text without the last line's end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Likewise what it complained about.
    pub fn complaints(&self) -> String {
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
    /// Starts a guest and waits until commands can be run in it.
    pub fn boot(kit: &Kit, config: &Config) -> Result<Self, Error> {
        let deadline = Instant::now() + config.boot_limit;
        let machine = Machine::start(kit, config)?;
        // What QEMU itself says explains more than that it hangs up.
        let mut monitor = Monitor::open(connect(&machine, "qmp", deadline)?)
            .map_err(|error| machine.ended_soon().unwrap_or(error))?;
        let mut idle = Vec::new();
        for index in 0..PORTS {
            let stream = connect(&machine, &format!("port{index}"), deadline)?;
            idle.push(Port::new(stream));
        }
        let forwarded = match &config.network {
            Some(network) => forwards(&mut monitor, &network.forwarded)?,
            None => Vec::new(),
        };
        let guest = Self {
            monitor: Mutex::new(monitor),
            ports: Mutex::new(Ports {
                all: idle.len(),
                idle,
            }),
            returned: Condvar::new(),
            boot: Mutex::new(String::new()),
            spawned: AtomicU64::new(0),
            forwarded,
            boot_limit: config.boot_limit,
            vsock: config.vsock.as_ref().map(|vsock| vsock.socket.clone()),
            machine,
        };
        guest.wait_until_ready(deadline)?;
        Ok(guest)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.machine.name()
    }

    /// The process id of its QEMU.
    pub fn pid(&self) -> u32 {
        self.machine.pid()
    }

    /// Everything that its kernel and its first process have said.
    pub fn console(&self) -> String {
        self.machine.console()
    }

    /// The port of the host's loopback that leads to a TCP port of the guest.
    pub fn forwarded(&self, guest: u16) -> Option<u16> {
        let mut ports = self.forwarded.iter();
        ports.find(|(to, _)| *to == guest).map(|(_, from)| *from)
    }

    /// Runs a shell command to its end. As many run at once as the guest has ports, eight. When the
    /// limit (whole seconds) is over, the command is killed, and the error quotes what it had printed.
    pub fn run(&self, command: &str, limit: Duration) -> Result<Output, Error> {
        let seconds = limit.as_secs_f64().ceil().max(1.0) as u64;
        let start = Instant::now();
        let output = self.ask(&Request::Run { seconds, command }, limit, command)?;
        if output.status == 128 + 9 && start.elapsed() >= limit {
            let seen = quoted("stdout", &output.text()) + &quoted("stderr", &output.complaints());
            let what = format!("`{command}` in the guest {}", self.name());
            return Err(Error::TimedOut { what, limit, seen });
        }
        Ok(output)
    }

    /// Starts a shell command and leaves it running.
    pub fn spawn(&self, command: &str) -> Result<Spawned<'_>, Error> {
        let number = self.spawned.fetch_add(1, Ordering::Relaxed);
        self.ask(&Request::Spawn { number, command }, GRACE, command)?;
        Ok(Spawned {
            guest: self,
            place: format!("/run/spawned/{number}"),
            command: command.to_owned(),
        })
    }

    /// Starts a shell command whose stdin and stdout are in the caller's hands. It takes one of the
    /// guest's ports for good.
    pub fn attach(&self, command: &str) -> Result<Attached, Error> {
        let deadline = Instant::now() + GRACE;
        let port = self.take(deadline)?;
        // Given back by nobody.
        locked(&self.ports).all -= 1;
        port.attach(command, deadline)
    }

    /// Writes a file in the guest.
    pub fn push(&self, path: &str, content: &[u8]) -> Result<(), Error> {
        // Some slow machine's 1 MB in a second.
        let limit = GRACE + Duration::from_micros(content.len() as u64);
        let output = self.ask(&Request::Push { path, content }, limit, "push")?;
        self.expect(output, &format!("writing {path}")).map(drop)
    }

    /// Reads a file of the guest.
    pub fn pull(&self, path: &str) -> Result<Vec<u8>, Error> {
        let output = self.run(&format!("cat '{path}'"), Duration::from_secs(60))?;
        Ok(self.expect(output, &format!("reading {path}"))?.stdout)
    }

    /// Stops its processors and devices, until [`resume`](Self::resume).
    pub fn pause(&self) -> Result<(), Error> {
        self.monitor("stop", &json!({})).map(drop)
    }

    /// Goes on after [`pause`](Self::pause).
    pub fn resume(&self) -> Result<(), Error> {
        self.monitor("cont", &json!({})).map(drop)
    }

    /// Resets it as if by the button, and waits until it is there again. Commands that run in it
    /// meanwhile end with [`Error::Rebooted`]; those attached to are gone.
    pub fn reset(&self) -> Result<(), Error> {
        let deadline = Instant::now() + self.boot_limit;
        self.monitor("system_reset", &json!({}))?;
        self.wait_until_ready(deadline)
    }

    /// Waits until it is there again, after something in it made it reboot.
    pub fn rebooted(&self) -> Result<(), Error> {
        self.wait_until_ready(Instant::now() + self.boot_limit)
    }

    /// Waits for QEMU's end, after something in it powered it off.
    pub fn powered_off(self) -> Result<(), Error> {
        if self.machine.wait(self.boot_limit) {
            return Ok(());
        }
        Err(self.machine.timed_out("QEMU's end", self.boot_limit))
    }

    /// Takes the vsock device out of the guest and puts a new one in, while all else runs on. It is the
    /// way to a back-end that has been started anew, which QEMU does not connect to again by itself.
    pub fn replug_vsock(&self) -> Result<(), Error> {
        let Some(socket) = &self.vsock else {
            return Err(Error::Protocol("the guest has no vsock device".into()));
        };
        self.monitor("device_del", &json!({ "id": "vsock-device" }))?;
        // The guest has a few seconds to let go of it, and until then the socket is in use.
        let deadline = Instant::now() + GRACE;
        while let Err(error) = self.monitor("chardev-remove", &json!({ "id": "vsock" })) {
            if Instant::now() >= deadline {
                return Err(error);
            }
            thread::sleep(LOOK * 10);
        }
        let address = json!({ "type": "unix", "data": { "path": socket } });
        let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
        self.monitor("chardev-add", &json!({ "id": "vsock", "backend": backend }))?;
        let device = json!({
            "driver": "vhost-user-vsock-pci",
            "id": "vsock-device",
            "chardev": "vsock",
            "bus": "vsock-port",
        });
        self.monitor("device_add", &device).map(drop)
    }

    /// Has QEMU end in good order, as when a machine is switched off, and waits for that.
    pub fn quit(self) -> Result<(), Error> {
        self.monitor("quit", &json!({}))?;
        if self.machine.wait(GRACE) {
            Ok(())
        } else {
            Err(self.machine.timed_out("QEMU's end", GRACE))
        }
    }

    /// Ends QEMU by `SIGKILL`, of which nobody has notice.
    pub fn kill(self) {
        self.machine.kill();
    }

    /// A command of QEMU's monitor (QMP) and its answer.
    pub fn monitor(&self, command: &str, arguments: &Value) -> Result<Value, Error> {
        locked(&self.monitor).execute(command, arguments)
    }

    fn ask(&self, request: &Request<'_>, limit: Duration, what: &str) -> Result<Output, Error> {
        let deadline = Instant::now() + limit + GRACE;
        let mut port = self.take(deadline)?;
        let answer = port.ask(request, deadline);
        self.give_back(port);
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
        let (name, status, why) = (self.name(), output.status, output.complaints());
        Err(Error::Protocol(format!(
            "{what} in the guest {name}: status {status}: {why}"
        )))
    }

    fn take(&self, deadline: Instant) -> Result<Port, Error> {
        let mut ports = locked(&self.ports);
        loop {
            if let Some(port) = ports.idle.pop() {
                return Ok(port);
            }
            if Instant::now() >= deadline {
                return Err(self.machine.timed_out("a free port of the guest", GRACE));
            }
            let waited = self.returned.wait_timeout(ports, until(deadline));
            ports = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn give_back(&self, port: Port) {
        // At the far end: one that is out of step is asked last.
        locked(&self.ports).idle.insert(0, port);
        self.returned.notify_one();
    }

    /// Waits on every port for the guest to say that it has begun, in a boot that is not the last one.
    fn wait_until_ready(&self, deadline: Instant) -> Result<(), Error> {
        let before = locked(&self.boot).clone();
        let all = locked(&self.ports).all;
        let mut ready = Vec::new();
        let mut result = Ok(());
        while ready.len() < all && result.is_ok() {
            match self.take(deadline) {
                Ok(mut port) => {
                    result = self.wait_for_port(&mut port, &before, deadline);
                    ready.push(port);
                }
                Err(error) => result = Err(error),
            }
        }
        for port in ready {
            self.give_back(port);
        }
        result
    }

    fn wait_for_port(&self, port: &mut Port, before: &str, deadline: Instant) -> Result<(), Error> {
        loop {
            // QEMU's end is noticed at once by the port's; a kernel's is on the console only.
            let look = deadline.min(Instant::now() + Duration::from_millis(500));
            match port.ready(look) {
                Ok(Some(boot)) if boot != before => {
                    *locked(&self.boot) = boot;
                    return Ok(());
                }
                Ok(_) => self.machine.check()?,
                Err(error) => return Err(self.machine.ended_soon().unwrap_or(error)),
            }
            if Instant::now() >= deadline {
                let what = format!("the start of the guest {}", self.name());
                return Err(self.machine.timed_out(what, self.boot_limit));
            }
        }
    }
}

/// A command that was left running in a guest.
#[derive(Debug)]
pub struct Spawned<'a> {
    guest: &'a Guest,
    place: String,
    command: String,
}

impl Spawned<'_> {
    /// Its exit status, if it has ended.
    pub fn status(&self) -> Result<Option<i32>, Error> {
        let command = format!("cat {}/status 2>/dev/null || :", self.place);
        Ok(self.guest.run(&command, GRACE)?.text().parse().ok())
    }

    /// Waits for its end and gives what it printed. After the limit the error quotes what it has
    /// printed, and it runs on.
    pub fn wait(&self, limit: Duration) -> Result<Output, Error> {
        let deadline = Instant::now() + limit;
        let place = &self.place;
        let wait = format!(
            "i=0; while [ ! -e {place}/status ] && [ $i -lt 40 ]; do sleep 0.05; i=$((i+1)); done; \
             cat {place}/status 2>/dev/null"
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

    /// Waits until what it has printed holds this text.
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
            thread::sleep(LOOK * 10);
        }
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> Result<Vec<u8>, Error> {
        self.guest.pull(&format!("{}/out", self.place))
    }

    /// What it has complained about so far.
    pub fn stderr(&self) -> Result<Vec<u8>, Error> {
        self.guest.pull(&format!("{}/err", self.place))
    }

    /// Ends it and all that it started by `SIGKILL`; that is nothing to do if it has ended.
    pub fn kill(&self) -> Result<(), Error> {
        let command = format!("kill -KILL -$(cat {}/pid) 2>/dev/null || :", self.place);
        self.guest.run(&command, GRACE).map(drop)
    }
}

/// Connects to one of QEMU's sockets, which is there a moment after its start.
fn connect(machine: &Machine, name: &str, deadline: Instant) -> Result<UnixStream, Error> {
    let path = machine.socket(name);
    loop {
        match UnixStream::connect(&path) {
            Ok(stream) => return Ok(stream),
            Err(error) if may_come(&error) && Instant::now() < deadline => {}
            Err(error) => return Err(Error::io(format!("cannot connect to QEMU's {name}"))(error)),
        }
        machine.check()?;
        thread::sleep(LOOK);
    }
}

fn may_come(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

/// Which of the host's ports QEMU took for those of the guest, as its monitor shows them:
/// `TCP[HOST_FORWARD]  12       127.0.0.1 40719       10.0.2.15  1234     0     0`.
fn forwards(monitor: &mut Monitor, wanted: &[u16]) -> Result<Vec<(u16, u16)>, Error> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let line = json!({ "command-line": "info usernet" });
    let shown = monitor.execute("human-monitor-command", &line)?;
    let shown = shown.as_str().unwrap_or_default();
    wanted
        .iter()
        .map(|port| {
            forward(shown, *port)
                .map(|from| (*port, from))
                .ok_or_else(|| {
                    Error::Protocol(format!("QEMU forwards nothing to port {port}: {shown}"))
                })
        })
        .collect()
}

fn forward(shown: &str, port: u16) -> Option<u16> {
    shown.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["TCP[HOST_FORWARD]", _, _, from, _, to, ..] if to.parse() == Ok(port) => {
                from.parse().ok()
            }
            _ => None,
        }
    })
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forwarded_port_is_read_from_what_qemu_shows() {
        let shown = "Hub -1 (network):\r\n  Protocol[State]    FD  Source Address  Port   Dest. \
                     Address  Port RecvQ SendQ\r\n  TCP[HOST_FORWARD]  12       127.0.0.1 40719    \
                     10.0.2.15  1234     0     0\r\n";
        assert_eq!(forward(shown, 1234), Some(40719));
        assert_eq!(forward(shown, 1235), None);
    }
}
