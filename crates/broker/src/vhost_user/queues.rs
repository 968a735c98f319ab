//! A device's virtqueues and their vhost-user state: kick and call eventfds, and whether each queue
//! is enabled.

use std::os::fd::{AsRawFd, OwnedFd};

use hvsock_sys::event::Signal;
use hvsock_virtio::HEADER_LEN;
use hvsock_virtio::queue::{Chain, Layout, Next, Queue, QueueFault};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use super::memory::Ram;

/// Index of the queue to the guest (virtio 1.2 §5.10.2).
pub(super) const RX: usize = 0;
/// Index of the queue from the guest.
pub(super) const TX: usize = 1;
/// The queues that the back end serves. The third one, the event queue, is the VMM's own.
pub(super) const QUEUES: usize = 2;

/// The most invalid chains returned in one call of [`Queues::peek`].
const MAX_INVALID_CHAINS: usize = 64;

/// A request of the VMM to the data thread. Each is answered when it has taken effect.
#[derive(Debug)]
pub(crate) enum QueueCommand {
    /// Replaces the guest's memory, also for rings that are running.
    SetMemory(Ram),
    /// Starts a ring at the available index `base` (SET_VRING_KICK).
    Start {
        queue: usize,
        layout: Layout,
        base: u16,
        kick: OwnedFd,
    },
    /// Sets the descriptor that notifies the driver of used buffers (SET_VRING_CALL).
    SetCall { queue: usize, call: Option<Signal> },
    /// Enables or disables a ring (SET_VRING_ENABLE).
    SetEnabled { queue: usize, enabled: bool },
    /// Stops a ring (GET_VRING_BASE). The reply is its available index.
    Stop { queue: usize },
    /// Resets the device.
    Reset,
    /// The VMM has disconnected.
    Disconnected,
}

/// The reply to a [`QueueCommand`]: an available index for [`QueueCommand::Stop`], else 0.
pub(crate) type QueueReply = Result<u16, String>;

/// One virtqueue with its eventfds.
#[derive(Debug, Default)]
pub(super) struct Vring {
    queue: Option<Queue>,
    layout: Option<Layout>,
    kick: Option<OwnedFd>,
    call: Option<Signal>,
    enabled: bool,
    /// Its layout and available index when it was stopped.
    stopped_at: Option<(Layout, u16)>,
}

/// The queues of one device.
#[derive(Debug, Default)]
pub(super) struct Queues {
    pub(super) ram: Ram,
    vrings: [Vring; QUEUES],
    /// A ring was started that does not resume where it stopped, so the driver was reset.
    driver_restarted: bool,
    /// Count of invalid chains.
    pub(super) invalid_chains: u64,
}

impl Queues {
    /// Whether all rings are started and enabled.
    pub(super) fn are_running(&self) -> bool {
        self.vrings
            .iter()
            .all(|vring| vring.enabled && vring.queue.is_some())
    }

    /// Whether the driver was reset since the last call.
    pub(super) fn take_driver_restarted(&mut self) -> bool {
        std::mem::take(&mut self.driver_restarted)
    }

    /// Applies a command of the VMM. `tokens` are those of the kick eventfds.
    pub(super) fn handle(
        &mut self,
        command: QueueCommand,
        registry: &Registry,
        tokens: [Token; 2],
    ) -> QueueReply {
        match command {
            QueueCommand::SetMemory(ram) => {
                self.ram = ram;
                Ok(0)
            }
            QueueCommand::Start {
                queue,
                layout,
                base,
                kick,
            } => {
                let token = tokens[queue];
                let vring = &mut self.vrings[queue];
                vring.unwatch(registry);
                let started = Queue::new(layout, base, &self.ram).map_err(|e| e.to_string())?;
                registry
                    .register(&mut SourceFd(&kick.as_raw_fd()), token, Interest::READABLE)
                    .map_err(|error| format!("cannot watch the queue's kick eventfd: {error}"))?;
                let resumes = vring.stopped_at == Some((layout, base));
                self.driver_restarted |= !resumes;
                vring.queue = Some(started);
                vring.layout = Some(layout);
                vring.kick = Some(kick);
                vring.stopped_at = None;
                Ok(0)
            }
            QueueCommand::SetCall { queue, call } => {
                self.vrings[queue].call = call;
                // Buffers used before the eventfd was set may not have been notified.
                self.vrings[queue].notify();
                Ok(0)
            }
            QueueCommand::SetEnabled { queue, enabled } => {
                self.vrings[queue].enabled = enabled;
                Ok(0)
            }
            QueueCommand::Stop { queue } => Ok(self.vrings[queue].stop(registry)),
            QueueCommand::Reset | QueueCommand::Disconnected => {
                for vring in &mut self.vrings {
                    vring.stop(registry);
                    *vring = Vring::default();
                }
                self.ram = Ram::default();
                self.driver_restarted = true;
                Ok(0)
            }
        }
    }

