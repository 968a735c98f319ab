//! How owners share a resource.
//!
//! Operators may use all that is free, and have a reserve that nobody else gets. Another owner may use
//! at most a quarter of what the others leave of the rest. So one owner alone gets a quarter; with
//! every further owner that uses all that it may, the share of a new one shrinks by a quarter, and no
//! number of owners that a machine has brings it to nothing.

use std::collections::BTreeMap;

use super::owner::Owner;

/// An owner may use this part of what the others leave.
const DIVISOR: u64 = 4;

/// The uses of a resource by owner.
#[derive(Clone, Debug)]
pub(crate) struct Shares {
    capacity: u64,
    /// The part that only operators may use.
    reserve: u64,
    used: u64,
    /// Only owners that use something.
    owners: BTreeMap<Owner, u64>,
}

/// An owner's share is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shortage {
    pub(crate) owner: Owner,
    /// What the owner uses.
    pub(crate) used: u64,
    /// What the owner may use at present.
    pub(crate) limit: u64,
}

impl Shares {
    /// Of `capacity` units, `reserve` are for operators only.
    pub(crate) fn new(capacity: u64, reserve: u64) -> Self {
        Self {
            capacity,
            reserve: reserve.min(capacity),
            used: 0,
            owners: BTreeMap::new(),
        }
    }

    /// What an owner uses.
    pub(crate) fn used(&self, owner: Owner) -> u64 {
        self.owners.get(&owner).copied().unwrap_or(0)
    }

    /// The most that an owner may use at present.
    pub(crate) fn limit(&self, owner: Owner) -> u64 {
        let by_others = self.used - self.used(owner);
        match owner {
            Owner::Operator => self.capacity.saturating_sub(by_others),
            Owner::User(_) | Owner::Partition(_) => {
                let by_operators = self.used(Owner::Operator);
                let reserved = self.reserve.saturating_sub(by_operators);
                let left = self.capacity.saturating_sub(reserved + by_others);
                left.div_ceil(DIVISOR)
            }
        }
    }

    /// Charges an owner.
    ///
    /// # Errors
    ///
    /// [`Shortage`] if it would then use more than it may.
    pub(crate) fn charge(&mut self, owner: Owner, amount: u64) -> Result<(), Shortage> {
        let (used, limit) = (self.used(owner), self.limit(owner));
        if used.saturating_add(amount) > limit {
            return Err(Shortage { owner, used, limit });
        }
        self.charge_beyond(owner, amount);
        Ok(())
    }

    /// Charges an owner, whatever it may use.
    pub(crate) fn charge_beyond(&mut self, owner: Owner, amount: u64) {
        if amount > 0 {
            *self.owners.entry(owner).or_default() += amount;
            self.used += amount;
        }
    }

    /// Takes back a charge, or a part of it.
    pub(crate) fn refund(&mut self, owner: Owner, amount: u64) {
        if let Some(used) = self.owners.get_mut(&owner) {
            let amount = amount.min(*used);
            *used -= amount;
            self.used -= amount;
            if *used == 0 {
                self.owners.remove(&owner);
            }
        }
    }

    /// The size of the resource.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// What all owners use.
    pub(crate) fn total(&self) -> u64 {
        self.used
    }

    /// The owners that use something, with what they use.
    pub(crate) fn owners(&self) -> impl Iterator<Item = (Owner, u64)> {
        self.owners.iter().map(|(owner, used)| (*owner, *used))
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn fill(shares: &mut Shares, owner: Owner) -> u64 {
        while shares.charge(owner, 1).is_ok() {}
        shares.used(owner)
    }

    #[test]
    fn one_owner_gets_a_quarter_and_many_together_lock_no_further_one_out() {
        let mut shares = Shares::new(20_000, 2_000);
        assert_eq!(fill(&mut shares, Owner::User(1)), 4_500);
        for uid in 2..=16 {
            let limit = shares.limit(Owner::User(uid));
            assert_eq!(fill(&mut shares, Owner::User(uid)), limit);
        }
        // Sixteen owners use all that they may.
        assert!(
            shares.limit(Owner::User(17)) >= 40,
            "{}",
            shares.limit(Owner::User(17))
        );
    }

    #[test]
    fn operators_have_their_reserve_whatever_the_others_use() {
        let mut shares = Shares::new(1_000, 100);
        for uid in 0..10_000 {
            fill(&mut shares, Owner::User(uid));
        }
        assert_eq!(fill(&mut shares, Owner::Operator), 100);
        // And more, if it is free.
        let mut shares = Shares::new(1_000, 100);
        fill(&mut shares, Owner::User(1));
        assert_eq!(fill(&mut shares, Owner::Operator), 1_000 - 225);
        assert_eq!(shares.total(), 1_000);
        // What operators use beyond their reserve is missing for the others, and no unit is used twice.
        assert_eq!(shares.limit(Owner::User(2)), 0);
    }

    #[test]
    fn a_shortage_names_the_owner_and_both_numbers() {
        let mut shares = Shares::new(40, 0);
        let owner = Owner::User(7);
        shares.charge(owner, 10).unwrap();
        let shortage = shares.charge(owner, 1).unwrap_err();
        let want = Shortage {
            owner,
            used: 10,
            limit: 10,
        };
        assert_eq!(shortage, want);
    }

    fn owner() -> impl Strategy<Value = Owner> {
        prop_oneof![
            1 => Just(Owner::Operator),
            3 => (1..20_u32).prop_map(Owner::User),
            3 => (1..20_u64)
                .prop_map(|key| Owner::Partition(hvsock_fabric::PartitionKey::from_u64(key))),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Charges (positive) and refunds (negative) in any order, compared with a plain list.
        #[test]
        fn the_sum_never_exceeds_the_capacity_and_the_reserve_always_remains(
            capacity in 0..3_000_u64,
            reserve in 0..500_u64,
            ops in vec((owner(), -60..200_i64), 1..200),
        ) {
            let mut shares = Shares::new(capacity, reserve);
            let reserve = reserve.min(capacity);
            let mut plain = BTreeMap::<Owner, u64>::new();
            for (owner, change) in ops {
                let used = plain.get(&owner).copied().unwrap_or(0);
                let amount = change.unsigned_abs();
                if change < 0 {
                    shares.refund(owner, amount);
                    plain.insert(owner, used - amount.min(used));
                } else if shares.charge(owner, amount).is_ok() {
                    plain.insert(owner, used + amount);
                    let total: u64 = plain.values().sum();
                    let others = total - used - amount;
                    if owner != Owner::Operator {
                        // It left three times what it uses to the others, up to rounding.
                        prop_assert!(others + 4 * (used + amount) <= capacity + 3);
                    }
                }
                plain.retain(|_, used| *used > 0);
                let total: u64 = plain.values().sum();
                let operators = plain.get(&Owner::Operator).copied().unwrap_or(0);
                prop_assert!(total <= capacity);
                prop_assert!(total - operators + reserve.max(operators) <= capacity);
                prop_assert_eq!(shares.total(), total);
                prop_assert_eq!(shares.owners().collect::<BTreeMap<_, _>>(), plain.clone());
                prop_assert!(shares.limit(Owner::Operator) >= reserve);
                // Whoever uses nothing may use something, unless nothing is left.
                let left = capacity - (total - operators + reserve.max(operators));
                prop_assert!(left == 0 || shares.limit(Owner::User(99)) > 0);
            }
        }
    }
}
