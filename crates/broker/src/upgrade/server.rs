//! Hands the broker over to whoever connects to its socket and may take it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;
use std::{fs, io};

use hvsock_endpoint::Dirs;
use hvsock_sys::event::Event;
use hvsock_sys::pidfd::Process;
use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_sys::{peer, seqpacket};

use super::state::Upgrades;
use super::{ANSWERS, RELEASE};
use crate::api::gate::{Busy, Gate};
use crate::config::HandoverStage;
use crate::core::HandOver;
use crate::folders::FolderLock;
use crate::handle::Handle;
use crate::handover::serve::{Figures, Outcome, Serving, Times};
use crate::handover::{Channel, GivenUp, Known};
use crate::sandbox;

/// Successors that wait to connect.
const BACKLOG: u32 = 4;
/// How long the last answer may take before the process ends.
const LAST_ANSWER: Duration = Duration::from_secs(1);

/// Serves the socket at which successors connect.
#[derive(Debug)]
pub(crate) struct HandoverServer {
    stop: Arc<Event>,
    thread: Option<JoinHandle<()>>,
}

struct Server {
    listener: OwnedFd,
    stop: Arc<Event>,
    handle: Handle,
    upgrades: Arc<Upgrades>,
    lock: OwnedFd,
    control: Option<(Arc<OwnedFd>, Arc<Gate>)>,
}

impl HandoverServer {
    /// Listens at the broker's socket for successors.
    pub(crate) fn start(
        dirs: &Dirs,
        handle: Handle,
        upgrades: Arc<Upgrades>,
        lock: &FolderLock,
        control: Option<(Arc<OwnedFd>, Arc<Gate>)>,
    ) -> io::Result<Self> {
        let stop = Arc::new(Event::new()?);
        let path = dirs.handover();
        let server = Server {
            listener: seqpacket::listen(&path, 0o600, BACKLOG)?,
            stop: Arc::clone(&stop),
            handle,
            upgrades,
            lock: lock.duplicate()?,
            control,
        };
        let run = move || {
            sandbox::enter(sandbox::Kind::Handover);
            if !server.run() {
                let _ = fs::remove_file(&path);
            }
        };
        let thread = std::thread::Builder::new()
            .name("hvsock-handover".into())
            .spawn(run)?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for HandoverServer {
    fn drop(&mut self) {
        self.stop.set();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Server {
    /// Serves successors until one runs, or until the broker stops. Returns whether one runs.
    fn run(self) -> bool {
        loop {
            let mut fds = [
                PollFd::new(&self.listener, PollFlags::IN),
                PollFd::new(&*self.stop, PollFlags::IN),
            ];
            if let Err(error) = poll::wait(&mut fds, None) {
                tracing::error!(%error, "cannot wait for a new broker; this one cannot be upgraded");
                return false;
            }
            if fds[1].revents().contains(PollFlags::IN) {
                return false;
            }
            match seqpacket::accept(&self.listener) {
                Ok(Some(client)) => {
                    if self.serve(client) {
                        return true;
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a new broker");
                    std::thread::sleep(ANSWERS);
                }
            }
        }
    }

    /// Serves one successor. Returns whether it runs.
    fn serve(&self, client: OwnedFd) -> bool {
        let (channel, pid) = match identify(client) {
            Ok(found) => found,
            Err(reason) => {
                tracing::warn!("does not hand over: {reason}");
                return false;
            }
        };
        let (times, busy) = self.upgrades.times(Some(pid));
        let (outcome, figures) = self.hand_over(channel, times, busy.as_ref());
        let from = RELEASE;
        let (to, standstill) = (&figures.release, figures.standstill.as_millis());
        match outcome {
            Outcome::Left => {
                tracing::info!("handed over to hvsock {to}, process {pid}, in {standstill} ms");
                self.upgrades.tell(HandoverStage::Done(pid));
                self.upgrades.set_left_to(pid);
                self.upgrades.report(Some(pid), Ok(figures));
                self.upgrades.left().set();
                true
            }
            Outcome::Resumed(reason) => {
                match &reason {
                    GivenUp::DryRun => tracing::info!(
                        "hvsock {to} could take over from hvsock {from} in {standstill} ms"
                    ),
                    GivenUp::Failed(reason) => {
                        tracing::warn!("goes on, because process {pid} cannot take over: {reason}");
                    }
                }
                let result = match reason {
                    GivenUp::DryRun => Ok(figures),
                    failed => Err(failed),
                };
                self.upgrades.report(Some(pid), result);
                false
            }
        }
    }

    fn hand_over(&self, channel: Channel, times: Times, busy: Option<&Busy>) -> (Outcome, Figures) {
        let failed = |reason| (Outcome::Resumed(reason), Figures::default());
        let serving = match Serving::prepare(channel, Known::OWN, RELEASE, times) {
            Ok(serving) => serving,
            Err(reason) => return failed(reason),
        };
        let own_lock = match self.lock.try_clone() {
            Ok(lock) => lock,
            Err(error) => return failed(GivenUp::Failed(error.to_string())),
        };
        // What operators have asked for is done, and nothing more is begun.
        if let Some(busy) = busy {
            busy.release();
        }
        if let Some((_, gate)) = &self.control {
            gate.close(ANSWERS);
        }
        self.upgrades.tell(HandoverStage::Begun);
        let (sender, end) = sync_channel(1);
        let hand_over = HandOver {
            to: Box::new(serving),
            control: self.control.as_ref().map(|(socket, _)| Arc::clone(socket)),
            lock: own_lock,
            done: Box::new(move |outcome, figures| {
                let _ = sender.send((outcome, figures));
            }),
        };
        let stopped = || failed(GivenUp::Failed("the broker is stopping".into()));
        let end = match self.handle.hand_over(hand_over) {
            Ok(()) => end.recv().unwrap_or_else(|_| stopped()),
            Err(_) => stopped(),
        };
        if let Some((_, gate)) = &self.control {
            if let Some(busy) = busy {
                busy.resume(gate);
            }
            match end.0 {
                Outcome::Left => gate.leave(),
                Outcome::Resumed(_) => gate.open(),
            }
        }
        if let Outcome::Resumed(_) = end.0 {
            self.upgrades.tell(HandoverStage::GivenUp);
        }
        end
    }
}

/// Who wants to take the broker over. Only root and the broker's own user may.
fn identify(client: OwnedFd) -> Result<(Channel, u32), String> {
    let text = |error: io::Error| format!("cannot identify the process that asks: {error}");
    let peer = peer::credentials(&client).map_err(text)?;
    let own = rustix::process::geteuid().as_raw();
    if peer.uid != 0 && peer.uid != own {
        return Err(format!("the user {} may not take over", peer.uid));
    }
    let process = peer::process(&client).and_then(Process::from_descriptor);
    let process = process.map_err(text)?;
    let pid = process.id().map_err(text)?.map(|id| id.pid);
    let pid = pid.ok_or("the process that asks is in another PID namespace, or has ended")?;
    if pid == std::process::id() {
        return Err("a broker cannot be handed over within its process".into());
    }
    Ok((Channel::new(client, process), pid))
}

/// Waits until the operator who asked for an upgrade has the answer.
pub(crate) fn answer_last(gate: &Gate) {
    gate.close(LAST_ANSWER);
}