    /// Reads the next chain of a queue without consuming it. Adds invalid chains to the used ring
    /// on the way. Returns `false` if no chain is available or the queue is not running.
    pub(super) fn peek(&mut self, queue: usize, chain: &mut Chain) -> Result<bool, QueueFault> {
        // Bounded, so that a guest which makes only invalid chains available yields its turn.
        for _ in 0..MAX_INVALID_CHAINS {
            let Some(ring) = self.vrings[queue].ring() else {
                return Ok(false);
            };
            match ring.peek(&self.ram, chain)? {
                Next::Empty => return Ok(false),
                Next::Chain if fits_header(queue, chain) => return Ok(true),
                Next::Chain | Next::Bad(_) => {
                    ring.take();
                    ring.add_used(&self.ram, chain.head(), 0)?;
                    self.invalid_chains += 1;
                }
            }
        }
        Ok(false)
    }

    /// Consumes the chain that was read last and adds it to the used ring with `written` bytes.
    pub(super) fn add_used(
        &mut self,
        queue: usize,
        chain: &Chain,
        written: u32,
    ) -> Result<(), QueueFault> {
        let Some(ring) = self.vrings[queue].ring() else {
            return Ok(());
        };
        ring.take();
        ring.add_used(&self.ram, chain.head(), written)
    }

    /// Publishes the used index of a queue, and signals its call eventfd unless the driver suppresses
    /// notifications.
    pub(super) fn publish(&mut self, queue: usize) -> Result<(), QueueFault> {
        let vring = &mut self.vrings[queue];
        if let Some(ring) = vring.ring()
            && ring.has_unpublished()
            && ring.publish(&self.ram)?
        {
            vring.notify();
        }
        Ok(())
    }

    /// Enables available-buffer notifications (kicks) before the thread parks. Returns whether a
    /// buffer is available already.
    pub(super) fn enable_notification(&mut self, queue: usize) -> Result<bool, QueueFault> {
        match self.vrings[queue].ring() {
            Some(ring) => ring.enable_notification(&self.ram),
            None => Ok(false),
        }
    }

    /// Disables available-buffer notifications while the thread polls the queue.
    pub(super) fn disable_notification(&mut self, queue: usize) -> Result<(), QueueFault> {
        match self.vrings[queue].ring() {
            Some(ring) => ring.disable_notification(&self.ram),
            None => Ok(()),
        }
    }

    /// Whether a buffer is available. Does not validate the ring.
    pub(super) fn has_available(&self, queue: usize) -> bool {
        let vring = &self.vrings[queue];
        vring.enabled
            && vring
                .queue
                .as_ref()
                .is_some_and(|ring| ring.has_available(&self.ram))
    }

    /// Stops serving a queue whose rings are invalid, until the VMM starts it again.
    pub(super) fn mark_broken(&mut self, queue: usize) {
        self.vrings[queue].queue = None;
    }
}

/// Whether the chain is long enough for a packet header.
fn fits_header(queue: usize, chain: &Chain) -> bool {
    let len = match queue {
        RX => chain.writable_len(),
        _ => chain.readable_len(),
    };
    len as usize >= HEADER_LEN
}

impl Vring {
    fn ring(&mut self) -> Option<&mut Queue> {
        self.queue.as_mut().filter(|_| self.enabled)
    }

    fn unwatch(&mut self, registry: &Registry) {
        if let Some(kick) = self.kick.take() {
            let _ = registry.deregister(&mut SourceFd(&kick.as_raw_fd()));
        }
    }

    fn stop(&mut self, registry: &Registry) -> u16 {
        self.unwatch(registry);
        match (self.queue.take(), self.layout) {
            (Some(queue), Some(layout)) => {
                self.stopped_at = Some((layout, queue.position()));
                queue.position()
            }
            _ => self.stopped_at.map_or(0, |(_, position)| position),
        }
    }

    fn notify(&self) {
        if let Some(call) = &self.call {
            call.send();
        }
    }
}
