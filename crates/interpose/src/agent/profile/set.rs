//! Sets of system call arguments: unions of intervals of 64-bit numbers, and what OCI's conditions say of them.

use serde::{Deserialize, Serialize};

/// A condition of one argument, as in an OCI profile.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    pub index: u32,
    pub value: u64,
    /// The second operand of `SCMP_CMP_MASKED_EQ`, whose first is the mask.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub value_two: u64,
    pub op: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// A set of numbers, as disjoint intervals in ascending order that do not touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set(Vec<(u64, u64)>);

impl Set {
    pub fn all() -> Self {
        Self(vec![(0, u64::MAX)])
    }

    pub fn one(value: u64) -> Self {
        Self(vec![(value, value)])
    }

    fn from_to(first: u64, last: u64) -> Self {
        Self(if first <= last {
            vec![(first, last)]
        } else {
            Vec::new()
        })
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn is_all(&self) -> bool {
        self.0 == [(0, u64::MAX)]
    }

    #[cfg(test)]
    pub fn contains(&self, value: u64) -> bool {
        self.0
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&value))
    }

    pub fn complement(&self) -> Self {
        let mut rest = Vec::new();
        let mut next = Some(0);
        for (first, last) in &self.0 {
            if let Some(start) = next
                && start < *first
            {
                rest.push((start, first - 1));
            }
            next = last.checked_add(1);
        }
        rest.extend(next.map(|start| (start, u64::MAX)));
        Self(rest)
    }

    pub fn intersection(&self, other: &Self) -> Self {
        let mut both = Vec::new();
        for (first, last) in &self.0 {
            for (from, to) in &other.0 {
                let (from, to) = (*first.max(from), *last.min(to));
                if from <= to {
                    both.push((from, to));
                }
            }
        }
        Self(both)
    }

    /// The numbers for which a condition holds. `None` for an unknown operator, or a mask whose numbers are no
    /// interval.
    pub fn of(condition: &Condition) -> Option<Self> {
        let value = condition.value;
        let below = || {
            value
                .checked_sub(1)
                .map_or(Self(Vec::new()), |last| Self::from_to(0, last))
        };
        let above = || {
            let first = value.checked_add(1);
            first.map_or(Self(Vec::new()), |first| Self::from_to(first, u64::MAX))
        };
        Some(match condition.op.as_str() {
            "SCMP_CMP_EQ" => Self::one(value),
            "SCMP_CMP_NE" => Self::one(value).complement(),
            "SCMP_CMP_LT" => below(),
            "SCMP_CMP_GE" => below().complement(),
            "SCMP_CMP_GT" => above(),
            "SCMP_CMP_LE" => above().complement(),
            "SCMP_CMP_MASKED_EQ" => {
                let (mask, start) = (value, condition.value_two);
                let low = !mask;
                // Ones below zeros only.
                let is_prefix = low & low.wrapping_add(1) == 0;
                if !is_prefix || start & low != 0 {
                    return None;
                }
                Self::from_to(start, start | low)
            }
            _ => return None,
        })
    }

    /// Conditions of the argument, of which one holds for each number of the set and none for another. `None`
    /// stands for no condition.
    pub fn conditions(&self, index: u32) -> Vec<Option<Condition>> {
        let condition = |op: &str, value, value_two| {
            Some(Condition {
                index,
                value,
                value_two,
                op: format!("SCMP_CMP_{op}"),
            })
        };
        if self.is_all() {
            return vec![None];
        }
        if let [(value, last)] = self.complement().0[..]
            && value == last
        {
            return vec![condition("NE", value, 0)];
        }
        let mut conditions = Vec::new();
        for (first, last) in &self.0 {
            match (*first, *last) {
                (0, last) if last < u64::MAX => conditions.push(condition("LT", last + 1, 0)),
                (first, u64::MAX) if first > 0 => conditions.push(condition("GT", first - 1, 0)),
                (first, last) => {
                    let blocks = blocks(first, last).into_iter();
                    conditions.extend(blocks.map(|(start, low)| match low {
                        0 => condition("EQ", start, 0),
                        low => condition("MASKED_EQ", !low, start),
                    }));
                }
            }
        }
        conditions
    }
}

