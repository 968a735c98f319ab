//! `hvsock nc --fd-pass`: sends a connected descriptor over standard output, as ssh expects it from a ProxyCommand
//! with ProxyUseFdpass, and as `nc -F` of OpenBSD does.
//!
//! The descriptor of a connection to a service is the connection itself, so this program ends and no process copies
//! bytes. A socket in the guest is reached through its agent, in records that only this program understands. There a
//! second process of it relays: it is started with the environment variable [`RELAY`], one end of a socket pair as
//! its standard input, and a pipe as its standard output, which gets one byte when the connection is there.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use hvsock::{HvAddr, ServiceRef};
use hvsock_services::forward::{Socket, Transferred};
use hvsock_services::host::forward::Tunnel;
use hvsock_services::link::Target;

use crate::context::Context;
use crate::explain;
use crate::failure::{Ended, Failure};
use crate::os::stdio;

const RELAY: &str = "HVSOCK_INTERNAL_RELAY";
/// The timeout of a connect to a service.
const CONNECTING: Duration = Duration::from_secs(5);

/// Whether this process is to relay for another one of this program.
pub fn is_relay() -> bool {
    std::env::var_os(RELAY).is_some()
}

/// Connects to a service and passes the connection.
pub fn pass_service(context: &Context, target: &Target, service: &ServiceRef) -> Result<()> {
    let address = HvAddr::new(target.partition().clone(), service.clone());
    let options = target.options().timeout(CONNECTING).raw_fd(true);
    let connected = options.explain_refusal(true).connect(address.clone());
    let stream = connected.map_err(|error| explain::failure(context, error, &address, false))?;
    let fds = stream
        .into_owned_fds()
        .context("cannot pass the connection")?;
    // With the control connection the broker's messages end, not the connection.
    pass(fds.data.as_fd())
}

/// Starts a process that connects and relays, and passes the other end of its socket.
pub fn pass_relayed() -> Result<()> {
    let (passed, relayed) = UnixStream::pair().context("cannot create a socket pair")?;
    let (mut ready, write) = io::pipe().context("cannot create a pipe")?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("hvsock")
        .args(std::env::args_os().skip(1))
        .env(RELAY, "1")
        // A Ctrl-C at ssh is for what runs in its session.
        .process_group(0)
        .stdin(Stdio::from(OwnedFd::from(relayed)))
        .stdout(Stdio::from(OwnedFd::from(write)));
    let mut child = command.spawn().context("cannot start the relay")?;
    // It holds this process's copies.
    drop(command);
    if ready.read(&mut [0]).context("cannot wait for the relay")? == 0 {
        // It has printed the reason.
        let status = child.wait().context("cannot wait for the relay")?;
        let status = status.code().and_then(|code| u8::try_from(code).ok());
        return Err(Ended(status.unwrap_or(1)).into());
    }
    pass(passed.as_fd())
}

/// In the second process: relays between a tunnel and standard input.
pub async fn relay(tunnel: Tunnel) -> Result<()> {
    let socket = rustix::io::dup(rustix::stdio::stdin()).context("cannot use the socket")?;
    let socket = UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    let socket = tokio::net::UnixStream::from_std(socket).context("cannot use the socket")?;
    // Only the socket that is relayed keeps the other end's peer open.
    let null = std::fs::File::open("/dev/null").context("cannot open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).context("cannot close the input")?;
    let mut output = stdio::output()?;
    output
        .write_all(b"1")
        .context("cannot report the connection")?;
    drop(output);
    stdio::end_output()?;
    let relayed = tunnel
        .relay(Socket::Unix(socket), &Transferred::default())
        .await;
    relayed.map_err(|fault| Failure::new(fault.to_string()).into())
}

/// Sends a descriptor over standard output.
fn pass(descriptor: BorrowedFd<'_>) -> Result<()> {
    let output = rustix::stdio::stdout();
    match hvsock_sys::stream::send_with_descriptor(output, &[0], descriptor) {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOTSOCK.raw_os_error()) => {
            let text = "cannot pass the connection: standard output is not a Unix socket";
            Err(Failure::new(text)
                .help("give --fd-pass to ssh only, in a ProxyCommand with ProxyUseFdpass=yes")
                .into())
        }
        Err(error) => Err(error).context("cannot pass the connection over standard output"),
    }
}
