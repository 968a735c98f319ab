//! What happens in the demo, in order.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use hvsock::{Endpoint, HvListener};
use hvsock_address::{PartitionName, PartitionRef, ServiceId, ServiceRef, VmId};
use hvsock_broker::{Broker, BrokerConfig, Handle};
use hvsock_control::{NewContainer, PartitionState};
use hvsock_endpoint::Dirs;

use super::guest::{Answer, Order};
use super::narrator::Narrator;
use super::process::{GuestProcess, PATIENCE};
use super::props::{self, NAME, name, system_words};
use crate::os::linux::measure;
use crate::table::Columns;

const HOST: &str = "demo-host";
const GUEST: &str = "guest";

/// Runs the demo with all its state in `folder`.
pub fn tell(folder: &Path) -> Result<()> {
    let mut stage = Stage::set(folder)?;
    stage.partitions()?;
    stage.service()?;
    stage.talk()?;
    stage.refusals()?;
    stage.pause()?;
    stage.figures()?;
    stage.farewell()
}

struct Stage<'a> {
    folder: &'a Path,
    say: Narrator,
    guest: GuestProcess,
    endpoint: Endpoint,
    handle: Handle,
    /// Last, so that the guest ends first.
    _broker: Broker,
}

impl<'a> Stage<'a> {
    fn set(folder: &'a Path) -> Result<Self> {
        let mut config = BrokerConfig::new(Dirs {
            run: folder.to_owned(),
            config: folder.to_owned(),
        });
        config.partition = PartitionName::new(HOST)?;
        let broker = Broker::start(config)?;
        let handle = broker.handle();
        let guest = handle.add_container(NewContainer {
            name: PartitionName::new(GUEST)?,
            id: None,
            groups: Vec::new(),
        })?;
        let endpoint = guest.endpoint.context("the guest has no endpoint")?;
        Ok(Self {
            folder,
            say: Narrator::default(),
            guest: GuestProcess::start(&endpoint)?,
            endpoint: Endpoint::in_dir(folder),
            handle,
            _broker: broker,
        })
    }

    fn partitions(&mut self) -> Result<()> {
        self.say.chapter(
            "Two partitions",
            "A partition is a host, a virtual machine or a container. The broker owns one\n\
             partition's children, and gives each its own endpoint, the socket that says\n\
             which partition a process is in. Nothing a process says can change that.",
        )?;
        let broker = format!(
            "runs in this process, with all its state in {}",
            self.folder.display()
        );
        self.say.does("broker", &broker)?;
        self.say.does(
            "host",
            &format!("is this process, in the partition `{HOST}`"),
        )?;
        let pid = self.guest.id().context("the guest is no process here")?;
        let guest = format!("is process {pid}, in a partition of its own, a child of `{HOST}`");
        self.say.does("guest", &guest)
    }

    fn service(&mut self) -> Result<()> {
        self.say.chapter(
            "A service",
            "A service is a GUID with a friendly name. The owner of the host registers it\n\
             once; that is what permits partitions to talk to each other by it.",
        )?;
        self.say
            .command(&format!("hvsock service register '{NAME}'"))?;
        let service = props::register(&self.handle)?;
        self.say.good("broker", &service.id.to_string())
    }

