//! The steps of the demo with a process as the guest, in order.

use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use hvsock::{Endpoint, HvListener};
use hvsock_address::{PartitionName, PartitionRef, ServiceId, ServiceRef, VmId};
use hvsock_broker::{Broker, BrokerConfig, Handle};
use hvsock_control::{NewContainer, PartitionState};
use hvsock_endpoint::Dirs;

use super::guest::{Command, Reply};
use super::narrator::Narrator;
use super::process::{GuestProcess, REPLY_TIMEOUT};
use super::props::{self, NAME, errno_text, name};
use crate::os::linux::measure;
use crate::table::Columns;

const HOST: &str = "demo-host";
const GUEST: &str = "guest";

/// Runs the demo with all its state in `folder`.
pub fn run(folder: &Path) -> Result<()> {
    let mut stage = Stage::set_up(folder)?;
    stage.partitions()?;
    stage.service()?;
    stage.exchange()?;
    stage.refusals()?;
    stage.pause()?;
    stage.figures()?;
    stage.finish()
}

struct Stage<'a> {
    folder: &'a Path,
    narrator: Narrator,
    guest: GuestProcess,
    endpoint: Endpoint,
    handle: Handle,
    /// The last field, so that it is dropped after the guest.
    _broker: Broker,
}

impl<'a> Stage<'a> {
    fn set_up(folder: &'a Path) -> Result<Self> {
        let mut config = BrokerConfig::new(Dirs {
            run: folder.to_owned(),
            config: folder.to_owned(),
        });
        config.partition = PartitionName::new(HOST)?;
        let broker = Broker::start(config)?;
        let handle = broker.handle();
        let guest = handle.add_container(NewContainer::new(PartitionName::new(GUEST)?))?;
        let endpoint = guest.endpoint.context("the guest has no endpoint")?;
        Ok(Self {
            folder,
            narrator: Narrator::default(),
            guest: GuestProcess::start(&endpoint)?,
            endpoint: Endpoint::in_dir(folder),
            handle,
            _broker: broker,
        })
    }

    fn partitions(&mut self) -> Result<()> {
        self.narrator.chapter(
            "Two partitions",
            "A partition is a host, a virtual machine or a container. The broker gives each\n\
             child partition an endpoint of its own, a socket. The endpoint decides which\n\
             partition a process is in. The process cannot change that.",
        )?;
        let broker = format!(
            "runs in this process, with its state in {}",
            self.folder.display()
        );
        self.narrator.does("broker", &broker)?;
        self.narrator.does(
            "host",
            &format!("is this process, in the partition `{HOST}`"),
        )?;
        let pid = self.guest.id().context("the guest has no process id")?;
        let guest = format!("is process {pid}, in a partition of its own, a child of `{HOST}`");
        self.narrator.does("guest", &guest)
    }

    fn service(&mut self) -> Result<()> {
        self.narrator.chapter(
            "A service",
            "A service is a GUID with a friendly name. The owner of the host registers it\n\
             once. Partitions can then listen and connect by this name.",
        )?;
        self.narrator
            .command(&format!("hvsock service register '{NAME}'"))?;
        let service = props::register(&self.handle)?;
        self.narrator.good("broker", &service.id.to_string())
    }

    fn exchange(&mut self) -> Result<()> {
        self.narrator.chapter(
            "Listen, connect, and shut down each half separately",
            "The guest connects to PARENT. It needs no name or address of the host, so the\n\
             same program runs in any container or virtual machine.",
        )?;
        let listener = self.listen()?;
        self.narrator
            .does("host", &format!("listens for \"{NAME}\" from its children"))?;
        let text = "Hello from the guest.";
        self.guest.send(&Command::Exchange {
            service: name()?,
            text: text.into(),
        })?;
        let (mut stream, _) = listener.accept_timeout(REPLY_TIMEOUT)?;
        self.narrator.does(
            "guest",
            &format!("connects to PARENT, sends \"{text}\", shuts down its half"),
        )?;
        let answer = props::answer(&self.narrator, &mut stream)?;
        self.narrator.does(
            "host",
            "answers on the half that is still open, then shuts it down",
        )?;
        props::answered(&self.narrator, self.guest.reply()?, &answer)
    }

    fn refusals(&mut self) -> Result<()> {
        self.narrator.chapter(
            "Every refusal has a reason",
            "A connect that cannot succeed fails at once, with a reason for people and an\n\
             errno for programs. `hvsock why` explains it without connecting.",
        )?;
        let unknown = ServiceId::random();
        self.narrator.does(
            "guest",
            &format!("connects to {unknown}, which is not registered"),
        )?;
        self.refused(unknown.into(), "hvsock service register NAME --id GUID")?;

        self.serve()?;
        self.open("existing", false)?;
        self.narrator
            .does("guest", &format!("has a connection to \"{NAME}\""))?;
        self.narrator
            .command(&format!("hvsock service disable '{NAME}'"))?;
        self.handle.set_enabled(&name()?, false, None)?;
        self.closed("existing", "sees its connection closed")?;
        self.narrator.does("guest", "connects again")?;
        self.refused(name()?, &format!("hvsock service enable '{NAME}'"))?;
        self.handle.set_enabled(&name()?, true, None)?;
        Ok(())
    }

