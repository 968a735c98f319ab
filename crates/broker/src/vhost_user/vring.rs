//! One virtqueue and its vhost-user state: where it continues when the VMM starts it, its kick and call
//! descriptors, and whether it is enabled.

pub(super) mod snapshot;

use std::os::fd::{AsRawFd, OwnedFd};

use hvsock_sys::event::Signal;
use hvsock_virtio::queue::{GuestMemory, Layout, Queue};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use super::memory::Ram;

/// One virtqueue with its descriptors.
#[derive(Debug, Default)]
pub(super) struct Vring {
    queue: Option<Queue>,
    layout: Option<Layout>,
    kick: Option<OwnedFd>,
    call: Option<Signal>,
    enabled: bool,
    /// Its layout and available index when it was stopped.
    stopped_at: Option<(Layout, u16)>,
    origin: Origin,
}

/// How a ring relates to what this device has done with it before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Origin {
    /// Its driver has just set it up.
    #[default]
    Fresh,
    /// It continues where this device has stopped it.
    Resumed,
    /// Another device, or an earlier state of the guest, has used it.
    TakenOver,
}

impl Vring {
    /// Starts the ring. `base` is the available index that the VMM states.
    ///
    /// The index is ours if the VMM resumes the ring that it has stopped. Otherwise the used index in guest
    /// memory decides, and not the VMM: some know no index after a restart of the device (libkrun states 0),
    /// or the driver's (Cloud Hypervisor after it has connected again), which would skip all receive buffers.
    /// The device returns buffers in order and keeps none, so the used index is where any device before it has
    /// stopped. A guest that forges it makes its own queue fail.
    pub(super) fn start(
        &mut self,
        layout: Layout,
        base: u16,
        kick: OwnedFd,
        ram: &Ram,
        (registry, token): (&Registry, Token),
    ) -> Result<Origin, String> {
        self.unwatch(registry);
        let taken_over = Queue::resume(layout, ram).map_err(|fault| fault.to_string())?;
        let used = taken_over.position();
        let stopped_at = self.stopped_at.filter(|(stopped, _)| *stopped == layout);
        let (queue, origin) = match stopped_at {
            Some((_, ours)) if ours == base || ours == used => {
                let resumed = Queue::new(layout, ours, ram).map_err(|fault| fault.to_string())?;
                (resumed, Origin::Resumed)
            }
            _ if used == 0 => (taken_over, Origin::Fresh),
            _ => (taken_over, Origin::TakenOver),
        };
        registry
            .register(&mut SourceFd(&kick.as_raw_fd()), token, Interest::READABLE)
            .map_err(|error| format!("cannot watch the queue's kick eventfd: {error}"))?;
        self.queue = Some(queue);
        self.layout = Some(layout);
        self.kick = Some(kick);
        self.stopped_at = None;
        self.origin = origin;
        if origin != Origin::Fresh {
            // The driver may have missed a notification.
            self.notify();
        }
        Ok(origin)
    }

    /// Continues behind the last buffer that the driver got back, whatever the state was. A ring whose contents are
    /// invalid is not served any more.
    pub(super) fn begin_again(&mut self, ram: &Ram) {
        if self.queue.is_none() {
            return;
        }
        let layout = self.layout;
        self.queue = layout.and_then(|layout| Queue::resume(layout, ram).ok());
        // Buffers that were used but not published are used again.
        self.notify();
    }

    /// Stops the ring, if it is not already. Returns its available index.
    pub(super) fn stop(&mut self, registry: &Registry) -> u16 {
        self.unwatch(registry);
        match (self.queue.take(), self.layout) {
            (Some(queue), Some(layout)) => {
                self.stopped_at = Some((layout, queue.position()));
                queue.position()
            }
            _ => self.stopped_at.map_or(0, |(_, position)| position),
        }
    }

    /// Stops the ring and forgets where. The VMM may not send the call descriptor again.
    pub(super) fn reset(&mut self, registry: &Registry) {
        self.stop(registry);
        let call = self.call.take();
        *self = Self {
            call,
            ..Self::default()
        };
    }

    /// Stops serving a ring whose contents are invalid, until the VMM starts it again.
    pub(super) fn mark_broken(&mut self) {
        self.queue = None;
    }

    /// Whether it is started and enabled.
    pub(super) fn is_running(&self) -> bool {
        self.enabled && self.queue.is_some()
    }

    /// The queue, if it is running.
    #[inline]
    pub(super) fn ring(&mut self) -> Option<&mut Queue> {
        self.queue.as_mut().filter(|_| self.enabled)
    }

    /// The same, to look at.
    #[inline]
    pub(super) fn queue(&self) -> Option<&Queue> {
        self.queue.as_ref().filter(|_| self.enabled)
    }

    /// Where the ring is in guest memory, if it was ever started.
    pub(super) fn layout(&self) -> Option<&Layout> {
        self.layout.as_ref()
    }

    /// Whether the used index in guest memory is the one that the device has published. Only the device writes it,
    /// until the driver gives the ring's memory back.
    pub(super) fn used_index_is_ours(&self, ram: &Ram) -> bool {
        let stopped = self.stopped_at.map(|(_, position)| position);
        let ours = self.queue.as_ref().map(Queue::published).or(stopped);
        let found = self.layout.and_then(|layout| ram.load(layout.used + 2));
        found.is_none() || ours.is_none() || found == ours
    }

    pub(super) fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    pub(super) fn set_call(&mut self, call: Option<Signal>) {
        self.call = call;
        if self.is_running() {
            // Buffers used before the descriptor was set may not have been notified.
            self.notify();
        }
    }

    /// Forgets where the ring was stopped: its driver is gone.
    pub(super) fn forget_stop(&mut self) {
        self.stopped_at = None;
    }

    /// Whether another device has used the ring, for the first call only.
    pub(super) fn take_taken_over(&mut self) -> bool {
        let is_taken_over = self.origin == Origin::TakenOver;
        if is_taken_over {
            self.origin = Origin::Resumed;
        }
        is_taken_over
    }

    pub(super) fn notify(&self) {
        if let Some(call) = &self.call {
            call.send();
        }
    }

    fn unwatch(&mut self, registry: &Registry) {
        if let Some(kick) = self.kick.take() {
            let _ = registry.deregister(&mut SourceFd(&kick.as_raw_fd()));
        }
    }
}
