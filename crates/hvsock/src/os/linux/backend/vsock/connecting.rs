//! A connect in its stages: the names of its address are looked up, the socket connects, and if the host refuses
//! it, the host is asked why.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use hvsock_address::{ServiceId, SockAddrHv, SockAddrVm, UPLINK_PORT, VmId};
use hvsock_endpoint::uplink::What;
use hvsock_sys::poll::PollFlags;
use hvsock_sys::{errno, vsock};

use super::buffer::size_buffer;
use super::host_query::{HostQuery, NoAnswer};
use super::resolve::ConnectTarget;
use super::{Stream, host, refusal};
use crate::backend::{Request, RequestKind};
use crate::os::ready;
use crate::{Verdict, error};
use hvsock_sys::machine::Machine;

/// How long the host may take to say why it has refused a connect.
const REASON_TIMEOUT: Duration = Duration::from_millis(500);

/// A connect. It does not wait by itself: see [`step`](Self::step).
#[derive(Debug)]
pub(super) struct Connecting {
    machine: Machine,
    request: Request,
    timeout: Duration,
    deadline: Instant,
    stage: Stage,
    /// Changes with each stage, which has another descriptor.
    stage_number: u64,
}

#[derive(Debug)]
enum Stage {
    LookingUp(HostQuery),
    Connecting(Attempt),
    /// The connect is refused.
    Explaining {
        query: HostQuery,
        until: Instant,
        target: ConnectTarget,
        error: i32,
    },
    /// It has ended.
    Over,
}

/// A socket that connects.
#[derive(Debug)]
struct Attempt {
    socket: OwnedFd,
    target: ConnectTarget,
}

impl Connecting {
    /// Starts a connect.
    pub(super) fn start(machine: Machine, request: &Request) -> io::Result<Self> {
        let RequestKind::Connect { timeout_ms } = request.kind else {
            return Err(error::invalid_input("the request is not a connect"));
        };
        let timeout = Duration::from_millis(timeout_ms.into());
        let stage = match host::has_names(&request.address) {
            true => Stage::LookingUp(host::look_up(machine, &request.address, timeout)?),
            false => Stage::Connecting(Attempt::start(machine, request, timeout)?),
        };
        Ok(Self {
            machine,
            request: request.clone(),
            timeout,
            deadline: Instant::now() + timeout,
            stage,
            stage_number: 0,
        })
    }

    /// Waits for the connection until the connect's timeout.
    pub(super) fn wait(mut self) -> io::Result<Stream> {
        loop {
            if let Some(stream) = self.step()? {
                return Ok(stream);
            }
            let until = self.ends_early().unwrap_or(self.deadline);
            let is_ready = match self.descriptor() {
                Some(descriptor) => ready(descriptor, self.waits_for(), Some(until))?,
                None => true,
            };
            if !is_ready && until >= self.deadline {
                return Err(self.no_reply_error());
            }
        }
    }

    /// Makes progress. Returns the connection once it is established; `None` if there is something to
    /// [wait for](Self::waits_for) first.
    ///
    /// # Errors
    ///
    /// Why it has failed. It must not be called again after that, or after it has returned the connection.
    pub(super) fn step(&mut self) -> io::Result<Option<Stream>> {
        loop {
            let next = match std::mem::replace(&mut self.stage, Stage::Over) {
                Stage::LookingUp(mut query) => {
                    let answers = query.progress();
                    match answers.map_err(|why| host::unanswered(&self.request.address, &why))? {
                        Some(answers) => {
                            self.request.address = host::resolved(&self.request.address, answers)?;
                            let left = self.deadline.saturating_duration_since(Instant::now());
                            Stage::Connecting(Attempt::start(self.machine, &self.request, left)?)
                        }
                        None => return Ok(self.stay(Stage::LookingUp(query))),
                    }
                }
                Stage::Connecting(attempt) => match attempt.is_connected() {
                    Ok(true) => return attempt.into_stream().map(Some),
                    Ok(false) => return Ok(self.stay(Stage::Connecting(attempt))),
                    Err(error) => self.ask_why(&attempt, error)?,
                },
                Stage::Explaining {
                    mut query,
                    until,
                    target,
                    error,
                } => match query.progress() {
                    Ok(None) if Instant::now() < until => {
                        return Ok(self.stay(Stage::Explaining {
                            query,
                            until,
                            target,
                            error,
                        }));
                    }
                    outcome => {
                        let refused = io::Error::from_raw_os_error(error);
                        let refused = refusal::of_connect(self.machine, &target, refused);
                        let answers = outcome.ok().flatten().unwrap_or_default();
                        let explanation = host::explanation(&answers, Verdict::Connect);
                        let wanted = self.request.flags.explain;
                        return Err(match explanation {
                            Some(found) if found.verdict.is_ok() => refusal::allowed(&target),
                            Some(found) => host::refused(found, wanted).unwrap_or(refused),
                            None => refused,
                        });
                    }
                },
                Stage::Over => {
                    return Err(error::invalid_input("this connect has already completed"));
                }
            };
            self.stage = next;
            self.stage_number += 1;
        }
    }

