//! The machine that plays the host, and guests on its `/dev/vhost-vsock`.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hvsock_guests::{Config, File, Guest, Kit, Output, Role, Spawned};

/// The time limit of one command, on an emulated processor.
const LIMIT: Duration = Duration::from_secs(120);

/// The testkit's program, as the machine has it.
pub const PROGRAM: &str = "kernel_link";

/// A user without privileges.
pub const USER: &str = "nobody";

pub struct Host {
    guest: Guest,
    release: String,
    measures: bool,
    /// Numbers the control sockets of guests.
    next: AtomicU32,
}

impl Host {
    pub fn boot(kit: &Kit, program: &Path, agent: &Path) -> Result<Self> {
        let mut config = Config::new("host");
        config.role = Role::Host;
        config.memory_mib = 768;
        config.processors = 2;
        config.files = File::program(program, format!("/bin/{PROGRAM}"))?;
        let hvsock = Path::new(env!("CARGO_BIN_EXE_hvsock"));
        config.files.extend(File::program(hvsock, "/bin/hvsock")?);
        let agent = File::copy(agent, "/bin/hvsock-agent")?;
        config.files.push(agent);
        let users = "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n";
        config.files.push(File::bytes("/etc/passwd", 0o644, users));
        let groups = "root:x:0:\nnogroup:x:65534:\n";
        config.files.push(File::bytes("/etc/group", 0o644, groups));
        config.boot_limit = Duration::from_secs(180);
        let guest = Guest::boot(kit, &config)?;
        let release = guest.run("uname -r", LIMIT)?.text();
        Ok(Self {
            guest,
            release,
            measures: std::env::var_os("HVSOCK_KERNEL_LINK_MEASURE").is_some(),
            next: AtomicU32::new(1),
        })
    }

    /// The kernel's release, as `uname -r` prints it.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The first two numbers of the kernel's version.
    pub fn version(&self) -> (u32, u32) {
        let mut numbers = self.release.split(['.', '-', '+']);
        let mut next = || {
            numbers
                .next()
                .and_then(|word| word.parse().ok())
                .unwrap_or(0)
        };
        (next(), next())
    }

    /// An amount of load: the first in tests, the second if the figures are what is wanted.
    pub fn amount(&self, tested: u64, measured: u64) -> u64 {
        match self.measures {
            true => measured,
            false => tested,
        }
    }

    /// Runs a shell command.
    pub fn sh(&self, command: &str) -> Result<Output> {
        Ok(self.guest.run(command, LIMIT)?)
    }

    /// Runs a command that must succeed. Returns its stdout.
    pub fn ok(&self, command: &str) -> Result<String> {
        let output = self.sh(command)?;
        if !output.success() {
            bail!(
                "`{command}` failed: {} {}",
                output.text(),
                output.stderr_text()
            );
        }
        Ok(output.text())
    }

    /// Runs a command that must fail. Returns what it prints.
    pub fn fails(&self, command: &str) -> Result<String> {
        let output = self.sh(command)?;
        if output.success() {
            bail!("`{command}` succeeded: {}", output.text());
        }
        Ok(format!("{}\n{}", output.text(), output.stderr_text())
            .trim()
            .to_owned())
    }

