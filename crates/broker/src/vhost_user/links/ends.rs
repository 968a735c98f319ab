//! The ends of connections: half-closes in each direction, closes, resets, and what is reported of them.

use std::os::fd::AsRawFd;
use std::time::Instant;

use hvsock_fabric::Refusal;
use hvsock_virtio::{Closed, Handle, Muxer};
use mio::unix::SourceFd;

use super::Links;
use crate::guest_link::LinkEvent;

impl Links {
    /// Handles the end of the peer's data: half-closes the guest's connection, or closes it if the
    /// peer has closed too.
    pub(in super::super) fn source_ended(&mut self, slot: usize, mux: &mut Muxer, now: Instant) {
        let Some(link) = self.slab.get_mut(slot) else {
            return;
        };
        let Some(handle) = link.handle else { return };
        link.finished = true;
        if link.peer.is_closed() {
            mux.close(now, handle);
        } else {
            mux.finish(handle);
        }
    }

    /// Handles the guest's shutdown of sending.
    pub(in super::super) fn guest_finished(&mut self, handle: Handle) {
        if let Some(link) = self.link_mut(handle) {
            link.peer.finish();
        }
    }

    /// Handles the guest's shutdown of receiving.
    pub(in super::super) fn guest_closed_read(&mut self, handle: Handle) {
        if let Some(link) = self.link_mut(handle) {
            link.peer.close_read();
        }
    }

    /// Handles the peer's shutdown of receiving.
    pub(in super::super) fn peer_closed_read(&mut self, slot: usize, mux: &mut Muxer) {
        let Some(link) = self.slab.get_mut(slot) else {
            return;
        };
        if let Some(handle) = link.handle {
            mux.close_read(handle);
        }
    }

    /// Handles the close of a connection by the muxer.
    pub(in super::super) fn closed(&mut self, handle: Handle, reason: Closed) {
        let Some(slot) = self.slot_of(handle) else {
            return;
        };
        self.by_handle[handle.index()] = None;
        let Some(link) = self.slab.get_mut(slot) else {
            return;
        };
        link.handle = None;
        let refusal = match reason {
            Closed::Clean => {
                link.peer.finish();
                link.peer.close_read();
                if !link.open {
                    let cause = "the connection was closed before it was established".into();
                    return self.connect_failed(slot, Refusal::Reset { cause });
                }
                // An end that reports the close waits until the other side has closed.
                let is_gone = match link.peer.sibling_end() {
                    Some(end) => !link.reports || end.poll_peer().gone,
                    None => link.peer.is_closed(),
                };
                if is_gone && link.peer.is_flushed() {
                    self.remove(slot, None);
                } else if link.place.is_some() {
                    self.linger(slot);
                }
                return;
            }
            Closed::Refused => Refusal::NoListener,
            Closed::TimedOut if !link.open => Refusal::TimedOut,
            other => Refusal::Reset {
                cause: other.to_string(),
            },
        };
        if !link.open {
            return self.connect_failed(slot, refusal);
        }
        self.send_reset(slot, &refusal, false);
        self.remove(slot, Some(refusal));
    }

    /// Looks at a connection in an arena now and then until its process closes it.
    fn linger(&mut self, slot: usize) {
        if let Some(link) = self.slab.get(slot)
            && self.lingering.add(slot, link.id)
        {
            link.peer.set_signals(false);
        }
    }

    /// When to call [`sweep`](Self::sweep).
    pub(in super::super) fn next_sweep(&self) -> Option<Instant> {
        self.lingering.next()
    }

    /// Removes the connections that the guest has closed and whose processes have closed meanwhile.
    pub(in super::super) fn sweep(&mut self, now: Instant) {
        for (entry, is_last) in self.lingering.take(now) {
            let link = self.slab.get(entry.link);
            let Some(link) = link.filter(|link| link.id == entry.id) else {
                continue;
            };
            if is_last {
                link.peer.set_signals(true);
            }
            // After the request for signals: the process notifies of a close that this does not see.
            if link.peer.is_closed() {
                self.remove(entry.link, None);
            } else if !is_last {
                self.lingering.put_back(entry, now);
            }
        }
    }

    /// Handles a connect that was not accepted: by the guest, or by its sibling before the guest gave
    /// up.
    fn connect_failed(&mut self, slot: usize, refusal: Refusal) {
        let Some(link) = self.slab.get_mut(slot) else {
            return;
        };
        link.peer.reset(&refusal, false);
        if link.is_requested {
            return self.remove(slot, Some(refusal));
        }
        if link.reports {
            let id = link.id;
            link.reports = false;
            self.events.push(LinkEvent::Failed(id, refusal));
        }
        self.remove(slot, None);
    }

    /// Resets a connection and sends the refusal to both ends.
    pub(in super::super) fn reset(&mut self, slot: usize, mux: &mut Muxer, refusal: &Refusal) {
        if let Some(handle) = self.slab.get(slot).and_then(|link| link.handle) {
            mux.reset(handle);
        }
        self.send_reset(slot, refusal, true);
        self.remove(slot, Some(refusal.clone()));
    }

    fn send_reset(&mut self, slot: usize, refusal: &Refusal, discard: bool) {
        if let Some(link) = self.slab.get_mut(slot) {
            link.peer.reset(refusal, discard);
        }
    }

    /// Removes a link, and reports its close if `reports` is set.
    pub(super) fn remove(&mut self, slot: usize, reason: Option<Refusal>) {
        let Some(link) = self.slab.try_remove(slot) else {
            return;
        };
        if let Some(handle) = link.handle {
            self.by_handle[handle.index()] = None;
        }
        self.by_id.remove(&link.id);
        if let Some(fd) = link.peer.descriptor() {
            let _ = self.registry.deregister(&mut SourceFd(&fd.as_raw_fd()));
        }
        if let Some(fd) = link.peer.control_descriptor() {
            let _ = self.registry.deregister(&mut SourceFd(&fd.as_raw_fd()));
        }
        if link.reports {
            self.events.push(LinkEvent::Closed(link.id, reason));
        }
        if let Some(place) = link.place {
            let ended = self.arenas.closed(place, slot);
            self.events.extend(ended.map(LinkEvent::ArenaEnded));
        }
    }
}
