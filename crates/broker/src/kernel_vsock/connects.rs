//! Connects to guests that have no answer yet.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::time::Instant;

use hvsock_fabric::ConnectionId;

/// A connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WantedConnect {
    pub(super) cid: u32,
    pub(super) port: u32,
    pub(super) id: ConnectionId,
    pub(super) deadline: Instant,
}

/// A connect that has begun.
#[derive(Debug)]
pub(super) struct BegunConnect {
    pub(super) wanted: WantedConnect,
    pub(super) socket: OwnedFd,
}

/// The connects to the guests of a namespace. A token is never used twice, so a late event reaches no
/// other connect.
#[derive(Debug, Default)]
pub(super) struct Connects {
    queued: Vec<WantedConnect>,
    begun: HashMap<usize, BegunConnect>,
    by_id: HashMap<ConnectionId, usize>,
    deadlines: BTreeSet<(Instant, usize)>,
    ready: BTreeSet<usize>,
    next_token: usize,
}

impl Connects {
    /// Adds one that is to begin.
    pub(super) fn queue(&mut self, cid: u32, port: u32, id: ConnectionId, deadline: Instant) {
        self.queued.push(WantedConnect {
            cid,
            port,
            id,
            deadline,
        });
    }

    /// Takes those that are to begin.
    pub(super) fn take_queued(&mut self) -> Vec<WantedConnect> {
        std::mem::take(&mut self.queued)
    }

    /// Adds one that has begun. Returns its token.
    pub(super) fn begin(&mut self, wanted: WantedConnect, socket: OwnedFd) -> usize {
        let token = self.next_token;
        self.next_token = token.wrapping_add(1);
        self.by_id.insert(wanted.id, token);
        self.deadlines.insert((wanted.deadline, token));
        self.begun.insert(token, BegunConnect { wanted, socket });
        token
    }

    /// Records that one may have an answer.
    pub(super) fn ready(&mut self, token: usize) {
        if self.begun.contains_key(&token) {
            self.ready.insert(token);
        }
    }

    /// Takes those that may have an answer.
    pub(super) fn take_ready(&mut self) -> BTreeSet<usize> {
        std::mem::take(&mut self.ready)
    }

    pub(super) fn get(&self, token: usize) -> Option<&BegunConnect> {
        self.begun.get(&token)
    }

    /// Removes one.
    pub(super) fn take(&mut self, token: usize) -> Option<BegunConnect> {
        let connect = self.begun.remove(&token)?;
        self.by_id.remove(&connect.wanted.id);
        self.deadlines.remove(&(connect.wanted.deadline, token));
        self.ready.remove(&token);
        Some(connect)
    }

    /// Gives one up.
    pub(super) fn abort(&mut self, id: ConnectionId) {
        self.queued.retain(|wanted| wanted.id != id);
        if let Some(token) = self.by_id.get(&id).copied() {
            self.take(token);
        }
    }

    /// Gives up those to a guest.
    pub(super) fn remove_of(&mut self, cid: u32) {
        self.queued.retain(|wanted| wanted.cid != cid);
        let of_guest = self.begun.iter().filter(|(_, one)| one.wanted.cid == cid);
        let of_guest: Vec<usize> = of_guest.map(|(token, _)| *token).collect();
        for token in of_guest {
            self.take(token);
        }
    }

    /// The next deadline.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Removes those whose deadline has passed.
    pub(super) fn take_expired(&mut self, now: Instant) -> Vec<WantedConnect> {
        let mut expired = Vec::new();
        while let Some((at, token)) = self.deadlines.first().copied()
            && at <= now
        {
            self.deadlines.remove(&(at, token));
            expired.extend(self.take(token).map(|connect| connect.wanted));
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn socket() -> OwnedFd {
        hvsock_sys::stream::pair().unwrap().0
    }

    #[test]
    fn a_connect_is_answered_once_or_expires_or_is_given_up() {
        let (mut connects, now) = (Connects::default(), Instant::now());
        let id = ConnectionId::from_u64;
        for number in 0..4 {
            let deadline = now + Duration::from_secs(number);
            connects.queue(42 + (number as u32 % 2), 5, id(number), deadline);
        }
        let tokens: Vec<usize> = connects
            .take_queued()
            .into_iter()
            .map(|wanted| connects.begin(wanted, socket()))
            .collect();
        assert!(connects.take_queued().is_empty());
        tokens.iter().for_each(|token| connects.ready(*token));
        connects.abort(id(2));
        assert!(connects.take(tokens[2]).is_none());
        let expired: Vec<_> = connects
            .take_expired(now)
            .iter()
            .map(|one| one.id)
            .collect();
        assert_eq!(expired, [id(0)]);
        assert_eq!(connects.next_deadline(), Some(now + Duration::from_secs(1)));
        assert_eq!(connects.take_ready(), [tokens[1], tokens[3]].into());
        assert!(connects.take(tokens[1]).is_some() && connects.get(tokens[1]).is_none());
        connects.remove_of(43);
        assert_eq!(connects.next_deadline(), None);
        // A late event of one that is gone.
        connects.ready(tokens[3]);
        assert!(connects.take_ready().is_empty());
    }
}