    fn talk(&mut self) -> Result<()> {
        self.say.chapter(
            "Listen, connect, and end each half in its own time",
            "The guest connects to PARENT: it needs no name or address of the host, and the\n\
             same program runs in any container or virtual machine.",
        )?;
        let listener = self.listen()?;
        self.say
            .does("host", &format!("listens for \"{NAME}\" from its children"))?;
        let text = "Hello from the guest.";
        self.guest.tell(&Order::Talk {
            service: name()?,
            text: text.into(),
        })?;
        let (mut stream, _) = listener.accept_timeout(PATIENCE)?;
        let from = stream
            .peer()
            .map_or_else(String::new, |peer| peer.partition().to_owned());
        self.say.does(
            "guest",
            &format!("connects to PARENT, says \"{text}\", ends its half"),
        )?;
        let mut heard = String::new();
        stream.read_to_string(&mut heard)?;
        let host = format!("hears \"{heard}\" from `{from}`, and then the end");
        self.say.good("host", &host)?;
        let answer = format!("Hello {from}, I got {} bytes.", heard.len());
        stream.write_all(answer.as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        self.say.does(
            "host",
            "answers though the guest has ended its half, and ends its own",
        )?;
        match self.guest.answer()? {
            Answer::Heard(heard) if heard == answer => self
                .say
                .good("guest", &format!("hears \"{heard}\", and then the end")),
            other => bail!("the guest should have heard the answer: {other:?}"),
        }
    }

    fn refusals(&mut self) -> Result<()> {
        self.say.chapter(
            "Every refusal says why",
            "A connect that cannot work fails at once, with a reason for people and an errno\n\
             for programs. `hvsock why` tells the same without connecting.",
        )?;
        let nobody = ServiceId::random();
        self.say.does(
            "guest",
            &format!("connects to {nobody}, which is not registered"),
        )?;
        self.refused(nobody.into(), "hvsock service register NAME --id GUID")?;

        self.serve()?;
        self.hold("standing", false)?;
        self.say
            .does("guest", &format!("has a connection to \"{NAME}\""))?;
        self.say
            .command(&format!("hvsock service disable '{NAME}'"))?;
        self.handle.set_enabled(&name()?, false, None)?;
        self.cut("standing", "sees its connection cut")?;
        self.say.does("guest", "connects again")?;
        self.refused(name()?, &format!("hvsock service enable '{NAME}'"))?;
        self.handle.set_enabled(&name()?, true, None)?;
        Ok(())
    }

    fn pause(&mut self) -> Result<()> {
        self.say.chapter(
            "A partition is paused",
            "Connections of a paused virtual machine or container are cut, unless an end has\n\
             set HVSOCKET_CONNECTED_SUSPEND: then they stand still, and go on afterwards.",
        )?;
        self.serve()?;
        self.hold("without", false)?;
        self.hold("with", true)?;
        self.say.does(
            "guest",
            "has two connections, one with HVSOCKET_CONNECTED_SUSPEND",
        )?;
        self.say
            .command(&format!("hvsock container pause {GUEST}"))?;
        self.handle.set_state(&guest()?, PartitionState::Paused)?;
        self.cut("without", "without the option: is cut")?;
        match self.guest.ask(&Order::Ping {
            name: "with".into(),
            patience_ms: 300,
        })? {
            Answer::Silence => {
                self.say.does(
                    "guest",
                    "with the option: asks \"are you there?\"; nothing moves",
                )?;
            }
            other => bail!("the connection should stand still: {other:?}"),
        }
        self.say
            .command(&format!("hvsock container resume {GUEST}"))?;
        self.handle.set_state(&guest()?, PartitionState::Running)?;
        match self.guest.ask(&Order::Hear {
            name: "with".into(),
            patience_ms: 5000,
        })? {
            Answer::Heard(heard) => {
                let good = format!("with the option: hears \"{heard}\" come back, nothing is lost");
                self.say.good("guest", &good)
            }
            other => bail!("the connection should have gone on: {other:?}"),
        }
    }

    fn figures(&mut self) -> Result<()> {
        self.say.chapter(
            "Figures",
            "Between the two processes, by the broker, in turns with a plain Unix socket.",
        )?;
        let socket = self.folder.join("unix");
        measure::serve_unix(UnixListener::bind(&socket)?)?;
        let figures = match self.guest.ask(&Order::Measure {
            service: name()?,
            unix: socket,
            turns: 5,
            time_ms: 60,
        })? {
            Answer::Figures(figures) => figures,
            other => bail!("the guest should have measured: {other:?}"),
        };
        let mut table = Columns::new(&["", "hvsock", "unix socket", "ratio (least to most)"], "")
            .right(&[1, 2, 3]);
        for row in measure::rows(&figures) {
            table.row(row);
        }
        self.say.table(&table)?;
        props::counters(&self.say, &self.handle)
    }

    fn farewell(self) -> Result<()> {
        crate::output::text(
            "\nThat was all of it; nothing is left behind. To go on:\n   \
             hvsock broker                          in one terminal\n   \
             hvsock service register 'My Service'   in another\n   \
             hvsock --help\n",
        )
    }

    fn listen(&self) -> Result<HvListener> {
        let options = HvListener::options().endpoint(self.endpoint.clone());
        let listener = options.listen((VmId::CHILDREN, name()?));
        listener.context("the host cannot listen")
    }

    /// Echoes what comes over connections, until the listener is cut.
    fn serve(&self) -> Result<()> {
        Ok(measure::serve_ours(self.listen()?)?)
    }

    /// A connection of the guest that stands, and works.
    fn hold(&mut self, connection: &str, connected_suspend: bool) -> Result<()> {
        let hold = Order::Hold {
            name: connection.into(),
            service: name()?,
            connected_suspend,
        };
        let ping = Order::Ping {
            name: connection.into(),
            patience_ms: 5000,
        };
        for order in [hold, ping] {
            if let Answer::Failed { why, .. } = self.guest.ask(&order)? {
                bail!("the guest should have a connection: {why}");
            }
        }
        Ok(())
    }

    /// The guest tries to connect and is refused.
    fn refused(&mut self, service: ServiceRef, fix: &str) -> Result<()> {
        match self.guest.ask(&Order::Try { service })? {
            Answer::Failed { why, errno, .. } => {
                self.say.bad("guest", &format!("refused: {why}"))?;
                self.say
                    .aside(&format!("       a program sees {}", system_words(errno)))?;
                self.say.aside(&format!("       help: {fix}"))
            }
            other => bail!("the guest should have been refused: {other:?}"),
        }
    }

    /// A standing connection of the guest turns out to be cut.
    fn cut(&mut self, connection: &str, what: &str) -> Result<()> {
        let hear = Order::Hear {
            name: connection.into(),
            patience_ms: 5000,
        };
        match self.guest.ask(&hear)? {
            Answer::Failed { why, errno, .. } => {
                self.say.bad("guest", &format!("{what}: {why}"))?;
                self.say
                    .aside(&format!("       a program sees {}", system_words(errno)))
            }
            other => bail!("the connection should have been cut: {other:?}"),
        }
    }
}

fn guest() -> Result<PartitionRef> {
    Ok(PartitionRef::Name(PartitionName::new(GUEST)?))
}
