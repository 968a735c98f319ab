//! The steps of the demo with a virtual machine, in order.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hvsock::{ConnectOptions, Endpoint, HvListener, HvStream};
use hvsock_address::{PartitionName, PartitionRef, ServiceId, ServiceRef, VmId};
use hvsock_broker::{Broker, BrokerConfig, Handle};
use hvsock_control::{LinkSpec, NewVm, PartitionState};
use hvsock_endpoint::Dirs;
use hvsock_guests::{Guest, Kit, Vmm};

use super::guest::{Command, Reply};
use super::machine;
use super::narrator::Narrator;
use super::process::{GuestProcess, REPLY_TIMEOUT};
use super::props::{self, NAME, errno_text, name};
use super::services;
use crate::context::Context;
use crate::failure::Failure;
use crate::os::BrokerArgs;
use crate::os::linux::command::built_in;
use crate::os::linux::host_services::HostServices;
use crate::os::linux::measure;

const HOST: &str = "demo-host";
const GUEST: &str = "web";
const LINE: &[u8] = b"are you there?\n";

/// Boots the guest and runs the demo, with all its state in `folder`.
///
/// `is_chosen`: somebody chose the VMM, so there is no other to try.
pub fn run(folder: &Path, kit: &Kit, is_chosen: bool, context: &Context) -> Result<()> {
    let stage = Stage::set_up(folder, kit, context);
    let mut stage = stage.map_err(|error| match kit.vmm {
        Vmm::Uml if !is_chosen => Failure::new(format!("{error:#}"))
            .help("`hvsock demo --vm --vmm qemu` uses QEMU instead")
            .into(),
        _ => error,
    })?;
    stage.service()?;
    stage.guest_to_host()?;
    stage.host_to_guest()?;
    stage.refusals()?;
    stage.pause()?;
    stage.figures()?;
    stage.services()?;
    stage.finish()
}

struct Stage {
    folder: PathBuf,
    narrator: Narrator,
    process: GuestProcess,
    machine: Guest,
    endpoint: Endpoint,
    handle: Handle,
    /// The service after it is registered. A guest's kernel has no names.
    service: ServiceId,
    began: Instant,
    /// The last field, so that it is dropped after the guest.
    _broker: Broker,
}

impl Stage {
    fn set_up(folder: &Path, kit: &Kit, context: &Context) -> Result<Self> {
        let began = Instant::now();
        let mut narrator = Narrator::default();
        let dirs = Dirs {
            run: folder.to_owned(),
            config: folder.to_owned(),
        };
        let mut config = BrokerConfig::new(dirs.clone());
        config.partition = PartitionName::new(HOST)?;
        config.built_in = built_in::registrations(false);
        let broker = Broker::start(config)?;
        let handle = broker.handle();
        narrator.chapter(
            "A virtual machine",
            "The broker has a virtio-vsock device for each virtual machine, and the VMM\n\
             shares the guest's memory with it. There is no network, and the guest needs only\n\
             its kernel.",
        )?;
        narrator.command(&format!("hvsock vm add {GUEST}"))?;
        let partition = handle.add_vm(NewVm {
            name: PartitionName::new(GUEST)?,
            cid: None,
            id: None,
            groups: Vec::new(),
            link: LinkSpec::default(),
            unsealed_memory: false,
            user: None,
        })?;
        narrator.does(
            "broker",
            &format!("waits for the VMM of `{GUEST}`, {}", partition.id),
        )?;
        let (vmm, boots) = match kit.vmm {
            Vmm::Uml => ("uml", "boots Linux as a program, so that no KVM is needed"),
            Vmm::Qemu => (
                "qemu",
                "boots Linux with emulation, so that no KVM is needed",
            ),
        };
        narrator.does(vmm, boots)?;
        let socket = dirs.vm_socket(GUEST);
        let machine = machine::boot(kit, GUEST, &socket, folder, context)?;
        let system = machine.run("uname -sr", REPLY_TIMEOUT)?.text();
        narrator.good(
            "guest",
            &format!(
                "{system}, ready after {:.1} s",
                began.elapsed().as_secs_f64()
            ),
        )?;
        let process = GuestProcess::attached(machine.attach("exec hvsock demo-guest")?)?;
        narrator.does(
            "guest",
            "runs this program, `hvsock`, on the AF_VSOCK of its kernel",
        )?;
        Ok(Self {
            folder: folder.to_owned(),
            narrator,
            process,
            machine,
            endpoint: Endpoint::in_dir(folder),
            handle,
            service: ServiceId::ZERO,
            began,
            _broker: broker,
        })
    }

    fn service(&mut self) -> Result<()> {
        self.narrator.chapter(
            "A service",
            "A service is a GUID with a friendly name, registered once on the host. A Linux\n\
             guest has neither. It reaches the service by a vsock port derived from the\n\
             GUID, which is the same on every machine.",
        )?;
        self.narrator
            .command(&format!("hvsock service register '{NAME}'"))?;
        let service = props::register(&self.handle)?;
        self.service = service.id;
        self.narrator.good("broker", &service.id.to_string())
    }

