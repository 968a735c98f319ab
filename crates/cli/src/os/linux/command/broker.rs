//! `hvsock broker`: runs the broker in the foreground, for a shell or a service manager.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use hvsock::Endpoint;
use hvsock_address::PartitionName;
use hvsock_broker::{
    AuditOutput, BrokerConfig, CdiConfig, CdiHook, OnFatal, OnHandover, TakeOverError, TakenOver,
    Uplink, sandbox,
};
use hvsock_endpoint::Dirs;
use hvsock_log::Summaries;
use hvsock_sys::machine::Machine;
use hvsock_sys::{accounts, journal};
use hvsock_text::printable_path;
use tracing_subscriber::filter::{LevelFilter, Targets};

use super::built_in;
use super::hook_command::{self, CREATE_RUNTIME, POSTSTOP};
use crate::context::Context;
use crate::failure::Failure;
use crate::format::shell_word;
use crate::os::linux::descriptor_store;
use crate::os::linux::host_services::HostServices;
use crate::os::linux::seccomp_agent::Agent;
use crate::os::linux::service_manager;
use crate::os::linux::signals::{End, Termination};
use crate::os::linux::successor;
use crate::output;

/// Run the broker until Ctrl-C or SIGTERM
#[derive(Debug, Args)]
pub struct Broker {
    /// The name of this partition for other partitions [default: the host name]
    #[arg(long)]
    name: Option<PartitionName>,
    /// The number of data threads [default: one per processor, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    data_threads: Option<u16>,
    /// Copy the bytes of every connection in the broker, instead of sharing memory between the two
    /// processes; this is slower, but a close or a pause then works against a hostile process
    #[arg(long)]
    no_shared_memory: bool,
    /// The group whose members may do all that root may: change everything, and use every guest's
    /// services as root there [default: hvsock, for a broker of root on a machine with that group]
    #[arg(long, value_name = "GROUP")]
    operator_group: Option<String>,
    /// Write the CDI devices of containers there [default: /etc/cdi, ~/.config/cdi for a user's broker, DIR/cdi
    /// with --dir]
    #[arg(long, value_name = "DIR", conflicts_with = "no_cdi")]
    cdi_dir: Option<PathBuf>,
    /// Write no CDI devices
    #[arg(long)]
    no_cdi: bool,
    /// Do not answer socket calls of unmodified programs in containers
    #[arg(long)]
    no_seccomp_agent: bool,
    /// Restrict the system calls, files and capabilities of the broker's threads; `strict` ends the broker at the first
    /// system call that a thread is not expected to make
    #[arg(
        long,
        value_name = "HOW",
        env = "HVSOCK_SANDBOX",
        default_value = "off",
        hide_env_values = true
    )]
    sandbox: Sandbox,
    /// In a virtual machine, join the broker of the host: `off` makes this machine a host of its own, `required`
    /// is an error on a machine without a host
    #[arg(
        long,
        value_name = "WHEN",
        env = "HVSOCK_UPLINK",
        default_value = "auto",
        hide_env_values = true
    )]
    uplink: UplinkWhen,
    /// Take over the broker that runs with the same folders: all that it has goes on here, and that one ends. If
    /// anything fails, it goes on
    #[arg(long)]
    take_over: bool,
    /// Do everything but the last step: the running broker goes on, after a moment's standstill
    #[arg(long, requires = "take_over")]
    dry_run: bool,
    /// Where the audit is written [default: the journal if the system has one, else the log]
    #[arg(long, value_name = "WHERE")]
    audit: Option<AuditTo>,
    /// Report a thread that works for so long without a pause as stuck. After three times that, the broker ends if it
    /// cannot go on without it [default: 10]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u16).range(1..))]
    hang_after: Option<u16>,
}

/// How the broker confines itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sandbox {
    /// An unexpected system call fails, is logged, and is shown by `hvsock status`
    On,
    /// An unexpected system call ends the broker
    Strict,
    /// Not at all
    Off,
}

/// When the broker of the host is joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum UplinkWhen {
    /// In a virtual machine with a vsock device
    Auto,
    /// Never
    Off,
    /// Always
    Required,
}

impl UplinkWhen {
    /// Whether there is a host to join.
    fn is_to_be(self) -> bool {
        match self {
            Self::Auto => Machine::is_certainly_guest(),
            Self::Off => false,
            Self::Required => true,
        }
    }
}

