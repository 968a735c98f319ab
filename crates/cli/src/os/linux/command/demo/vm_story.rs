//! What happens in the demo with a virtual machine, in order.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hvsock::{ConnectOptions, Endpoint, HvListener, HvStream};
use hvsock_address::{PartitionName, PartitionRef, ServiceId, ServiceRef, VmId};
use hvsock_broker::{Broker, BrokerConfig, Handle};
use hvsock_control::NewVm;
use hvsock_endpoint::Dirs;
use hvsock_qemu::{Guest, Kit};

use super::guest::{Answer, Order};
use super::machine;
use super::narrator::Narrator;
use super::process::{GuestProcess, PATIENCE};
use super::props::{self, NAME, name, system_words};
use super::services;
use crate::context::Context;
use crate::os::Place;
use crate::os::linux::command::integration;
use crate::os::linux::host_services::HostServices;
use crate::os::linux::measure;

const HOST: &str = "demo-host";
const GUEST: &str = "web";
const LINE: &[u8] = b"are you there?\n";

/// Boots the guest and runs the demo, with all its state in `folder`.
pub fn tell(folder: &Path, kit: &Kit, context: &Context) -> Result<()> {
    let mut stage = Stage::set(folder, kit, context)?;
    stage.service()?;
    stage.guest_to_host()?;
    stage.host_to_guest()?;
    stage.refusals()?;
    stage.pause()?;
    stage.figures()?;
    stage.services()?;
    stage.farewell()
}

struct Stage {
    folder: PathBuf,
    say: Narrator,
    process: GuestProcess,
    machine: Guest,
    endpoint: Endpoint,
    handle: Handle,
    /// The service, once it is registered: a guest's kernel knows no names.
    service: ServiceId,
    began: Instant,
    /// Last, so that the guest ends first.
    _broker: Broker,
}