    fn pause(&mut self) -> Result<()> {
        self.narrator.chapter(
            "A partition is paused",
            "The connections of a paused virtual machine or container are closed. Those with\n\
             the option HVSOCKET_CONNECTED_SUSPEND are suspended instead, and continue later.",
        )?;
        self.serve()?;
        self.open("without", false)?;
        self.open("with", true)?;
        self.narrator.does(
            "guest",
            "has two connections, one with HVSOCKET_CONNECTED_SUSPEND",
        )?;
        self.narrator
            .command(&format!("hvsock container pause {GUEST}"))?;
        self.handle.set_state(&guest()?, PartitionState::Paused)?;
        self.closed("without", "without the option: closed")?;
        match self.guest.run(&Command::Ping {
            name: "with".into(),
            timeout_ms: 300,
        })? {
            Reply::TimedOut => {
                self.narrator.does(
                    "guest",
                    "with the option: sends \"are you there?\", gets no answer yet",
                )?;
            }
            other => bail!("the connection should be suspended, not {other:?}"),
        }
        self.narrator
            .command(&format!("hvsock container resume {GUEST}"))?;
        self.handle.set_state(&guest()?, PartitionState::Running)?;
        match self.guest.run(&Command::Receive {
            name: "with".into(),
            timeout_ms: 5000,
        })? {
            Reply::Received(received) => {
                let good = format!("with the option: receives \"{received}\", nothing is lost");
                self.narrator.good("guest", &good)
            }
            other => bail!("the connection should have been resumed, not {other:?}"),
        }
    }

    fn figures(&mut self) -> Result<()> {
        self.narrator.chapter(
            "Figures",
            "Between the two processes through hvsock, in turns with a Unix socket.",
        )?;
        let socket = self.folder.join("unix");
        measure::serve_unix(UnixListener::bind(&socket)?)?;
        let figures = match self.guest.run(&Command::Measure {
            service: name()?,
            unix: socket,
            turns: 5,
            time_ms: 60,
        })? {
            Reply::Figures(figures) => figures,
            other => bail!("the guest should have measured, not {other:?}"),
        };
        let mut table = Columns::new(&["", "hvsock", "unix socket", "ratio (min to max)"], "")
            .right(&[1, 2, 3]);
        for row in measure::rows(&figures) {
            table.row(row);
        }
        self.narrator.table(&table)?;
        props::counters(&self.narrator, &self.handle)
    }

    fn finish(self) -> Result<()> {
        crate::output::text(
            "\nThe demo is complete and leaves nothing behind. Next steps:\n   \
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

    /// Listens, and echoes the data of all connections until the listener is closed.
    fn serve(&self) -> Result<()> {
        Ok(measure::serve_hvsock(self.listen()?)?)
    }

    /// Opens a connection of the guest, and checks that it works.
    fn open(&mut self, connection: &str, connected_suspend: bool) -> Result<()> {
        let open = Command::Open {
            name: connection.into(),
            service: name()?,
            connected_suspend,
        };
        let ping = Command::Ping {
            name: connection.into(),
            timeout_ms: 5000,
        };
        for command in [open, ping] {
            if let Reply::Failed { why, .. } = self.guest.run(&command)? {
                bail!("the guest should have a connection: {why}");
            }
        }
        Ok(())
    }

    /// The guest tries to connect and is refused.
    fn refused(&mut self, service: ServiceRef, fix: &str) -> Result<()> {
        match self.guest.run(&Command::TryConnect { service })? {
            Reply::Failed { why, errno, .. } => {
                self.narrator.bad("guest", &format!("refused: {why}"))?;
                self.narrator
                    .aside(&format!("       a program sees {}", errno_text(errno)))?;
                self.narrator.aside(&format!("       help: {fix}"))
            }
            other => bail!("the guest should have been refused, not {other:?}"),
        }
    }

    /// Checks that an open connection of the guest was closed by the broker.
    fn closed(&mut self, connection: &str, what: &str) -> Result<()> {
        let receive = Command::Receive {
            name: connection.into(),
            timeout_ms: 5000,
        };
        match self.guest.run(&receive)? {
            Reply::Failed { why, errno, .. } => {
                self.narrator.bad("guest", &format!("{what}: {why}"))?;
                self.narrator
                    .aside(&format!("       a program sees {}", errno_text(errno)))
            }
            other => bail!("the connection should have been closed, not {other:?}"),
        }
    }
}

fn guest() -> Result<PartitionRef> {
    Ok(PartitionRef::Name(PartitionName::new(GUEST)?))
}