    fn stay(&mut self, stage: Stage) -> Option<Stream> {
        self.stage = stage;
        None
    }

    /// The stage after a failed connect. The error is its own if the host cannot say more.
    fn ask_why(&self, attempt: &Attempt, error: io::Error) -> io::Result<Stage> {
        let target = attempt.target;
        let number = error.raw_os_error();
        let is_refused = matches!(number, Some(errno::ECONNRESET | errno::ECONNREFUSED));
        let now = Instant::now();
        let until = self.deadline.min(now + REASON_TIMEOUT);
        let may_ask = is_refused && !target.is_local() && target.address.port != UPLINK_PORT;
        let asked = may_ask.then(|| {
            let (service, left) = (target.peer.service, until.saturating_duration_since(now));
            host::explain(self.machine, What::Connect, service, left)
        });
        match (asked, number) {
            (Some(Ok(query)), Some(error)) => Ok(Stage::Explaining {
                query,
                until,
                target,
                error,
            }),
            _ => Err(refusal::of_connect(self.machine, &target, error)),
        }
    }

    /// What the descriptor has to be ready for before the next [`step`](Self::step).
    pub(super) fn waits_for(&self) -> PollFlags {
        match &self.stage {
            Stage::LookingUp(query) | Stage::Explaining { query, .. } => query.waits_for(),
            Stage::Connecting(_) | Stage::Over => PollFlags::OUT,
        }
    }

    /// When the next [`step`](Self::step) ends the connect even if the descriptor is not ready, if that is before
    /// the connect's timeout.
    pub(super) fn ends_early(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Explaining { until, .. } => Some(*until),
            _ => None,
        }
    }

    /// The number of the stage. Each has another descriptor.
    pub(super) fn stage_number(&self) -> u64 {
        self.stage_number
    }

    /// The descriptor to wait for. `None` once the connect is over.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.stage {
            Stage::LookingUp(query) | Stage::Explaining { query, .. } => Some(query.as_fd()),
            Stage::Connecting(attempt) => Some(attempt.socket.as_fd()),
            Stage::Over => None,
        }
    }

    /// The error for a connect that takes too long.
    pub(super) fn no_reply_error(&self) -> io::Error {
        match &self.stage {
            Stage::LookingUp(_) => host::unanswered(&self.request.address, &NoAnswer::Silent),
            Stage::Connecting(attempt) => {
                refusal::no_reply_error(&attempt.target, Some(self.timeout))
            }
            Stage::Explaining { target, error, .. } => {
                let refused = io::Error::from_raw_os_error(*error);
                refusal::of_connect(self.machine, target, refused)
            }
            Stage::Over => error::invalid_input("this connect has already completed"),
        }
    }
}

impl Attempt {
    fn start(machine: Machine, request: &Request, timeout: Duration) -> io::Result<Self> {
        let target = ConnectTarget::of(machine, &request.address)?;
        let socket = vsock::socket().map_err(refusal::of_socket)?;
        size_buffer(&socket, request)?;
        let failed = |error| refusal::of_connect(machine, &target, error);
        if target.is_local() {
            // Without the loopback module the kernel would send the connect to the host. Binding to
            // this address fails then.
            let own = SockAddrVm::new(SockAddrVm::CID_LOCAL, SockAddrVm::PORT_ANY);
            vsock::bind(&socket, &own.to_bytes()).map_err(failed)?;
        }
        vsock::set_connect_timeout(&socket, timeout).map_err(failed)?;
        vsock::connect(&socket, &target.address.to_bytes()).map_err(failed)?;
        Ok(Self { socket, target })
    }

    fn is_connected(&self) -> io::Result<bool> {
        Ok(ready(&self.socket, PollFlags::OUT, Some(Instant::now()))?
            && vsock::connected(&self.socket)?)
    }

    fn into_stream(self) -> io::Result<Stream> {
        let own = SockAddrVm::from_bytes(&vsock::local_address(&self.socket)?)
            .map_err(|invalid| io::Error::new(io::ErrorKind::InvalidData, invalid))?;
        hvsock_sys::set_nonblocking(&self.socket, false)?;
        // Only the host has the id of this partition.
        let vm = if self.target.is_local() {
            VmId::LOOPBACK
        } else {
            VmId::ZERO
        };
        let local = SockAddrHv::new(vm, ServiceId::from_port(own.port));
        Ok(Stream::new(self.socket, local, self.target.peer, None))
    }
}
