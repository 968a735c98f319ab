//! How often the ends of a ring slept, and how often they rang to wake each other.
//!
//! A bell is rung for an end that has said that it sleeps, and for no other. Whether that holds
//! shows in the two counts side by side: how often an end sleeps is up to the scheduler as well,
//! so bells alone say nothing.

use serde::Serialize;

/// What an end has done since it began, or both between two moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bells {
    /// System calls made to wake the other end.
    pub rings: u64,
    /// Times that a thread slept; `None` where tasks wait, which are not counted.
    pub sleeps: Option<u64>,
}

/// A wish to be woken may be taken back by the last look before the sleep, when the bell has been
/// rung for it already: so many in a hundred sleeps, and a few where nearly nobody sleeps.
const TAKEN_BACK_IN_100: u64 = 2;
const TAKEN_BACK: u64 = 8;

impl Bells {
    /// Of both together.
    pub fn and(self, other: Self) -> Self {
        Self {
            rings: self.rings + other.rings,
            sleeps: self.sleeps.zip(other.sleeps).map(|(a, b)| a + b),
        }
    }

    /// Of both ends between two moments, if both can tell.
    pub(super) fn between(before: [Option<Self>; 2], after: [Option<Self>; 2]) -> Option<Self> {
        let sum = |[ours, theirs]: [Option<Self>; 2]| Some(ours?.and(theirs?));
        let (before, after) = (sum(before)?, sum(after)?);
        let sleeps = after.sleeps.zip(before.sleeps);
        Some(Self {
            rings: after.rings.checked_sub(before.rings)?,
            sleeps: sleeps.and_then(|(after, before)| after.checked_sub(before)),
        })
    }

    /// Whether each ring was for an end that had said that it sleeps; `None` if it cannot be told.
    pub fn are_for_sleepers(self) -> Option<bool> {
        let sleeps = self.sleeps?;
        Some(self.rings <= sleeps + sleeps * TAKEN_BACK_IN_100 / 100 + TAKEN_BACK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bells(rings: u64, sleeps: u64) -> Bells {
        let sleeps = Some(sleeps);
        Bells { rings, sleeps }
    }

    #[test]
    fn bells_are_known_only_if_both_ends_tell() {
        let before = [Some(bells(1, 2)), Some(bells(2, 3))];
        let after = [Some(bells(4, 2)), Some(bells(4, 13))];
        assert_eq!(Bells::between(before, after), Some(bells(5, 10)));
        assert_eq!(Bells::between([before[0], None], after), None);
        let tasks = Bells {
            rings: 9,
            sleeps: None,
        };
        let between = Bells::between(before, [after[0], Some(tasks)]).unwrap();
        assert_eq!((between.rings, between.sleeps), (10, None));
        assert_eq!(between.are_for_sleepers(), None);
    }

    #[test]
    fn a_bell_is_for_a_sleeper_or_a_wish_taken_back() {
        assert_eq!(bells(8, 0).are_for_sleepers(), Some(true));
        assert_eq!(bells(9, 0).are_for_sleepers(), Some(false));
        assert_eq!(bells(10_208, 10_000).are_for_sleepers(), Some(true));
        assert_eq!(bells(10_209, 10_000).are_for_sleepers(), Some(false));
    }
}
