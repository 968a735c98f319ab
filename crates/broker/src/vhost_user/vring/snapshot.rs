//! A virtqueue in the document of its device.

use std::os::fd::AsRawFd;

use hvsock_sys::event::{self, Signal};
use hvsock_virtio::queue::{Layout, Queue, QueueSnapshot};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use serde::{Deserialize, Serialize};

use super::{Origin, Vring};
use crate::handover::{Exports, FdIndex, HandoverError, Imports};
use crate::vhost_user::memory::Ram;

/// One virtqueue with its descriptors.
#[derive(Debug, Serialize, Deserialize)]
pub(in super::super) struct VringState {
    queue: Option<QueueSnapshot>,
    layout: Option<LayoutState>,
    kick: Option<FdIndex>,
    call: Option<FdIndex>,
    enabled: bool,
    /// Its layout and available index when it was stopped.
    stopped_at: Option<(LayoutState, u16)>,
    origin: OriginState,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct LayoutState {
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    event_idx: bool,
    indirect: bool,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OriginState {
    Fresh,
    Resumed,
    TakenOver,
}

impl From<Layout> for LayoutState {
    fn from(layout: Layout) -> Self {
        let Layout {
            size,
            descriptors,
            available,
            used,
            event_idx,
            indirect,
        } = layout;
        Self {
            size,
            descriptors,
            available,
            used,
            event_idx,
            indirect,
        }
    }
}

impl From<LayoutState> for Layout {
    fn from(state: LayoutState) -> Self {
        let LayoutState {
            size,
            descriptors,
            available,
            used,
            event_idx,
            indirect,
        } = state;
        Self {
            size,
            descriptors,
            available,
            used,
            event_idx,
            indirect,
        }
    }
}

impl Vring {
    pub(in super::super) fn hand_over(
        &self,
        exports: &mut Exports,
    ) -> Result<VringState, HandoverError> {
        let Self {
            queue,
            layout,
            kick,
            call,
            enabled,
            stopped_at,
            origin,
        } = self;
        let queue = queue.as_ref().map(Queue::snapshot).transpose();
        let stopped_at = stopped_at.map(|(layout, position)| (layout.into(), position));
        Ok(VringState {
            queue: queue.map_err(|error| HandoverError::damaged(error.to_string()))?,
            layout: layout.map(LayoutState::from),
            kick: kick.as_ref().map(|kick| exports.fd(kick)).transpose()?,
            call: call.as_ref().map(|call| exports.fd(call)).transpose()?,
            enabled: *enabled,
            stopped_at,
            origin: match origin {
                Origin::Fresh => OriginState::Fresh,
                Origin::Resumed => OriginState::Resumed,
                Origin::TakenOver => OriginState::TakenOver,
            },
        })
    }

    /// Watches the kick descriptor. Without its memory a queue is stopped: the VM is about to be disconnected.
    pub(in super::super) fn resume(
        state: VringState,
        imports: &mut Imports,
        ram: &Ram,
        (registry, token): (&Registry, Token),
    ) -> Result<Self, HandoverError> {
        let VringState {
            queue,
            layout,
            kick,
            call,
            enabled,
            stopped_at,
            origin,
        } = state;
        let queue = queue.filter(|_| !ram.is_lost());
        let queue = queue.map(|queue| Queue::restore(queue, ram)).transpose();
        let kick = kick.map(|kick| imports.fd(kick)).transpose()?;
        if let Some(kick) = &kick {
            if !event::is_eventfd(kick) {
                let what = "the descriptor for a queue's kicks is none";
                return Err(HandoverError::inconsistent(what));
            }
            registry
                .register(&mut SourceFd(&kick.as_raw_fd()), token, Interest::READABLE)
                .map_err(HandoverError::io("watch a queue's kick eventfd"))?;
        }
        let call = call.map(|call| imports.fd(call)).transpose()?;
        let call = call.map(Signal::new).transpose();
        Ok(Self {
            queue: queue.map_err(|error| HandoverError::damaged(error.to_string()))?,
            layout: layout.map(Layout::from),
            kick,
            call: call.map_err(HandoverError::io("use a queue's call descriptor"))?,
            enabled,
            stopped_at: stopped_at.map(|(layout, position)| (layout.into(), position)),
            origin: match origin {
                OriginState::Fresh => Origin::Fresh,
                OriginState::Resumed => Origin::Resumed,
                OriginState::TakenOver => Origin::TakenOver,
            },
        })
    }
}