    /// Starts a command in the background.
    pub fn spawn(&self, command: &str) -> Result<Running<'_>> {
        Ok(Running {
            spawned: self.guest.spawn(&format!("exec {command}"))?,
        })
    }

    /// Runs the program with plain sockets. It must succeed; returns its answer.
    pub fn plain(&self, command: &str) -> Result<String> {
        let answer = self.ok(&format!("{PROGRAM} host {command}"))?;
        Ok(answer.trim_start_matches("ok").trim().to_owned())
    }

    /// Runs the program with plain sockets. It must fail; returns the reason.
    pub fn plain_fails(&self, command: &str) -> Result<String> {
        let answer = self.fails(&format!("{PROGRAM} host {command}"))?;
        Ok(answer.trim_start_matches("error").trim().to_owned())
    }

    /// Starts a program that binds or listens with a plain socket, and waits until it does.
    pub fn plain_service(&self, command: &str) -> Result<Running<'_>> {
        let running = self.spawn(&format!("{PROGRAM} host {command}"))?;
        running.prints(if command.starts_with("bind") {
            "bound"
        } else {
            "listening"
        })?;
        Ok(running)
    }

    /// Starts a VM with this context id.
    pub fn vm(&self, cid: u32) -> Result<Vm<'_>> {
        self.vm_with(cid, "")
    }

    /// Starts a VM with further options.
    pub fn vm_with(&self, cid: u32, options: &str) -> Result<Vm<'_>> {
        self.vm_by("", cid, options)
    }

    /// Starts a VM whose VMM is in the network namespace at this path.
    pub fn vm_in(&self, cid: u32, namespace: &str) -> Result<Vm<'_>> {
        self.vm_by(&format!("nsenter --net={namespace}"), cid, "")
    }

    fn vm_by(&self, starter: &str, cid: u32, options: &str) -> Result<Vm<'_>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let control = format!("/run/vm{number}");
        let command =
            format!("{starter} {PROGRAM} guest --cid {cid} --control {control} {options}");
        let vm = Vm {
            host: self,
            running: self.spawn(&command)?,
            control,
        };
        // It serves its control socket as soon as it runs. 5,000 looks take longer than a start on a busy machine.
        let ready = format!(
            "i=0; until [ -S {0} ] || [ $i = 5000 ]; do sleep 0.01; i=$((i+1)); done; [ -S {0} ]",
            vm.control
        );
        if !self.sh(&ready)?.success() {
            bail!("the VM does not start: {}", vm.running.output()?);
        }
        Ok(vm)
    }
}

/// A command in the background, which ends with this value.
pub struct Running<'a> {
    spawned: Spawned<'a>,
}

impl Running<'_> {
    /// Waits until it has printed a text.
    pub fn prints(&self, text: &str) -> Result<()> {
        Ok(self.spawned.wait_for(text, LIMIT)?)
    }

    /// As [`Running::prints`], on stdout or stderr.
    pub fn prints_any(&self, text: &str) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while !self.output()?.contains(text) {
            if Instant::now() > deadline {
                bail!("{text:?} was not printed, but {:?}", self.output()?);
            }
        }
        Ok(())
    }

    /// What it has printed so far.
    pub fn output(&self) -> Result<String> {
        let (out, err) = (self.spawned.stdout()?, self.spawned.stderr()?);
        let text = [out, err].concat();
        Ok(String::from_utf8_lossy(&text).trim().to_owned())
    }

    /// Waits for its end. Returns what it has printed.
    pub fn end(&self) -> Result<String> {
        self.spawned.wait(LIMIT)?;
        self.output()
    }

    /// Kills it.
    pub fn kill(&self) -> Result<()> {
        Ok(self.spawned.kill()?)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self.spawned.kill();
    }
}

/// A virtual machine, whose VMM ends with this value.
pub struct Vm<'a> {
    host: &'a Host,
    running: Running<'a>,
    control: String,
}

impl Vm<'_> {
    /// Tells it a command, which must succeed. Returns its answer.
    pub fn tell(&self, command: &str) -> Result<String> {
        let answer = self.host.ok(&self.line(command));
        let answer = answer.with_context(|| self.running.output().unwrap_or_default())?;
        Ok(answer.trim_start_matches("ok").trim().to_owned())
    }

    /// Tells it a command, which must fail. Returns the reason.
    pub fn tell_fails(&self, command: &str) -> Result<String> {
        let answer = self.host.fails(&self.line(command))?;
        Ok(answer.trim_start_matches("error").trim().to_owned())
    }

    /// Kills the VMM.
    pub fn kill(&self) -> Result<()> {
        self.running.kill()
    }

    /// The path of its control socket.
    pub fn control(&self) -> &str {
        &self.control
    }

    /// The command line that tells it a command.
    pub fn line(&self, command: &str) -> String {
        format!("{PROGRAM} tell {} {command}", self.control)
    }
}
