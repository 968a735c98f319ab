//! A device's virtqueues in the guest's memory, and the VMM's requests that concern them.

pub(super) mod snapshot;

use std::os::fd::OwnedFd;

use hvsock_sys::event::Signal;
use hvsock_virtio::HEADER_LEN;
use hvsock_virtio::queue::{Chain, Layout, Next, QueueFault};
use mio::{Registry, Token};

use super::memory::Ram;
use super::vring::{Origin, Vring};

/// Index of the queue to the guest (virtio 1.2 §5.10.2).
pub(super) const RX: usize = 0;
/// Index of the queue from the guest.
pub(super) const TX: usize = 1;
/// Index of the queue of events to the guest. QEMU keeps it to itself; with every other VMM it is ours.
pub(super) const EVENT: usize = 2;
/// All queues of the device.
pub(super) const QUEUES: usize = 3;
/// Bytes of an event (virtio 1.2 §5.10.6.6).
pub(super) const EVENT_LEN: usize = 4;

/// The most invalid chains returned in one call of [`Queues::peek`].
const MAX_INVALID_CHAINS: usize = 64;

/// A request of the VMM to the data thread. Each is answered when it has taken effect.
#[derive(Debug)]
pub(crate) enum QueueCommand {
    /// A VMM has connected.
    Connected,
    /// Replaces the guest's memory, also for rings that are running.
    SetMemory(Ram),
    /// Starts a ring (SET_VRING_KICK). The VMM has stated the available index `base`.
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
    /// Resets the device. The guest's memory stays: not all VMMs send it again.
    Reset,
    /// Loads the state of a device that served this guest before. Connections are not in it.
    Load,
    /// The VMM has disconnected.
    Disconnected,
}

/// The reply to a [`QueueCommand`]: an available index for [`QueueCommand::Stop`], else 0.
pub(crate) type QueueReply = Result<u16, String>;

/// The queues of one device.
#[derive(Debug, Default)]
pub(super) struct Queues {
    pub(super) ram: Ram,
    vrings: [Vring; QUEUES],
    /// A ring was started that does not resume where it stopped, so the driver was reset.
    driver_restarted: bool,
    /// The guest was restored, and may have connections of another device.
    loaded: bool,
    /// Count of invalid chains.
    pub(super) invalid_chains: u64,
}

impl Queues {
    /// Whether the rings of packets are started and enabled.
    pub(super) fn are_running(&self) -> bool {
        self.running() == 2
    }

    /// How many of the rings of packets are running.
    pub(super) fn running(&self) -> usize {
        let running = [RX, TX].iter();
        running
            .filter(|queue| self.vrings[**queue].is_running())
            .count()
    }

    /// Whether the driver was reset since the last call.
    pub(super) fn take_driver_restarted(&mut self) -> bool {
        std::mem::take(&mut self.driver_restarted)
    }

    /// Whether the guest may have connections of another device, for the first call only.
    pub(super) fn take_taken_over(&mut self) -> bool {
        let mut taken_over = std::mem::take(&mut self.loaded);
        for vring in &mut self.vrings {
            taken_over |= vring.take_taken_over();
        }
        taken_over
    }

    /// The driver's available index of a running queue.
    pub(super) fn driver_index(&self, queue: usize) -> Option<u16> {
        self.vrings[queue].queue()?.driver_index(&self.ram)
    }

    /// The layouts of the rings that were started.
    pub(super) fn layouts(&self) -> impl Iterator<Item = &Layout> {
        self.vrings.iter().filter_map(Vring::layout)
    }

    /// Whether the used indexes in guest memory are those that the device has published.
    pub(super) fn used_indexes_are_ours(&self) -> bool {
        let is_ours = |vring: &Vring| vring.used_index_is_ours(&self.ram);
        self.vrings.iter().all(is_ours)
    }

    /// Continues each ring behind the last buffer that the driver got back, whatever the state was.
    pub(super) fn begin_again(&mut self) {
        for vring in &mut self.vrings {
            vring.begin_again(&self.ram);
        }
    }

    /// Forgets where the rings were stopped: the driver is gone.
    pub(super) fn forget_stops(&mut self) {
        self.vrings.iter_mut().for_each(Vring::forget_stop);
        self.driver_restarted = true;
    }

    /// Applies a command of the VMM. `tokens` are those of the kick eventfds.
    pub(super) fn handle(
        &mut self,
        command: QueueCommand,
        registry: &Registry,
        tokens: [Token; QUEUES],
    ) -> QueueReply {
        match command {
            QueueCommand::Connected => {}
            QueueCommand::SetMemory(ram) => self.ram = ram,
            QueueCommand::Start {
                queue,
                layout,
                base,
                kick,
            } => {
                let watch = (registry, tokens[queue]);
                let origin = self.vrings[queue].start(layout, base, kick, &self.ram, watch)?;
                self.driver_restarted |= origin != Origin::Resumed && queue != EVENT;
            }
            QueueCommand::SetCall { queue, call } => self.vrings[queue].set_call(call),
            QueueCommand::SetEnabled { queue, enabled } => self.vrings[queue].set_enabled(enabled),
            QueueCommand::Stop { queue } => return Ok(self.vrings[queue].stop(registry)),
            QueueCommand::Reset => {
                for vring in &mut self.vrings {
                    vring.reset(registry);
                }
                self.loaded = false;
                self.driver_restarted = true;
            }
            QueueCommand::Load => {
                self.loaded = true;
                self.forget_stops();
            }
            QueueCommand::Disconnected => {
                for vring in &mut self.vrings {
                    vring.stop(registry);
                    *vring = Vring::default();
                }
                self.ram = Ram::default();
                self.loaded = false;
                self.driver_restarted = true;
            }
        }
        Ok(0)
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
                Next::Chain if fits(queue, chain) => return Ok(true),
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
        let ring = self.vrings[queue].queue();
        ring.is_some_and(|ring| ring.has_available(&self.ram))
    }

    /// Stops serving a queue whose rings are invalid, until the VMM starts it again.
    pub(super) fn mark_broken(&mut self, queue: usize) {
        self.vrings[queue].mark_broken();
    }
}

/// Whether the chain is long enough for a packet header, or an event.
fn fits(queue: usize, chain: &Chain) -> bool {
    match queue {
        RX => chain.writable_len() as usize >= HEADER_LEN,
        TX => chain.readable_len() as usize >= HEADER_LEN,
        _ => chain.writable_len() as usize >= EVENT_LEN,
    }
}