impl From<UplinkWhen> for Uplink {
    fn from(when: UplinkWhen) -> Self {
        match when {
            UplinkWhen::Auto => Self::Auto,
            UplinkWhen::Off => Self::Off,
            UplinkWhen::Required => Self::Required,
        }
    }
}

/// Where the audit is written, besides the memory of the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AuditTo {
    /// The system's journal
    Journal,
    /// The broker's log
    Log,
    /// Nowhere else
    None,
}

impl AuditTo {
    /// The default.
    fn choose() -> Self {
        match Path::new(journal::SOCKET).exists() {
            true => Self::Journal,
            false => Self::Log,
        }
    }

    fn output(self) -> AuditOutput {
        match self {
            Self::Journal => AuditOutput::Journal(journal::SOCKET.into()),
            Self::Log => AuditOutput::Log,
            Self::None => AuditOutput::None,
        }
    }
}

/// After how many seconds a runtime ends a hook that has not ended by itself.
const HOOK_TIMEOUT: u32 = 10;

/// How long the process of a broker that was taken over may take to end.
const PREDECESSOR: Duration = Duration::from_secs(10);

/// The group of operators that packages create, as docker's and libvirt's do.
const OPERATOR_GROUP: &str = "hvsock";

impl Broker {
    pub fn run(self, context: &Context) -> Result<()> {
        // Before there are other threads, which have what this one has.
        let mode = match self.sandbox {
            Sandbox::On => Some(sandbox::Mode::Deny),
            Sandbox::Strict => Some(sandbox::Mode::Kill),
            Sandbox::Off => None,
        };
        if let Some(mode) = mode {
            sandbox::enable(mode).context("cannot start a thread")?;
        }
        // Dropped last: it logs what the rate limit has left out until then.
        let _summaries = log(context.quiet);
        if mode.is_some() {
            for missing in sandbox::missing() {
                tracing::warn!("{missing}");
            }
        }
        let mut termination = Termination::catch().context("cannot catch signals")?;
        let mut config = BrokerConfig::new(context.broker.dirs()?);
        if let Some(name) = self.name {
            config.partition = name;
        }
        if let Some(threads) = self.data_threads {
            config.data_threads = threads.into();
        }
        config.shared_memory = !self.no_shared_memory;
        config.audit = self.audit.unwrap_or_else(AuditTo::choose).output();
        config.uplink = self.uplink.into();
        config.built_in = built_in::registrations(self.uplink.is_to_be());
        config.operator_group = operator_group(self.operator_group)?;
        if !self.no_cdi {
            config.cdi = Some(cdi(&config.dirs, self.cdi_dir)?);
        }
        let dirs = config.dirs.clone();
        let endpoint = dirs.endpoint();
        config.successor = successor::find();
        config.on_handover = Some(OnHandover(Arc::new(service_manager::notify_handover)));
        if let Some(seconds) = self.hang_after {
            config.watchdog.limit = Duration::from_secs(seconds.into());
        }
        config.watchdog.service_manager = service_manager::watchdog();
        config.watchdog.on_fatal = Some(OnFatal(Arc::new(abort)));
        let (mut broker, how) = match self.take_over {
            false => match descriptor_store::restore(&config) {
                Some(restored) => restored,
                None => (hvsock_broker::Broker::start(config)?, String::new()),
            },
            true => match take_over(config, self.dry_run)? {
                Some(taken) => taken,
                None => return Ok(()),
            },
        };
        let services = HostServices::start(&broker.handle(), Endpoint::at(&endpoint));
        let services = services.context("cannot offer the integration services")?;
        if !self.no_seccomp_agent {
            start_agent(&dirs);
        }
        output::line(format_args!(
            "hvsock broker ready{how}: endpoint {}",
            printable_path(&endpoint)
        ))?;
        service_manager::notify("READY=1");
        let handle = broker.handle();
        let signalled = termination.wait_or_readable(broker.handed_over(), || handle.reload());
        let Some(signal) = signalled.context("cannot wait for signals")? else {
            broker.wait_for_last_answer();
            // Its sockets are those of the new broker now. It ends with the process.
            std::mem::forget(services);
            return Ok(());
        };
        service_manager::notify("STOPPING=1");
        if signal == End::Terminate && descriptor_store::store(&mut broker) {
            std::mem::forget(services);
            return Ok(());
        }
        drop(services);
        drop(broker);
        Ok(())
    }
}