    fn guest_to_host(&mut self) -> Result<()> {
        self.narrator.chapter(
            "From the guest to the host",
            "The guest connects to PARENT with the same source code as in a container.",
        )?;
        let listener = self.listen()?;
        self.narrator
            .does("host", &format!("listens for \"{NAME}\" from its children"))?;
        let text = "Hello from a virtual machine.";
        self.process.send(&Command::Exchange {
            service: self.service.into(),
            text: text.into(),
        })?;
        self.narrator.does(
            "guest",
            &format!("connects to PARENT, sends \"{text}\", shuts down its half"),
        )?;
        let (mut stream, _) = match listener.accept_timeout(REPLY_TIMEOUT) {
            Ok(accepted) => accepted,
            Err(error) => bail!(
                "the guest did not connect: {error}; it replied {:?}",
                self.process.reply()?
            ),
        };
        let answer = props::answer(&self.narrator, &mut stream)?;
        props::answered(&self.narrator, self.process.reply()?, &answer)
    }

    fn host_to_guest(&mut self) -> Result<()> {
        self.narrator.chapter(
            "From the host to the guest",
            "The host connects to the virtual machine by name.",
        )?;
        let serve = Command::Serve {
            service: self.service.into(),
        };
        match self.process.run(&serve)? {
            Reply::Received(_) => self
                .narrator
                .does("guest", "listens, and echoes what it receives")?,
            other => bail!("the guest should listen, not {other:?}"),
        }
        self.narrator
            .command(&format!("hvsock connect {GUEST} '{NAME}'"))?;
        let mut stream = self.connect(false)?;
        let text = "Hello from the host.";
        stream.write_all(text.as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        let mut received = String::new();
        stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
        stream.read_to_string(&mut received)?;
        if received != text {
            bail!("the host should have received {text:?}, not {received:?}");
        }
        self.narrator.good(
            "host",
            &format!("sends \"{text}\", shuts down its half, receives the echo, then end of file"),
        )
    }

    fn refusals(&mut self) -> Result<()> {
        self.narrator.chapter(
            "Refusals are immediate",
            "The guest's kernel receives a reset without a reason, at once. The host shows\n\
             the reason.",
        )?;
        let unknown = ServiceId::random();
        self.narrator.does(
            "guest",
            &format!("connects to {unknown}, which is not registered"),
        )?;
        self.refused(unknown)?;
        self.why(unknown)?;

        let listener = self.listen()?;
        measure::serve_hvsock(listener)?;
        let open = Command::Open {
            name: "existing".into(),
            service: self.service.into(),
            connected_suspend: false,
        };
        let ping = Command::Ping {
            name: "existing".into(),
            timeout_ms: 10_000,
        };
        for command in [open, ping] {
            if let Reply::Failed { why, .. } = self.process.run(&command)? {
                bail!("the guest should have a connection: {why}");
            }
        }
        self.narrator
            .does("guest", &format!("has a connection to \"{NAME}\""))?;
        self.narrator
            .command(&format!("hvsock service disable '{NAME}'"))?;
        self.handle.set_enabled(&name()?, false, None)?;
        let receive = Command::Receive {
            name: "existing".into(),
            timeout_ms: 10_000,
        };
        match self.process.run(&receive)? {
            // A guest's kernel reports a reset as end of file.
            Reply::Failed { .. } => self.narrator.bad("guest", "sees its connection end")?,
            other => bail!("the connection should have been closed, not {other:?}"),
        }
        self.narrator.does("guest", "connects again")?;
        self.refused(self.service)?;
        self.why(self.service)?;
        self.handle.set_enabled(&name()?, true, None)?;
        Ok(())
    }

    fn pause(&mut self) -> Result<()> {
        self.narrator.chapter(
            "The virtual machine is paused",
            "By its VMM, which notifies the broker, or by an operator. Connections are closed.\n\
             Those with the option HVSOCKET_CONNECTED_SUSPEND are suspended instead, and\n\
             continue later.",
        )?;
        let mut without = self.connect(false)?;
        let mut with = self.connect(true)?;
        for stream in [&mut without, &mut with] {
            stream.write_all(LINE)?;
            receive(stream, REPLY_TIMEOUT)?.context("the guest should echo")?;
        }
        self.narrator.does(
            "host",
            "has two connections to the guest, one with HVSOCKET_CONNECTED_SUSPEND",
        )?;
        if self.machine.vmm().can_pause() {
            self.narrator.does("qemu", "stops the machine")?;
            self.machine.pause()?;
        } else {
            self.narrator.command(&format!("hvsock vm pause {GUEST}"))?;
            self.handle.set_state(&guest()?, PartitionState::Paused)?;
        }
        match receive(&mut without, REPLY_TIMEOUT) {
            Err(error) => self
                .narrator
                .bad("host", &format!("without the option: closed: {error}"))?,
            Ok(received) => bail!("the connection should have been closed, not {received:?}"),
        }
        with.write_all(LINE)?;
        match receive(&mut with, Duration::from_millis(300))? {
            None => self.narrator.does(
                "host",
                "with the option: sends \"are you there?\", gets no answer yet",
            )?,
            Some(received) => bail!("the connection should be suspended, not {received:?}"),
        }
        if self.machine.vmm().can_pause() {
            self.narrator.does("qemu", "resumes the machine")?;
            self.machine.resume()?;
        } else {
            self.narrator
                .command(&format!("hvsock vm resume {GUEST}"))?;
            self.handle.set_state(&guest()?, PartitionState::Running)?;
        }
        let received = receive(&mut with, REPLY_TIMEOUT)?
            .context("the connection should have been resumed")?;
        let good = format!("with the option: receives \"{received}\", nothing is lost");
        self.narrator.good("host", &good)
    }

    fn figures(&mut self) -> Result<()> {
        self.narrator.chapter(
            "Figures",
            "The data that went through the device. `cargo xtask bench vm` measures its speed\n\
             without an emulated processor.",
        )?;
        props::counters(&self.narrator, &self.handle)
    }

    fn services(&mut self) -> Result<()> {
        self.narrator.chapter(
            "Into the guest",
            "Integration services are services that are built in. An agent in the guest\n\
             offers them to the host only.",
        )?;
        let _host = HostServices::start(&self.handle, self.endpoint.clone())?;
        match self.process.run(&Command::StartAgent)? {
            Reply::Received(_) => self
                .narrator
                .does("guest", "runs the agent, as `hvsock-agent` does")?,
            other => bail!("the guest should run the agent, not {other:?}"),
        }
        services::show(&self.narrator, &self.endpoint, &guest()?, &self.folder)
    }

    fn finish(self) -> Result<()> {
        let took = self.began.elapsed().as_secs_f64();
        crate::output::text(&format!(
            "\nThe demo is complete after {took:.0} s and leaves nothing behind. Next steps:\n   \
             hvsock broker              in one terminal\n   \
             hvsock vm add NAME         in another: prints the options for its VMM\n   \
             hvsock --help\n"
        ))
    }

    fn listen(&self) -> Result<HvListener> {
        let options = HvListener::options().endpoint(self.endpoint.clone());
        let listener = options.listen((VmId::CHILDREN, name()?));
        listener.context("the host cannot listen")
    }

    /// Connects from the host to the guest. The first byte selects the echo server.
    fn connect(&self, connected_suspend: bool) -> Result<HvStream> {
        let mut stream = ConnectOptions::new()
            .endpoint(self.endpoint.clone())
            .connected_suspend(connected_suspend)
            .connect((guest()?, name()?))
            .context("the host should have a connection to the guest")?;
        stream.write_all(&[measure::ECHO])?;
        Ok(stream)
    }

    /// The guest tries to connect and is refused.
    fn refused(&mut self, service: ServiceId) -> Result<()> {
        let command = Command::TryConnect {
            service: service.into(),
        };
        match self.process.run(&command)? {
            Reply::Failed {
                errno, after_ms, ..
            } => self.narrator.bad(
                "guest",
                &format!("is refused after {after_ms} ms: {}", errno_text(errno)),
            ),
            other => bail!("the guest should have been refused, not {other:?}"),
        }
    }

    /// Prints the explanation that the host's owner gets.
    fn why(&self, service: ServiceId) -> Result<()> {
        let shown = if service == self.service {
            format!("'{NAME}'")
        } else {
            service.to_string()
        };
        self.narrator
            .command(&format!("hvsock why parent {shown} --from {GUEST}"))?;
        let service = ServiceRef::from(service);
        let parent = PartitionRef::Id(VmId::PARENT);
        let client = BrokerArgs::in_dir(&self.folder).client()?;
        let explained = client.explain_connect(Some(&guest()?), &parent, &service)?;
        self.narrator.does("broker", &explained.verdict)
    }
}

fn guest() -> Result<PartitionRef> {
    Ok(PartitionRef::Name(PartitionName::new(GUEST)?))
}

/// Receives a line. `None` if it does not arrive within `timeout`.
fn receive(stream: &mut HvStream, timeout: Duration) -> io::Result<Option<String>> {
    stream.set_read_timeout(Some(timeout))?;
    let mut received = [0; LINE.len()];
    match stream.read_exact(&mut received) {
        Ok(()) => {
            let text = String::from_utf8_lossy(&received);
            Ok(Some(text.trim_end().to_owned()))
        }
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(None),
        Err(error) => Err(error),
    }
}