impl Stage {
    fn set(folder: &Path, kit: &Kit, context: &Context) -> Result<Self> {
        let began = Instant::now();
        let mut say = Narrator::default();
        let dirs = Dirs {
            run: folder.to_owned(),
            config: folder.to_owned(),
        };
        let mut config = BrokerConfig::new(dirs.clone());
        config.partition = PartitionName::new(HOST)?;
        config.built_in = integration::registrations();
        let broker = Broker::start(config)?;
        let handle = broker.handle();
        say.chapter(
            "A virtual machine",
            "The broker owns a virtio-vsock device for each virtual machine, and the VMM maps\n\
             the guest's memory into it. There is no network, and the guest needs nothing but\n\
             its kernel.",
        )?;
        say.command(&format!("hvsock vm add {GUEST}"))?;
        let partition = handle.add_vm(NewVm {
            name: PartitionName::new(GUEST)?,
            cid: None,
            id: None,
            groups: Vec::new(),
            unsealed_memory: false,
            user: None,
        })?;
        say.does(
            "broker",
            &format!("waits for the VMM of `{GUEST}`, {}", partition.id),
        )?;
        say.does(
            "qemu",
            "boots Linux in it, by translation, so that no KVM is needed",
        )?;
        let socket = dirs.vm_socket(GUEST);
        let machine = machine::boot(kit, GUEST, &socket, folder, context)?;
        let system = machine.run("uname -sr", PATIENCE)?.text();
        say.good(
            "guest",
            &format!(
                "{system}, ready after {:.1} s",
                began.elapsed().as_secs_f64()
            ),
        )?;
        let process = GuestProcess::attached(machine.attach("exec hvsock demo-guest")?)?;
        say.does(
            "guest",
            "runs this very program, `hvsock`, with the kernel's AF_VSOCK below it",
        )?;
        Ok(Self {
            folder: folder.to_owned(),
            say,
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
        self.say.chapter(
            "A service",
            "A service is a GUID with a friendly name, registered once on the host. A Linux\n\
             guest knows neither: it reaches the service by a vsock port that follows from the\n\
             GUID, the same on every machine.",
        )?;
        self.say
            .command(&format!("hvsock service register '{NAME}'"))?;
        let service = props::register(&self.handle)?;
        self.service = service.id;
        self.say.good("broker", &service.id.to_string())
    }

    fn guest_to_host(&mut self) -> Result<()> {
        self.say.chapter(
            "From the guest to the host",
            "The guest connects to PARENT, by the same program text as in a container.",
        )?;
        let listener = self.listen()?;
        self.say
            .does("host", &format!("listens for \"{NAME}\" from its children"))?;
        let text = "Hello from a virtual machine.";
        self.process.tell(&Order::Talk {
            service: self.service.into(),
            text: text.into(),
        })?;
        self.say.does(
            "guest",
            &format!("connects to PARENT, says \"{text}\", ends its half"),
        )?;
        let (mut stream, _) = match listener.accept_timeout(PATIENCE) {
            Ok(accepted) => accepted,
            Err(error) => bail!(
                "nobody came: {error}; the guest: {:?}",
                self.process.answer()?
            ),
        };
        let from = stream
            .peer()
            .map_or_else(String::new, |peer| peer.partition().to_owned());
        let mut heard = String::new();
        stream.read_to_string(&mut heard)?;
        let host = format!("hears \"{heard}\" from `{from}`, and then the end");
        self.say.good("host", &host)?;
        let answer = format!("Hello {from}, I got {} bytes.", heard.len());
        stream.write_all(answer.as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        match self.process.answer()? {
            Answer::Heard(heard) if heard == answer => self
                .say
                .good("guest", &format!("hears \"{heard}\", and then the end")),
            other => bail!("the guest should have heard the answer: {other:?}"),
        }
    }

    fn host_to_guest(&mut self) -> Result<()> {
        self.say.chapter(
            "From the host to the guest",
            "The host reaches into the machine by its name.",
        )?;
        let serve = Order::Serve {
            service: self.service.into(),
        };
        match self.process.ask(&serve)? {
            Answer::Heard(_) => self.say.does("guest", "listens, and echoes what comes")?,
            other => bail!("the guest should listen: {other:?}"),
        }
        self.say
            .command(&format!("hvsock connect {GUEST} '{NAME}'"))?;
        let mut stream = self.connect(false)?;
        let text = "Hello from the host.";
        stream.write_all(text.as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        let mut heard = String::new();
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.read_to_string(&mut heard)?;
        if heard != text {
            bail!("the host should have heard {text:?}, not {heard:?}");
        }
        self.say.good(
            "host",
            &format!("says \"{text}\", ends its half, and hears it back, and then the end"),
        )
    }

    fn refusals(&mut self) -> Result<()> {
        self.say.chapter(
            "Every refusal comes at once",
            "A packet of the guest's kernel has no room for a reason, but it need not wait for\n\
             one either. The host knows why.",
        )?;
        let nobody = ServiceId::random();
        self.say.does(
            "guest",
            &format!("connects to {nobody}, which is not registered"),
        )?;
        self.refused(nobody)?;
        self.why(nobody)?;

        let listener = self.listen()?;
        measure::serve_ours(listener)?;
        let hold = Order::Hold {
            name: "standing".into(),
            service: self.service.into(),
            connected_suspend: false,
        };
        let ping = Order::Ping {
            name: "standing".into(),
            patience_ms: 10_000,
        };
        for order in [hold, ping] {
            if let Answer::Failed { why, .. } = self.process.ask(&order)? {
                bail!("the guest should have a connection: {why}");
            }
        }
        self.say
            .does("guest", &format!("has a connection to \"{NAME}\""))?;
        self.say
            .command(&format!("hvsock service disable '{NAME}'"))?;
        self.handle.set_enabled(&name()?, false, None)?;
        let hear = Order::Hear {
            name: "standing".into(),
            patience_ms: 10_000,
        };
        match self.process.ask(&hear)? {
            // What a guest's kernel makes of a reset is an end.
            Answer::Failed { .. } => self.say.bad("guest", "sees its connection end")?,
            other => bail!("the connection should have been cut: {other:?}"),
        }
        self.say.does("guest", "connects again")?;
        self.refused(self.service)?;
        self.why(self.service)?;
        self.handle.set_enabled(&name()?, true, None)?;
        Ok(())
    }

    fn pause(&mut self) -> Result<()> {
        self.say.chapter(
            "The virtual machine is paused",
            "The broker sees it from what the VMM says. Connections are cut, unless an end has set\n\
             HVSOCKET_CONNECTED_SUSPEND: then they stand still, and go on afterwards.",
        )?;
        let mut without = self.connect(false)?;
        let mut with = self.connect(true)?;
        for stream in [&mut without, &mut with] {
            stream.write_all(LINE)?;
            hear(stream, PATIENCE)?.context("the guest should echo")?;
        }
        self.say.does(
            "host",
            "has two connections to the guest, one with HVSOCKET_CONNECTED_SUSPEND",
        )?;
        self.say.does("qemu", "stops the machine")?;
        self.machine.pause()?;
        match hear(&mut without, PATIENCE) {
            Err(error) => self
                .say
                .bad("host", &format!("without the option: is cut: {error}"))?,
            Ok(heard) => bail!("the connection should have been cut, not {heard:?}"),
        }
        with.write_all(LINE)?;
        match hear(&mut with, Duration::from_millis(300))? {
            None => self.say.does(
                "host",
                "with the option: asks \"are you there?\"; nothing moves",
            )?,
            Some(heard) => bail!("the connection should stand still, not {heard:?}"),
        }
        self.say.does("qemu", "lets the machine go on")?;
        self.machine.resume()?;
        let heard = hear(&mut with, PATIENCE)?.context("the connection should have gone on")?;
        let good = format!("with the option: hears \"{heard}\" come back, nothing is lost");
        self.say.good("host", &good)
    }

    fn figures(&mut self) -> Result<()> {
        self.say.chapter(
            "Figures",
            "What went over the device. `cargo xtask bench vm` says how fast it is without an\n\
             emulated processor in the way.",
        )?;
        props::counters(&self.say, &self.handle)
    }

    fn services(&mut self) -> Result<()> {
        self.say.chapter(
            "Into the guest",
            "Integration services are services like any other, and built in. In the guest an\n\
             agent offers them to its host, and to nobody else.",
        )?;
        let _host = HostServices::start(&self.handle, self.endpoint.clone())?;
        match self.process.ask(&Order::Agent)? {
            Answer::Heard(_) => self
                .say
                .does("guest", "runs the agent, as `hvsock-agent` does")?,
            other => bail!("the guest should run the agent: {other:?}"),
        }
        services::show(&self.say, &self.endpoint, &guest()?, &self.folder)
    }

    fn farewell(self) -> Result<()> {
        let took = self.began.elapsed().as_secs_f64();
        crate::output::text(&format!(
            "\nThat was all of it, in {took:.0} s; nothing is left behind. To go on:\n   \
             hvsock broker              in one terminal\n   \
             hvsock vm add NAME         in another: says what to add to QEMU's command line\n   \
             hvsock --help\n"
        ))
    }

    fn listen(&self) -> Result<HvListener> {
        let options = HvListener::options().endpoint(self.endpoint.clone());
        let listener = options.listen((VmId::CHILDREN, name()?));
        listener.context("the host cannot listen")
    }

    /// A connection from the host into the guest; its first byte asks for an echo.
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
        let order = Order::Try {
            service: service.into(),
        };
        match self.process.ask(&order)? {
            Answer::Failed {
                errno, after_ms, ..
            } => self.say.bad(
                "guest",
                &format!("is refused after {after_ms} ms: {}", system_words(errno)),
            ),
            other => bail!("the guest should have been refused: {other:?}"),
        }
    }

    /// Why, as the host's owner hears it.
    fn why(&self, service: ServiceId) -> Result<()> {
        let shown = if service == self.service {
            format!("'{NAME}'")
        } else {
            service.to_string()
        };
        self.say
            .command(&format!("hvsock why parent {shown} --from {GUEST}"))?;
        let service = ServiceRef::from(service);
        let parent = PartitionRef::Id(VmId::PARENT);
        let client = Place::in_dir(&self.folder).client()?;
        let explained = client.explain_connect(Some(&guest()?), &parent, &service)?;
        self.say.does("broker", &explained.verdict)
    }
}

fn guest() -> Result<PartitionRef> {
    Ok(PartitionRef::Name(PartitionName::new(GUEST)?))
}

/// A line that comes within this time.
fn hear(stream: &mut HvStream, patience: Duration) -> io::Result<Option<String>> {
    stream.set_read_timeout(Some(patience))?;
    let mut heard = [0; LINE.len()];
    match stream.read_exact(&mut heard) {
        Ok(()) => {
            let text = String::from_utf8_lossy(&heard);
            Ok(Some(text.trim_end().to_owned()))
        }
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(None),
        Err(error) => Err(error),
    }
}
