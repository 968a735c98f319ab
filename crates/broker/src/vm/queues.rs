//! A device's virtqueues, as its VMM starts and stops them.

use std::os::fd::{AsRawFd, OwnedFd};

use hvsock_sys::event;
use hvsock_virtio::HEADER_LEN;
use hvsock_virtio::queue::{Chain, Layout, Next, Queue, QueueFault};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use super::memory::Ram;

/// The queue to the guest.
pub(super) const RX: usize = 0;
/// The queue from the guest.
pub(super) const TX: usize = 1;
/// The queues that move packets; a third one, of events, is the VMM's own.
pub(super) const QUEUES: usize = 2;

/// Wrong chains given back at once.
const BAD_CHAINS: usize = 64;

/// What a VMM wants of the data thread. Each is answered when it is done.
#[derive(Debug)]
pub(crate) enum Order {
    /// The guest's memory is now this. Rings that run are looked for in it.
    Memory(Ram),
    /// A ring may run from `base` on.
    Start {
        queue: usize,
        layout: Layout,
        base: u16,
        kick: OwnedFd,
    },
    /// Whom to notify of used buffers.
    Call { queue: usize, call: Option<OwnedFd> },
    /// A ring that was started may move, or may not.
    Enable { queue: usize, enabled: bool },
    /// A ring stops; the answer is where.
    Stop { queue: usize },
    /// The device is to begin anew.
    Reset,
    /// The VMM has gone.
    Gone,
}

/// The answer to an [`Order`].
pub(crate) type Answer = Result<u16, String>;

/// One queue.
#[derive(Debug, Default)]
pub(super) struct Slot {
    queue: Option<Queue>,
    layout: Option<Layout>,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    enabled: bool,
    /// Where it was when it was stopped.
    stopped_at: Option<(Layout, u16)>,
}

/// The queues of one device.
#[derive(Debug, Default)]
pub(super) struct Queues {
    pub(super) ram: Ram,
    slots: [Slot; QUEUES],
    /// A ring was started that does not go on where it stopped: the driver has begun anew.
    began_anew: bool,
    /// Chains that were wrong.
    pub(super) bad_chains: u64,
}

impl Queues {
    /// Whether packets can move.
    pub(super) fn are_running(&self) -> bool {
        self.slots
            .iter()
            .all(|slot| slot.enabled && slot.queue.is_some())
    }

    /// Whether a driver has begun anew since the last time this was asked.
    pub(super) fn take_began_anew(&mut self) -> bool {
        std::mem::take(&mut self.began_anew)
    }

    /// Does what the VMM wants.
    pub(super) fn obey(&mut self, order: Order, registry: &Registry, tokens: [Token; 2]) -> Answer {
        match order {
            Order::Memory(ram) => {
                self.ram = ram;
                Ok(0)
            }
            Order::Start {
                queue,
                layout,
                base,
                kick,
            } => {
                let token = tokens[queue];
                let slot = &mut self.slots[queue];
                slot.unwatch(registry);
                let started = Queue::new(layout, base, &self.ram).map_err(|e| e.to_string())?;
                registry
                    .register(&mut SourceFd(&kick.as_raw_fd()), token, Interest::READABLE)
                    .map_err(|error| format!("cannot watch the queue's kicks: {error}"))?;
                let goes_on = slot.stopped_at == Some((layout, base));
                self.began_anew |= !goes_on;
                slot.queue = Some(started);
                slot.layout = Some(layout);
                slot.kick = Some(kick);
                slot.stopped_at = None;
                Ok(0)
            }
            Order::Call { queue, call } => {
                self.slots[queue].call = call;
                // What was used before may have been told to nobody.
                self.slots[queue].notify();
                Ok(0)
            }
            Order::Enable { queue, enabled } => {
                self.slots[queue].enabled = enabled;
                Ok(0)
            }
            Order::Stop { queue } => Ok(self.slots[queue].stop(registry)),
            Order::Reset | Order::Gone => {
                for slot in &mut self.slots {
                    slot.stop(registry);
                    *slot = Slot::default();
                }
                self.ram = Ram::default();
                self.began_anew = true;
                Ok(0)
            }
        }
    }

    /// Reads the next chain of a queue; bad ones are given back. `false`: there is none, or the
    /// queue does not run.
    pub(super) fn peek(&mut self, queue: usize, chain: &mut Chain) -> Result<bool, QueueFault> {
        // A guest that makes nothing but wrong ones available has its turn end, too.
        for _ in 0..BAD_CHAINS {
            let Some(ring) = self.slots[queue].ring() else {
                return Ok(false);
            };
            match ring.peek(&self.ram, chain)? {
                Next::Empty => return Ok(false),
                Next::Chain if is_useful(queue, chain) => return Ok(true),
                Next::Chain | Next::Bad(_) => {
                    ring.take();
                    ring.give_back(&self.ram, chain.head(), 0)?;
                    self.bad_chains += 1;
                }
            }
        }
        Ok(false)
    }

    /// Takes the chain that was read last, and gives it back used.
    pub(super) fn take(
        &mut self,
        queue: usize,
        chain: &Chain,
        written: u32,
    ) -> Result<(), QueueFault> {
        let Some(ring) = self.slots[queue].ring() else {
            return Ok(());
        };
        ring.take();
        ring.give_back(&self.ram, chain.head(), written)
    }

    /// Shows the driver what was used, and notifies it if it wants that.
    pub(super) fn publish(&mut self) -> Result<(), (usize, QueueFault)> {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if let Some(ring) = slot.ring()
                && ring.has_unpublished()
                && ring.publish(&self.ram).map_err(|fault| (index, fault))?
            {
                slot.notify();
            }
        }
        Ok(())
    }

    /// Asks for kicks before a sleep; whether there is something to do already.
    pub(super) fn ask_for_kicks(&mut self, queue: usize) -> Result<bool, QueueFault> {
        match self.slots[queue].ring() {
            Some(ring) => ring.ask_for_kicks(&self.ram),
            None => Ok(false),
        }
    }

    /// The device looks by itself.
    pub(super) fn refuse_kicks(&mut self, queue: usize) -> Result<(), QueueFault> {
        match self.slots[queue].ring() {
            Some(ring) => ring.refuse_kicks(&self.ram),
            None => Ok(()),
        }
    }

    /// Whether something is available, at a glance.
    pub(super) fn has_available(&self, queue: usize) -> bool {
        let slot = &self.slots[queue];
        slot.enabled
            && slot
                .queue
                .as_ref()
                .is_some_and(|ring| ring.has_available(&self.ram))
    }

    /// Gives a queue up whose rings cannot be believed, until it is started again.
    pub(super) fn give_up(&mut self, queue: usize) {
        self.slots[queue].queue = None;
    }
}

/// Whether a packet can be in it.
fn is_useful(queue: usize, chain: &Chain) -> bool {
    let len = match queue {
        RX => chain.writable_len(),
        _ => chain.readable_len(),
    };
    len as usize >= HEADER_LEN
}

impl Slot {
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
            event::signal(call);
        }
    }
}
