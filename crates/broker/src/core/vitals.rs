//! What guests say of themselves, and whether they are still heard.
//!
//! What is said is taken as it comes ([`Vitals::beat`], [`Vitals::notice`]); what follows from it,
//! or from silence ([`Vitals::expire`]), comes out as a [`Sign`]. No clock is read here.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::time::{Duration, Instant};

use hvsock_fabric::PartitionKey;

use crate::model::{Contact, Guest, GuestNotice, GuestOrder, GuestReport, Health, PartitionState};

/// A guest that beats once a second, and was not heard for so long, is lost.
pub(super) const SILENCE: Duration = Duration::from_millis(3500);

/// The same after a pause. That cut the connection, and an agent that tried in vain to connect
/// anew waits for up to four seconds before it tries again.
const AFTER_PAUSE: Duration = Duration::from_secs(9);

/// Takes an order to a guest's agent; whether there was room for it.
pub(crate) type Orders = Box<dyn Fn(GuestOrder) -> bool + Send>;

/// Something that others want to hear of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// It is heard, for the first time or again.
    Contact,
    /// It is not heard any more; it was, so long ago.
    Lost(Duration),
    /// It has started.
    Ready,
}

/// All guests of whom anything was heard since they started.
#[derive(Debug, Default)]
pub(super) struct Vitals {
    guests: HashMap<PartitionKey, Vital>,
    /// No guest's time is up before this.
    next_look: Option<Instant>,
}

#[derive(Default)]
struct Vital {
    pulse: Option<Pulse>,
    report: Option<GuestReport>,
    notice: Option<GuestNotice>,
    /// That it has started was told.
    told_ready: bool,
    orders: Option<Orders>,
}

/// When a guest was heard, and when it must be.
#[derive(Clone, Copy, Debug)]
struct Pulse {
    contact: Contact,
    heard: Instant,
    /// When its time is up, unless it stands still or is lost already.
    due: Option<Instant>,
}

impl fmt::Debug for Vital {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vital")
            .field("pulse", &self.pulse)
            .finish_non_exhaustive()
    }
}

impl Vitals {
    /// A guest's agent was heard, in a partition that is in this state.
    pub(super) fn beat(
        &mut self,
        guest: PartitionKey,
        state: PartitionState,
        report: GuestReport,
        now: Instant,
    ) -> Vec<Sign> {
        // What a guest said before it went off is of the one before.
        if state == PartitionState::Off {
            return Vec::new();
        }
        let vital = self.guests.entry(guest).or_default();
        let before = vital.pulse.map(|pulse| pulse.contact);
        let paused = state == PartitionState::Paused;
        let pulse = Pulse {
            contact: if paused { Contact::Paused } else { Contact::Ok },
            heard: now,
            due: (!paused).then(|| now + SILENCE),
        };
        vital.pulse = Some(pulse);
        vital.report = Some(report);
        let mut signs = Vec::new();
        if !paused && !matches!(before, Some(Contact::Ok | Contact::Paused)) {
            signs.push(Sign::Contact);
        }
        signs.extend(vital.newly_ready());
        self.look_by(pulse.due);
        signs
    }

    /// A guest's service manager was heard: `said` is taken into what it said before.
    pub(super) fn notice(
        &mut self,
        guest: PartitionKey,
        state: PartitionState,
        said: impl FnOnce(&mut GuestNotice),
    ) -> Option<Sign> {
        if state == PartitionState::Off {
            return None;
        }
        let vital = self.guests.entry(guest).or_default();
        said(vital.notice.get_or_insert_default());
        vital.newly_ready()
    }

    /// Orders to a guest's agent go this way from now on.
    pub(super) fn attend(&mut self, guest: PartitionKey, orders: Orders) {
        self.guests.entry(guest).or_default().orders = Some(orders);
    }

    /// Hands an order to a guest's agent, if that is there to take it.
    pub(super) fn order(&self, guest: PartitionKey, order: GuestOrder) -> bool {
        let orders = self.guests.get(&guest).and_then(|vital| {
            let heard = vital.pulse?.contact == Contact::Ok;
            vital.orders.as_ref().filter(|_| heard)
        });
        orders.is_some_and(|orders| orders(order))
    }

    /// A partition's state has changed.
    pub(super) fn state(&mut self, guest: PartitionKey, state: PartitionState, now: Instant) {
        let Entry::Occupied(mut entry) = self.guests.entry(guest) else {
            return;
        };
        if state == PartitionState::Off {
            entry.remove();
            return;
        }
        let Some(pulse) = &mut entry.get_mut().pulse else {
            return;
        };
        match (state, pulse.contact) {
            (PartitionState::Paused, Contact::Ok) => {
                pulse.contact = Contact::Paused;
                pulse.due = None;
            }
            (PartitionState::Running, Contact::Paused) => {
                let due = now + AFTER_PAUSE;
                pulse.due = Some(due);
                self.look_by(Some(due));
            }
            (PartitionState::Paused, Contact::Paused) => pulse.due = None,
            _ => {}
        }
    }

    /// When to call [`Vitals::expire`] next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.next_look
    }

    /// The guests whose time is up.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<(PartitionKey, Sign)> {
        if self.next_look.is_none_or(|look| look > now) {
            return Vec::new();
        }
        let mut lost = Vec::new();
        for (guest, vital) in &mut self.guests {
            if let Some(pulse) = &mut vital.pulse
                && pulse.due.is_some_and(|due| due <= now)
            {
                pulse.contact = Contact::Lost;
                pulse.due = None;
                let silent = now.saturating_duration_since(pulse.heard);
                lost.push((*guest, Sign::Lost(silent)));
            }
        }
        let dues = self.guests.values().filter_map(|vital| vital.pulse?.due);
        self.next_look = dues.min();
        lost
    }

    /// What is known of a guest.
    pub(super) fn guest(&self, guest: PartitionKey, now: Instant) -> Option<Guest> {
        let vital = self.guests.get(&guest)?;
        let heard = |pulse: Pulse| now.saturating_duration_since(pulse.heard).as_secs_f64();
        Some(Guest {
            contact: vital.contact(),
            heard_seconds: vital.pulse.map(heard),
            ready: vital.ready(),
            report: vital.report.clone(),
            notice: vital.notice.clone(),
        })
    }

    fn look_by(&mut self, due: Option<Instant>) {
        self.next_look = [self.next_look, due].into_iter().flatten().min();
    }
}

impl Vital {
    fn contact(&self) -> Contact {
        self.pulse.map_or(Contact::None, |pulse| pulse.contact)
    }

    /// Whether it has started and still runs: its service manager says so, or its agent does now.
    fn ready(&self) -> bool {
        let notice = self.notice.as_ref();
        let health = self.report.as_ref().map(|report| report.health);
        if notice.is_some_and(|notice| notice.stopping) || health == Some(Health::Stopping) {
            return false;
        }
        let started = matches!(health, Some(Health::Ok | Health::Critical));
        let heard = self.contact() == Contact::Ok;
        notice.is_some_and(|notice| notice.ready) || (heard && started)
    }

    fn newly_ready(&mut self) -> Option<Sign> {
        let newly = self.ready() && !self.told_ready;
        self.told_ready |= newly;
        newly.then_some(Sign::Ready)
    }
}

#[cfg(test)]
#[path = "vitals_tests.rs"]
mod tests;
