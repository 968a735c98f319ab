//! Who may use how much of what the whole broker shares: its table of descriptors, and the descriptors
//! that it has in flight.
//!
//! - [`plan`] divides the process's limit of descriptors;
//! - [`shares`] decides, as arithmetic without I/O, whether an [`owner`] may use more;
//! - [`Budget`] is the shared state of one resource. It issues [`Charge`]s, which give back what they
//!   hold when they are dropped, on any thread.

mod owner;
mod plan;
mod shares;

use std::sync::{Arc, Mutex};

use hvsock_sys::sync::lock;
use serde::{Deserialize, Serialize};

pub(crate) use owner::{Owner, OwnerSnapshot};
pub(crate) use plan::DescriptorPlan;
pub(crate) use shares::{Shares, Shortage};

/// A resource that all owners share. Clones refer to the same one.
#[derive(Clone, Debug)]
pub(crate) struct Budget(Arc<Mutex<Shares>>);

/// An owner's use of a resource, until it is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Budget,
    owner: Owner,
    amount: u64,
}

/// A charge in a [snapshot](crate::handover::snapshot).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChargeSnapshot {
    owner: OwnerSnapshot,
    amount: u64,
}

impl ChargeSnapshot {
    /// Charges its owner again, whatever its share is now. Of a damaged snapshot at most `most`.
    pub(crate) fn charge(self, budget: &Budget, most: u64) -> Charge {
        budget.charge_beyond(self.owner.into(), self.amount.min(most))
    }
}

impl Budget {
    pub(crate) fn new(shares: Shares) -> Self {
        Self(Arc::new(Mutex::new(shares)))
    }

    /// Charges an owner.
    ///
    /// # Errors
    ///
    /// [`Shortage`] if its share does not allow it; nothing is charged then.
    pub(crate) fn charge(&self, owner: Owner, amount: u64) -> Result<Charge, Shortage> {
        lock(&self.0).charge(owner, amount)?;
        Ok(self.charged(owner, amount))
    }

    /// Charges an owner beyond its share, for what an operator has ordered.
    pub(crate) fn charge_beyond(&self, owner: Owner, amount: u64) -> Charge {
        lock(&self.0).charge_beyond(owner, amount);
        self.charged(owner, amount)
    }

    /// What an owner uses and may use.
    pub(crate) fn usage(&self, owner: Owner) -> (u64, u64) {
        let shares = lock(&self.0);
        (shares.used(owner), shares.limit(owner))
    }

    /// A copy of the state, for operators.
    pub(crate) fn shares(&self) -> Shares {
        lock(&self.0).clone()
    }

    fn charged(&self, owner: Owner, amount: u64) -> Charge {
        Charge {
            budget: self.clone(),
            owner,
            amount,
        }
    }
}

impl Charge {
    /// Gives back a part, at most all of it.
    pub(crate) fn shrink(&mut self, amount: u64) {
        let amount = amount.min(self.amount);
        lock(&self.budget.0).refund(self.owner, amount);
        self.amount -= amount;
    }

    /// Takes over what another charge of the same owner holds.
    pub(crate) fn merge(&mut self, mut other: Charge) {
        debug_assert_eq!(self.owner, other.owner);
        self.amount += std::mem::take(&mut other.amount);
    }

    /// Moves a part to a charge of its own, at most all of it.
    pub(crate) fn split(&mut self, amount: u64) -> Charge {
        let amount = amount.min(self.amount);
        self.amount -= amount;
        self.budget.charged(self.owner, amount)
    }

    /// The charge as a value.
    pub(crate) fn snapshot(&self) -> ChargeSnapshot {
        ChargeSnapshot {
            owner: self.owner.into(),
            amount: self.amount,
        }
    }

    pub(crate) fn owner(&self) -> Owner {
        self.owner
    }

    pub(crate) fn amount(&self) -> u64 {
        self.amount
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.amount > 0 {
            lock(&self.budget.0).refund(self.owner, self.amount);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: Owner = Owner::User(1000);

    #[test]
    fn a_charge_gives_back_what_it_holds_exactly_once() {
        let budget = Budget::new(Shares::new(100, 10));
        let used = || budget.usage(ALICE).0;
        let mut one = budget.charge(ALICE, 9).unwrap();
        one.shrink(1);
        let part = one.split(3);
        assert_eq!((used(), one.amount(), part.amount()), (8, 5, 3));
        one.merge(part);
        assert_eq!((used(), one.amount()), (8, 8));
        assert!(budget.charge(ALICE, 1000).is_err());
        assert_eq!(used(), 8);
        one.shrink(1000);
        assert_eq!(used(), 0);
        drop(one);
        assert_eq!(used(), 0);
        assert_eq!(budget.shares().owners().count(), 0);
    }
}
