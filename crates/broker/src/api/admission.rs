//! Who gets a place when the control API is crowded.
//!
//! Any user of the machine may connect, so without this one user could hold every place and keep
//! the operator out. The broker's user and root have places of their own; the others share the
//! rest, a few each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// How many connections may be open at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    /// By the broker's user and root together.
    pub privileged: usize,
    /// By all other users together.
    pub others: usize,
    /// By any one of the other users.
    pub per_user: usize,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            privileged: 64,
            others: 64,
            per_user: 16,
        }
    }
}

/// Hands out places.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    places: Places,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    privileged: usize,
    others: usize,
    by_user: HashMap<u32, usize>,
}

/// A place; given back on drop.
#[derive(Debug)]
pub(crate) struct Place {
    /// The user, unless privileged.
    user: Option<u32>,
    taken: Arc<Mutex<Taken>>,
}

impl Admission {
    pub fn new(places: Places) -> Self {
        Self {
            places,
            taken: Arc::default(),
        }
    }

    /// A place for `uid`, if there is one.
    pub fn admit(&self, uid: u32, privileged: bool) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let user = if privileged {
            if taken.privileged >= self.places.privileged {
                return None;
            }
            taken.privileged += 1;
            None
        } else {
            let of_user = taken.by_user.get(&uid).copied().unwrap_or(0);
            if taken.others >= self.places.others || of_user >= self.places.per_user {
                return None;
            }
            taken.others += 1;
            taken.by_user.insert(uid, of_user + 1);
            Some(uid)
        };
        Some(Place {
            user,
            taken: self.taken.clone(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        match self.user {
            None => taken.privileged -= 1,
            Some(uid) => {
                taken.others -= 1;
                if let Some(of_user) = taken.by_user.get_mut(&uid) {
                    *of_user -= 1;
                    if *of_user == 0 {
                        taken.by_user.remove(&uid);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: Places = Places {
        privileged: 2,
        others: 3,
        per_user: 2,
    };

    #[test]
    fn one_user_cannot_keep_another_out() {
        let admission = Admission::new(PLACES);
        let held: Vec<_> = (0..9).filter_map(|_| admission.admit(7, false)).collect();
        assert_eq!(held.len(), 2);
        assert!(admission.admit(8, false).is_some());
    }

    #[test]
    fn all_users_together_cannot_keep_the_operator_out() {
        let admission = Admission::new(PLACES);
        let held: Vec<_> = (0..9)
            .filter_map(|uid| admission.admit(uid, false))
            .collect();
        assert_eq!(held.len(), 3);
        let operator = admission.admit(0, true);
        assert!(operator.is_some() && admission.admit(0, true).is_some());
    }

    #[test]
    fn a_place_given_back_is_free_and_leaves_nothing_behind() {
        let admission = Admission::new(PLACES);
        for _ in 0..9 {
            assert!(admission.admit(7, false).is_some());
            assert!(admission.admit(0, true).is_some());
        }
        let taken = admission.taken.lock().unwrap();
        assert_eq!((taken.privileged, taken.others), (0, 0));
        assert!(taken.by_user.is_empty());
    }
}
