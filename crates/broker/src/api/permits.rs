//! Permits for what is costly to serve, such as a long listing or a stream of events.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use hvsock_sys::sync::lock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;
use super::extract::Peer;
use super::limits::Shared;

/// A limit on something costly. Each privileged user has a share, all others have one together, of which
/// each gets a part.
#[derive(Clone, Debug)]
pub(super) struct Permits {
    limits: Shared,
    others: Arc<Semaphore>,
    users: Arc<Mutex<HashMap<u32, Arc<Semaphore>>>>,
}

/// Permits of a user, and of all users, for one of something costly.
#[derive(Debug)]
pub(crate) struct Permit {
    _of_user: OwnedSemaphorePermit,
    _of_all: Option<OwnedSemaphorePermit>,
}

impl Permits {
    pub fn new(limits: Shared) -> Self {
        Self {
            limits,
            others: Arc::new(Semaphore::new(limits.each)),
            users: Arc::default(),
        }
    }

    /// The semaphore of a user.
    fn of(&self, peer: &Peer) -> Arc<Semaphore> {
        let mut users = lock(&self.users);
        // A semaphore that nobody holds has all its permits.
        users.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
        let most = match peer.privileged() {
            true => self.limits.each,
            false => self.limits.per_user,
        };
        let semaphore = users
            .entry(peer.uid())
            .or_insert_with(|| Arc::new(Semaphore::new(most)));
        Arc::clone(semaphore)
    }

    /// A permit, if one is free.
    pub fn try_acquire(&self, peer: &Peer) -> Result<Permit, ApiError> {
        let of_user = self.of(peer).try_acquire_owned();
        let of_user = of_user.map_err(|_| ApiError::busy())?;
        let of_all = match peer.privileged() {
            true => None,
            false => {
                let of_all = Arc::clone(&self.others).try_acquire_owned();
                Some(of_all.map_err(|_| ApiError::busy())?)
            }
        };
        Ok(Permit {
            _of_user: of_user,
            _of_all: of_all,
        })
    }

    /// Waits for a permit. The request's timeout bounds the wait.
    pub async fn acquire(&self, peer: &Peer) -> Result<Permit, ApiError> {
        let of_user = self.of(peer).acquire_owned().await;
        let of_user = of_user.map_err(|_| ApiError::busy())?;
        let of_all = match peer.privileged() {
            true => None,
            false => {
                let of_all = Arc::clone(&self.others).acquire_owned().await;
                Some(of_all.map_err(|_| ApiError::busy())?)
            }
        };
        Ok(Permit {
            _of_user: of_user,
            _of_all: of_all,
        })
    }
}

#[cfg(test)]
mod tests {
    use hvsock_fabric::Operators;
    use hvsock_registry::Principal;

    use super::*;
    use crate::callers::Caller;

    fn peer(uid: u32) -> Peer {
        let principal = Principal {
            uid,
            ..Principal::default()
        };
        let caller = Caller {
            uid,
            ..Caller::UNKNOWN
        };
        Peer::new(principal, caller, Operators::of_broker(900))
    }

    #[test]
    fn a_user_takes_only_its_part_and_an_operator_always_gets_one() {
        let permits = Permits::new(Shared {
            each: 4,
            per_user: 2,
        });
        let take = |uid| {
            let permits = (0..9).map_while(|_| permits.try_acquire(&peer(uid)).ok());
            permits.collect::<Vec<_>>()
        };
        let (one, other) = (take(1000), take(1001));
        assert_eq!((one.len(), other.len()), (2, 2));
        assert!(take(1002).is_empty());
        let operators = [take(0), take(900)];
        assert_eq!(operators.each_ref().map(Vec::len), [4, 4]);
        drop(one);
        assert_eq!(take(1002).len(), 2);
        drop((other, operators));
        let _ = permits.of(&peer(1003));
        assert_eq!(lock(&permits.users).len(), 1, "users leave nothing behind");
    }
}
