//! Regions of the arguments of one system call, and how rules divide them.

use hvsock_sys::seccomp::{Action, ArgEq, Rule};

use super::set::{Condition, Set};

/// How many arguments a system call has at most.
const ARGUMENTS: usize = 6;

/// All calls whose every argument is in a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region([Set; ARGUMENTS]);

impl Region {
    pub fn all() -> Self {
        Self(std::array::from_fn(|_| Set::all()))
    }

    /// The regions of a rule's conditions, of which all must hold. Runtimes read several conditions of one
    /// argument otherwise: one of all conditions must hold. `None` if a condition is none of an interval.
    pub fn of(conditions: &[Condition]) -> Option<Vec<Self>> {
        let mut seen = [false; ARGUMENTS];
        let mut repeated = false;
        for condition in conditions {
            let seen = seen.get_mut(usize::try_from(condition.index).ok()?)?;
            repeated |= std::mem::replace(seen, true);
        }
        let with = |mut region: Self, condition: &Condition| {
            let index = usize::try_from(condition.index).ok()?;
            let argument = region.0.get_mut(index)?;
            *argument = argument.intersection(&Set::of(condition)?);
            Some(region)
        };
        if repeated {
            return conditions
                .iter()
                .map(|condition| with(Self::all(), condition))
                .collect();
        }
        let region = conditions.iter().try_fold(Self::all(), with)?;
        Some(vec![region])
    }

    pub fn is_empty(&self) -> bool {
        self.0.iter().any(Set::is_empty)
    }

    pub fn intersection(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|index| {
            self.0[index].intersection(&other.0[index])
        }))
    }

    /// What of this is not in `other`, as disjoint regions.
    pub fn without(&self, other: &Self) -> Vec<Self> {
        let mut rest = self.clone();
        let mut parts = Vec::new();
        for (index, set) in other.0.iter().enumerate() {
            let mut outside = rest.clone();
            outside.0[index] = outside.0[index].intersection(&set.complement());
            if !outside.is_empty() {
                parts.push(outside);
            }
            rest.0[index] = rest.0[index].intersection(set);
        }
        // What is left is in both.
        if rest.is_empty() {
            vec![self.clone()]
        } else {
            parts
        }
    }

    /// The conditions of disjoint rules, each with at most one condition of an argument, that together hold for
    /// this region.
    pub fn rules(&self) -> Vec<Vec<Condition>> {
        let mut rules = vec![Vec::new()];
        for (index, set) in (0..).zip(&self.0) {
            let conditions = set.conditions(index);
            let each = |rule: &Vec<Condition>| {
                let with = |condition: &Option<Condition>| {
                    rule.iter().cloned().chain(condition.clone()).collect()
                };
                conditions.iter().map(with).collect::<Vec<_>>()
            };
            rules = rules.iter().flat_map(each).collect();
        }
        rules
    }

    #[cfg(test)]
    pub fn contains(&self, args: [u64; ARGUMENTS]) -> bool {
        self.0.iter().zip(args).all(|(set, arg)| set.contains(arg))
    }
}

/// Divides the calls with one number by the rules for it: disjoint regions that cover everything, each with what
/// the first matching rule does, or [`Action::Allow`].
pub fn divide(rules: &[Rule<'_>]) -> Vec<(Region, Action)> {
    let rules: Vec<_> = rules
        .iter()
        .map(|rule| (rule.args.to_vec(), rule.action))
        .collect();
    let mut parts = Vec::new();
    divide_rest(&Region::all(), &rules, &mut parts);
    parts
}

type Rest = Vec<(Vec<ArgEq>, Action)>;

fn divide_rest(region: &Region, rules: &Rest, parts: &mut Vec<(Region, Action)>) {
    let Some((args, action)) = rules.first() else {
        parts.push((region.clone(), Action::Allow));
        return;
    };
    let Some(index) = args.first().map(|arg| arg.index) else {
        parts.push((region.clone(), *action));
        return;
    };
    let mut values: Vec<_> = rules.iter().flat_map(|(args, _)| args).collect();
    values.retain(|arg| arg.index == index);
    let mut values: Vec<_> = values.iter().map(|arg| arg.value).collect();
    values.sort_unstable();
    values.dedup();
    let mut others = Set::all();
    for value in values {
        let set = Set::one(value.into());
        others = others.intersection(&set.complement());
        let mut inside = region.clone();
        inside.0[usize::from(index)] = set;
        let agrees = |arg: &ArgEq| arg.index != index || arg.value == value;
        let matching = rules.iter().filter(|(args, _)| args.iter().all(agrees));
        let without = |args: &[ArgEq]| {
            args.iter()
                .copied()
                .filter(|arg| arg.index != index)
                .collect()
        };
        let rest = matching
            .map(|(args, action)| (without(args), *action))
            .collect();
        divide_rest(&inside, &rest, parts);
    }
    let mut outside = region.clone();
    outside.0[usize::from(index)] = others;
    let is_free = |args: &[ArgEq]| args.iter().all(|arg| arg.index != index);
    let rest = rules
        .iter()
        .filter(|(args, _)| is_free(args))
        .cloned()
        .collect();
    divide_rest(&outside, &rest, parts);
}