/// Divides an interval into aligned blocks whose sizes are powers of two: the first number of each, and the bits
/// that vary in it.
fn blocks(first: u64, last: u64) -> Vec<(u64, u64)> {
    let mut blocks = Vec::new();
    let mut next = Some(first);
    while let Some(start) = next.filter(|start| *start <= last) {
        let mut low = 0;
        loop {
            let larger = low << 1 | 1;
            if larger == low || start & larger != 0 || start | larger > last {
                break;
            }
            low = larger;
        }
        blocks.push((start, low));
        next = (start | low).checked_add(1);
    }
    blocks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether a condition holds, as libseccomp evaluates it.
    fn holds(condition: &Condition, number: u64) -> bool {
        let value = condition.value;
        match condition.op.as_str() {
            "SCMP_CMP_EQ" => number == value,
            "SCMP_CMP_NE" => number != value,
            "SCMP_CMP_LT" => number < value,
            "SCMP_CMP_LE" => number <= value,
            "SCMP_CMP_GT" => number > value,
            "SCMP_CMP_GE" => number >= value,
            "SCMP_CMP_MASKED_EQ" => number & value == condition.value_two,
            other => panic!("{other}"),
        }
    }

    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![0..70_u64, (u64::MAX - 70)..=u64::MAX, any::<u64>()]
    }

    fn condition() -> impl Strategy<Value = Condition> {
        let op = prop::sample::select(vec!["EQ", "NE", "LT", "LE", "GT", "GE"]);
        let compare = (number(), op).prop_map(|(value, op)| (value, 0, op));
        let masked = (number(), 0..64_u32).prop_map(|(number, bits)| {
            let mask = u64::MAX << bits;
            (mask, number & mask, "MASKED_EQ")
        });
        prop_oneof![compare, masked].prop_map(|(value, value_two, op)| Condition {
            index: 1,
            value,
            value_two,
            op: format!("SCMP_CMP_{op}"),
        })
    }

    proptest! {
        #[test]
        fn sets_hold_what_their_conditions_hold(
            one in condition(),
            other in condition(),
            numbers in prop::collection::vec(number(), 64),
        ) {
            let (first, second) = (Set::of(&one).unwrap(), Set::of(&other).unwrap());
            let both = first.intersection(&second);
            let neither = first.complement().intersection(&second.complement());
            let near = [one.value, other.value, one.value_two, other.value_two];
            let near = near.into_iter().flat_map(|number| {
                [number.wrapping_sub(1), number, number.wrapping_add(1)]
            });
            for number in numbers.into_iter().chain(near) {
                let (a, b) = (holds(&one, number), holds(&other, number));
                prop_assert_eq!(first.contains(number), a);
                prop_assert_eq!(both.contains(number), a && b);
                prop_assert_eq!(neither.contains(number), !a && !b);
                for set in [&first, &both, &neither, &both.complement()] {
                    let conditions = set.conditions(1);
                    let holding = conditions.iter().filter(|condition| {
                        condition.as_ref().is_none_or(|condition| holds(condition, number))
                    });
                    // One, so that no two rules can disagree.
                    prop_assert_eq!(holding.count(), usize::from(set.contains(number)));
                    prop_assert!(set.is_empty() == conditions.is_empty());
                }
            }
        }
    }

    #[test]
    fn what_is_no_interval_is_not_a_set() {
        let mut odd = Condition {
            index: 0,
            value: 5,
            value_two: 5,
            op: "SCMP_CMP_MASKED_EQ".to_owned(),
        };
        assert_eq!(Set::of(&odd), None);
        // Never true: the number is outside the mask.
        (odd.value, odd.value_two) = (!0xff, 1);
        assert_eq!(Set::of(&odd), None);
        odd.op = "SCMP_CMP_OTHER".to_owned();
        assert_eq!(Set::of(&odd), None);
    }
}
