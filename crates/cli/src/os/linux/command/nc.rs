//! `hvsock nc`: connects standard input and output to a socket in a guest, or passes the connection on.

use std::io;
use std::pin::Pin;
use std::task::{self, Poll, ready};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use clap::Args;
use hvsock_services::forward::{Address, Fault, Transferred};
use hvsock_services::host::forward::{ForwardEnd, connect, connect_service};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;

use super::fd_pass;
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
    /// Send the connection's descriptor over standard output, a Unix socket, and end (for ssh's
    /// ProxyUseFdpass)
    #[arg(long)]
    fd_pass: bool,
}

impl Nc {
    pub fn run(self, context: &Context) -> Result<()> {
        let (action, socket) = match &self.socket {
            ForwardEnd::Socket(Address::Ssh) => ("ssh", String::new()),
            ForwardEnd::Socket(address) => ("nc", address.to_string()),
            ForwardEnd::Service(service) => ("nc", format!("service:{service}")),
        };
        let words = [socket.as_ref()];
        let words = &words[usize::from(socket.is_empty())..];
        let target = guest_services::target_for(context, &self.partition, action, words)?;
        if self.fd_pass && !fd_pass::is_relay() {
            return match &self.socket {
                ForwardEnd::Socket(_) => fd_pass::pass_relayed(),
                ForwardEnd::Service(service) => fd_pass::pass_service(context, &target, service),
            };
        }
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
            if self.fd_pass {
                return fd_pass::relay(tunnel).await;
            }
            let input = Input {
                chunks: stdio::chunks(),
                rest: Bytes::new(),
            };
            let output = Output(Some(File::from_std(stdio::output_file()?)));
            let relayed = tunnel
                .relay_halves(input, output, &Transferred::default())
                .await;
            relayed.map_err(|fault| match fault {
                // Only the output fails with EPIPE, never the input.
                Fault::Local(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    OutputGone.into()
                }
                Fault::Local(error) => {
                    Failure::new(format!("{error}; the connection was reset")).into()
                }
                fault => Failure::new(fault.to_string()).into(),
            })
        });
        // A thread may still block in a read of standard input.
        runtime.shutdown_background();
        result
    }
}

/// Standard input.
struct Input {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    /// The bytes of the last chunk that were not read yet.
    rest: Bytes,
}

impl AsyncRead for Input {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            match ready!(self.chunks.poll_recv(context)) {
                Some(Ok(chunk)) => self.rest = chunk,
                Some(Err(error)) => {
                    return Poll::Ready(Err(named(&error, "cannot read standard input")));
                }
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest.split_to(count));
        Poll::Ready(Ok(()))
    }
}

fn named(error: &io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
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
        let written = ready!(self.file()?.poll_write(context, bytes));
        Poll::Ready(written.map_err(|error| named(&error, "cannot write standard output")))
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
