//! The limit on concurrent control connections.
//!
//! Any user of the machine may connect. Without a limit for each user, one user could use up all
//! connections and lock the operator out. Root and the broker's user have a share each; the other users
//! share the rest, and each has a limit.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use hvsock_sys::sync::lock;

/// How many connections may be open at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionLimits {
    /// Of root, and as many of the broker's user.
    pub privileged: usize,
    /// Of all other users together.
    pub others: usize,
    /// Of each other user.
    pub per_user: usize,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            privileged: 64,
            others: 64,
            per_user: 16,
        }
    }
}

/// Counts open connections and issues [`Permit`]s. Clones share the counts.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionLimit {
    limits: ConnectionLimits,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    others: usize,
    by_user: HashMap<u32, usize>,
}

/// The permission for one connection. Dropping it releases it.
#[derive(Debug)]
pub(crate) struct Permit {
    uid: u32,
    privileged: bool,
    taken: Arc<Mutex<Taken>>,
}

impl ConnectionLimit {
    pub fn new(limits: ConnectionLimits) -> Self {
        Self {
            limits,
            taken: Arc::default(),
        }
    }

    /// Returns a permit for a connection of `uid`, or `None` if a limit is reached.
    pub fn try_acquire(&self, uid: u32, privileged: bool) -> Option<Permit> {
        let mut taken = lock(&self.taken);
        let of_user = taken.by_user.get(&uid).copied().unwrap_or(0);
        let is_full = match privileged {
            true => of_user >= self.limits.privileged,
            false => taken.others >= self.limits.others || of_user >= self.limits.per_user,
        };
        if is_full {
            return None;
        }
        taken.others += usize::from(!privileged);
        taken.by_user.insert(uid, of_user + 1);
        Some(Permit {
            uid,
            privileged,
            taken: self.taken.clone(),
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        taken.others -= usize::from(!self.privileged);
        if let Some(of_user) = taken.by_user.get_mut(&self.uid) {
            *of_user -= 1;
            if *of_user == 0 {
                taken.by_user.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ConnectionLimits = ConnectionLimits {
        privileged: 2,
        others: 3,
        per_user: 2,
    };

    #[test]
    fn one_user_cannot_lock_another_out() {
        let limit = ConnectionLimit::new(LIMITS);
        let held: Vec<_> = (0..9).filter_map(|_| limit.try_acquire(7, false)).collect();
        assert_eq!(held.len(), 2);
        assert!(limit.try_acquire(8, false).is_some());
    }

    #[test]
    fn all_users_together_cannot_lock_the_operator_out() {
        let limit = ConnectionLimit::new(LIMITS);
        let held: Vec<_> = (1..9)
            .filter_map(|uid| limit.try_acquire(uid, false))
            .collect();
        assert_eq!(held.len(), 3);
        let operator = limit.try_acquire(0, true);
        assert!(operator.is_some() && limit.try_acquire(0, true).is_some());
    }

    #[test]
    fn one_operator_cannot_lock_the_other_out() {
        let limit = ConnectionLimit::new(LIMITS);
        let held: Vec<_> = (0..9)
            .filter_map(|_| limit.try_acquire(900, true))
            .collect();
        assert_eq!(held.len(), 2);
        assert!(limit.try_acquire(0, true).is_some());
    }

    #[test]
    fn a_released_permit_is_free_and_leaves_no_entry_behind() {
        let limit = ConnectionLimit::new(LIMITS);
        for _ in 0..9 {
            assert!(limit.try_acquire(7, false).is_some());
            assert!(limit.try_acquire(0, true).is_some());
        }
        let taken = limit.taken.lock().unwrap();
        assert_eq!(taken.others, 0);
        assert!(taken.by_user.is_empty());
    }
}
