//! `hvsock nc`: connects standard input and output to a socket in a guest.

use std::io;
use std::pin::Pin;
use std::task::{self, Poll, ready};

use anyhow::{Context as _, Result};
use clap::Args;
use hvsock_services::forward::{Fault, Transferred};
use hvsock_services::host::forward::{ForwardEnd, connect, connect_service};
use tokio::fs::File;
use tokio::io::AsyncWrite;

use super::forward::{failure, parse_end};
use crate::context::Context;
use crate::failure::{Failure, OutputGone};
use crate::os::{Partition, guest_services, stdio};

/// Connect standard input and output to a socket in a guest
#[derive(Debug, Args)]
pub struct Nc {
    /// The virtual machine or container, by name or GUID
    #[arg(value_name = "VM")]
    partition: Partition,
    /// The socket in the guest
    #[arg(value_parser = parse_end, value_name = "SOCKET")]
    socket: ForwardEnd,
}

impl Nc {
    pub fn run(self, context: &Context) -> Result<()> {
        let target = guest_services::target(context, &self.partition)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        let result = runtime.block_on(async {
            let tunnel = match &self.socket {
                ForwardEnd::Socket(address) => connect(&target, address).await,
                ForwardEnd::Service(service) => connect_service(&target, service).await,
            };
            let tunnel = tunnel.map_err(|error| failure(context, error))?;
            let input = File::from_std(stdio::input_file()?);
            let output = Output(Some(File::from_std(stdio::output_file()?)));
            let relayed = tunnel
                .relay_halves(input, output, &Transferred::default())
                .await;
            relayed.map_err(|fault| match fault {
                // Only the output fails with EPIPE, never the input.
                Fault::Local(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    OutputGone.into()
                }
                fault => Failure::new(fault.to_string()).into(),
            })
        });
        // A thread may still block in a read of standard input.
        runtime.shutdown_background();
        result
    }
}

/// Standard output, which is closed at the peer's half-close.
struct Output(Option<File>);

impl Output {
    fn file(&mut self) -> io::Result<Pin<&mut File>> {
        let file = self.0.as_mut().map(Pin::new);
        file.ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

impl AsyncWrite for Output {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.file()?.poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> Poll<io::Result<()>> {
        self.file()?.poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.file()?.poll_flush(context))?;
        self.0 = None;
        Poll::Ready(stdio::end_output().map_err(io::Error::other))
    }
}
