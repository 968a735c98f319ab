//! A VM with a broker.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hvsock_guests::{Attached, Config, Error, File, Guest, Kit, Output, Vsock};

use super::probe::Probe;
use crate::wait;

/// The bound on a command of the stage itself. A guest with an emulated processor starts a container runtime
/// in ten seconds.
pub(super) const LIMIT: Duration = Duration::from_secs(90);

/// The programs of this machine that run in the VM and its containers, static or with their libraries.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The command `hvsock`.
    pub hvsock: PathBuf,
    /// The program that runs [`serve`](super::serve).
    pub probe: PathBuf,
    /// The agent, if the test needs one.
    pub agent: Option<PathBuf>,
    /// The program `hvsock-load`, if the test needs it.
    pub load: Option<PathBuf>,
    /// runc, or another OCI runtime with its command line.
    pub runtime: PathBuf,
}

impl Programs {
    /// The name of the OCI runtime.
    pub(super) fn runtime_name(&self) -> String {
        let name = self.runtime.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// The programs as files of a guest.
    fn files(&self) -> io::Result<Vec<File>> {
        let runtime = format!("/bin/{}", self.runtime_name());
        let mut files = File::program(&self.hvsock, "/bin/hvsock")?;
        files.extend(File::program(&self.probe, "/bin/hvsock-probe")?);
        files.extend(File::program(&self.runtime, runtime)?);
        if let Some(agent) = &self.agent {
            files.extend(File::program(agent, "/bin/hvsock-agent")?);
        }
        if let Some(load) = &self.load {
            files.extend(File::program(load, "/bin/hvsock-load")?);
        }
        Ok(files)
    }
}

/// A VM in which a broker runs. It is killed with the last handle to it.
#[derive(Clone, Debug)]
pub struct GuestBroker {
    guest: Arc<Guest>,
    programs: Arc<Programs>,
}

impl GuestBroker {
    /// Boots a guest whose vsock device is at `socket`, without a broker.
    ///
    /// # Errors
    /// Those of [`Guest::boot`], and of reading the programs.
    pub fn boot(kit: &Kit, name: &str, socket: &Path, programs: Programs) -> Result<Self, Error> {
        let mut config = Config::new(name);
        config.containers = true;
        config.memory_mib = 512;
        config.files = programs.files().map_err(|error| Error::Io {
            what: "cannot read the programs of the guest".into(),
            error,
        })?;
        config.vsock = Some(Vsock {
            socket: socket.to_owned(),
        });
        Ok(Self {
            guest: Arc::new(Guest::boot(kit, &config)?),
            programs: Arc::new(programs),
        })
    }

    /// The guest.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Starts `hvsock broker` and waits until it is ready.
    ///
    /// # Panics
    /// If it ends, with its log.
    #[track_caller]
    pub fn start(&self) {
        self.shell(
            "hvsock broker >/run/broker.out 2>>/run/broker.log </dev/null & echo $! >/run/broker.pid",
        );
        wait::until_ok("the broker in the VM is ready", || {
            let asked = "grep -q ready /run/broker.out || \
                         { kill -0 $(cat /run/broker.pid) && exit 3; cat /run/broker.log >&2; exit 4; }";
            let output = self.run(asked);
            match output.status {
                0 => Ok(()),
                3 => Err(format!("it is starting\n{}", self.log())),
                _ => panic!("the broker in the VM: {}", output.stderr_text()),
            }
        });
    }

    /// Kills the broker by `SIGKILL`.
    ///
    /// # Panics
    /// If it does not run.
    #[track_caller]
    pub fn kill(&self) {
        self.shell("kill -KILL $(cat /run/broker.pid)");
    }

    /// The broker's output and log so far.
    ///
    /// # Panics
    /// If the guest does not answer.
    #[track_caller]
    pub fn log(&self) -> String {
        self.shell("cat /run/broker.out /run/broker.log 2>/dev/null; :")
    }

    /// Runs a shell command in the VM that must succeed. Returns its standard output.
    ///
    /// # Panics
    /// If it fails, with its standard error.
    #[track_caller]
    pub fn shell(&self, command: &str) -> String {
        let output = self.run(command);
        let error = output.stderr_text();
        assert!(output.success(), "{command}: {}{error}", output.text());
        output.text()
    }

    /// Runs a shell command in the VM.
    ///
    /// # Panics
    /// If the guest does not answer.
    #[track_caller]
    pub fn run(&self, command: &str) -> Output {
        let output = self.guest.run(command, LIMIT);
        output.unwrap_or_else(|error| panic!("{error}\n{}", self.guest.console()))
    }

    /// Starts the probe in the VM itself.
    ///
    /// # Panics
    /// If it does not start.
    #[track_caller]
    pub fn probe(&self) -> Probe {
        self.attached(self.guest.name(), "exec hvsock-probe")
    }

    /// Starts a shell command in the VM whose standard input and output the caller uses.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn attach(&self, command: &str) -> Attached {
        let attached = self.guest.attach(command);
        attached.unwrap_or_else(|error| panic!("{error}\n{}", self.guest.console()))
    }

    pub(super) fn programs(&self) -> &Programs {
        &self.programs
    }

    /// A probe that a command of the VM starts on a serial port.
    #[track_caller]
    pub(super) fn attached(&self, partition: &str, command: &str) -> Probe {
        let started = self.guest.attach(command);
        let started = started.map_err(io::Error::other).and_then(|input| {
            // The port has the timeout of what was done with it before.
            input.set_read_timeout(None)?;
            let output = input.try_clone()?;
            Probe::new(partition, input, output, LIMIT)
        });
        started.unwrap_or_else(|error| panic!("{error}\n{}", self.guest.console()))
    }
}