/// Takes the running broker over. Returns how, for the first line; `None` after a dry run.
fn take_over(
    config: BrokerConfig,
    dry_run: bool,
) -> Result<Option<(hvsock_broker::Broker, String)>> {
    let taken = hvsock_broker::Broker::take_over(config, dry_run).map_err(|error| {
        let help = match &error {
            TakeOverError::NotRunning { .. } => Some("hvsock broker"),
            _ => None,
        };
        let failure = Failure::new(error.to_string());
        match help {
            Some(help) => failure.help(help),
            None => failure,
        }
    })?;
    match taken {
        TakenOver::Broker {
            broker,
            from,
            predecessor,
        } => {
            // Two of them would be in each other's way.
            if !predecessor.wait_for_end(PREDECESSOR) {
                tracing::warn!("the process of the broker before does not end; stop it");
            }
            Ok(Some((broker, format!(", in place of hvsock {from}"))))
        }
        TakenOver::Fresh(broker) => {
            let how = ", without the state of the one before, which had ended".to_owned();
            Ok(Some((broker, how)))
        }
        TakenOver::DryRun => {
            output::line("the running broker could be taken over, and goes on")?;
            Ok(None)
        }
    }
}

/// Ends the process, of which a thread hangs or is gone that all others need. Nothing can be cleaned up then: the
/// kernel closes everything, and the service manager starts the next broker.
fn abort(why: &str) {
    tracing::error!("the broker ends, because {why}");
    std::process::abort();
}

/// Answers calls of containers. A broker without that is one all the same.
fn start_agent(dirs: &Dirs) {
    let started = Agent::bind(dirs).and_then(|agent| Ok(agent.start()?));
    if let Err(error) = started {
        let path = dirs.seccomp_agent();
        let path = printable_path(&path);
        tracing::warn!("does not answer calls of containers at {path}: {error:#}");
    }
}

/// Where the CDI devices are, and their hooks.
fn cdi(dirs: &Dirs, folder: Option<PathBuf>) -> Result<CdiConfig> {
    let folder = folder.map(std::path::absolute).transpose();
    let folder = folder.context("cannot find the working directory")?;
    let hook = |hook: (&'static str, &str)| -> std::io::Result<CdiHook> {
        let (path, args) = hook_command::of_broker(&dirs.run, hook)?;
        Ok(CdiHook {
            name: hook.0,
            path,
            args,
            timeout_seconds: Some(HOOK_TIMEOUT),
        })
    };
    let hooks = [CREATE_RUNTIME, POSTSTOP]
        .map(hook)
        .into_iter()
        .collect::<std::io::Result<_>>();
    Ok(CdiConfig {
        folder: folder.unwrap_or_else(|| dirs.cdi()),
        hooks: hooks.unwrap_or_else(|error| {
            tracing::warn!("the devices of containers have no hooks: {error}");
            Vec::new()
        }),
    })
}

/// The number and name of the group of operators.
fn operator_group(given: Option<String>) -> Result<Option<(u32, String)>> {
    match given {
        // An empty name is no group.
        Some(name) if name.is_empty() => Ok(None),
        Some(name) => match accounts::gid(&name) {
            Some(gid) => Ok(Some((gid, name))),
            None => Err(Failure::new(format!("/etc/group has no group \"{name}\""))
                .help(format!("groupadd --system {}", shell_word(&name)))
                .into()),
        },
        None if !rustix::process::geteuid().is_root() => Ok(None),
        None => {
            let name = OPERATOR_GROUP.to_owned();
            Ok(accounts::gid(&name).map(|gid| (gid, name)))
        }
    }
}

/// Logs to stderr. The journal adds its own times.
///
/// `RUST_LOG` takes levels per target (`info,hvsock_broker=debug`). Filters on span fields would need
/// regular expressions, which take as long to build as the rest of the logging.
pub fn log(quiet: bool) -> Summaries {
    let default = if quiet {
        LevelFilter::ERROR
    } else {
        LevelFilter::INFO
    };
    let requested = env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let parsed = requested.as_deref().map(str::parse::<Targets>);
    let filter = match &parsed {
        Some(Ok(targets)) => targets.clone(),
        _ => Targets::new().with_default(default),
    };
    let summaries = hvsock_log::init(filter, env::var_os("JOURNAL_STREAM").is_none());
    if let Some(Err(error)) = parsed {
        tracing::warn!(%error, "RUST_LOG is invalid and was ignored");
    }
    summaries
}
