//! What a run has reached, as a table, and what it should have.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use hvsock_fabric::Refusal;

/// How often each thing was seen.
#[derive(Default)]
pub struct Tally {
    pub cases: u64,
    /// By row of DESIGN's table, verb and outcome.
    rows: BTreeMap<(Row, Verb), BTreeMap<&'static str, u64>>,
    /// By refusal: when asked, and as the reason of a cut.
    refused: BTreeMap<&'static str, u64>,
    cut_connections: BTreeMap<&'static str, u64>,
    cut_listeners: BTreeMap<&'static str, u64>,
    /// Everything else worth knowing that it happened.
    events: BTreeMap<String, u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    Connect,
    Listen,
}

/// The rows of DESIGN's table; those that mean different things in different partitions are
/// several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    WildcardInRoot,
    Wildcard,
    ParentOfRoot,
    Parent,
    ParentVm,
    ChildrenOfContainer,
    Children,
    Loopback,
    Broadcast,
    SilohostOutsideContainer,
    SilohostHost,
    SilohostVm,
    ChildsId,
    SiblingsIdInOneGroup,
    SiblingsIdInNoGroup,
    OwnId,
    ParentsId,
    StrangersId,
    UnknownIdInRoot,
    UnknownId,
}

const GRANTED: &str = "granted";

impl Row {
    const ALL: [(Row, &'static str); 20] = [
        (Row::WildcardInRoot, "ZERO/WILDCARD, root"),
        (Row::Wildcard, "ZERO/WILDCARD, elsewhere"),
        (Row::ParentOfRoot, "PARENT, root"),
        (Row::Parent, "PARENT, a host"),
        (Row::ParentVm, "PARENT, a VM, from a container"),
        (Row::ChildrenOfContainer, "CHILDREN, container"),
        (Row::Children, "CHILDREN, elsewhere"),
        (Row::Loopback, "LOOPBACK"),
        (Row::Broadcast, "BROADCAST"),
        (Row::SilohostOutsideContainer, "SILOHOST, no container"),
        (Row::SilohostHost, "SILOHOST, container on a host"),
        (Row::SilohostVm, "SILOHOST, container in a VM"),
        (Row::ChildsId, "a child's id"),
        (Row::SiblingsIdInOneGroup, "a sibling's id, one group"),
        (Row::SiblingsIdInNoGroup, "a sibling's id, no group"),
        (Row::OwnId, "its own id"),
        (Row::ParentsId, "its parent's id"),
        (Row::StrangersId, "any other id of the fabric"),
        (Row::UnknownIdInRoot, "an unknown id, root"),
        (Row::UnknownId, "an unknown id, elsewhere"),
    ];

    /// What the table says: the refusal that every request of this row gets, or none where it may
    /// be granted. Requests that are refused before the address is looked at are not counted.
    fn refusal(self, verb: Verb) -> Option<Refusal> {
        match (self, verb) {
            (Row::WildcardInRoot, Verb::Connect) | (Row::Children, Verb::Connect) => {
                Some(Refusal::AddressNotAvailable)
            }
            (Row::ChildrenOfContainer, Verb::Connect) => Some(Refusal::AddressNotAvailable),
            (Row::ChildrenOfContainer, Verb::Listen) | (Row::ParentOfRoot, _) => {
                Some(Refusal::NotSupported)
            }
            (Row::Broadcast | Row::SilohostOutsideContainer, _) => {
                Some(Refusal::AddressNotAvailable)
            }
            (Row::UnknownIdInRoot, _) => Some(Refusal::PartitionUnknown),
            (
                Row::SiblingsIdInNoGroup
                | Row::OwnId
                | Row::ParentsId
                | Row::StrangersId
                | Row::UnknownId,
                _,
            ) => Some(Refusal::NotReachable),
            _ => None,
        }
    }
}

impl Tally {
    pub fn request(&mut self, row: Option<Row>, verb: Verb, outcome: Result<(), &Refusal>) {
        let word = outcome.map_or_else(Refusal::label, |()| GRANTED);
        if let Err(refusal) = outcome {
            *self.refused.entry(refusal.label()).or_default() += 1;
            if let Refusal::LimitReached { which } = refusal {
                self.event(format!("limit reached: {which}"));
            }
        }
        if let Some(row) = row {
            let outcomes = self.rows.entry((row, verb)).or_default();
            *outcomes.entry(word).or_default() += 1;
        }
    }

    pub fn cut_connection(&mut self, refusal: &Refusal) {
        *self.cut_connections.entry(refusal.label()).or_default() += 1;
    }

    pub fn cut_listener(&mut self, refusal: &Refusal) {
        *self.cut_listeners.entry(refusal.label()).or_default() += 1;
    }

    pub fn event(&mut self, what: impl Into<String>) {
        *self.events.entry(what.into()).or_default() += 1;
    }

    /// The tables, and whatever was not reached that should have been.
    pub fn report(&self) -> (String, Vec<String>) {
        let mut text = format!("{} cases agreed\n\n", self.cases);
        let mut missing = Vec::new();
        let _ = writeln!(text, "{:<32}{:>24}{:>24}", "VmId", "connect", "listen");
        for (row, name) in Row::ALL {
            let mut line = format!("{name:<32}");
            for verb in [Verb::Connect, Verb::Listen] {
                let none = BTreeMap::new();
                let outcomes = self.rows.get(&(row, verb)).unwrap_or(&none);
                let sum: u64 = outcomes.values().sum();
                let granted = outcomes.get(GRANTED).copied().unwrap_or(0);
                let cell = match row.refusal(verb) {
                    None => format!("{granted} of {sum}"),
                    Some(want) => {
                        let others = outcomes.keys().filter(|word| **word != want.label());
                        let others: Vec<_> = others.collect();
                        assert!(others.is_empty(), "{row:?} may not end as {others:?}");
                        format!("{sum} refused")
                    }
                };
                let reached = if row.refusal(verb).is_none() {
                    granted
                } else {
                    sum
                };
                if reached == 0 {
                    missing.push(format!("{name}, {}", ["connect", "listen"][verb as usize]));
                }
                let _ = write!(line, "{cell:>24}");
            }
            let _ = writeln!(text, "{line}");
        }
        let head = ["refusal", "asked", "connections cut", "listeners cut"];
        let _ = writeln!(
            text,
            "\n{:<24}{:>12}{:>18}{:>16}",
            head[0], head[1], head[2], head[3]
        );
        for label in Refusal::ALL_LABELS {
            let count = |of: &BTreeMap<&str, u64>| of.get(label).copied().unwrap_or(0);
            let asked = count(&self.refused);
            let _ = write!(text, "{label:<24}{asked:>12}");
            let (cut, ended) = (count(&self.cut_connections), count(&self.cut_listeners));
            let _ = write!(text, "{cut:>18}{ended:>16}");
            match who_else_refuses(label) {
                Some(who) => {
                    let _ = write!(text, "  {who}");
                    assert_eq!(asked + cut + ended, 0, "{label} is not the fabric's");
                }
                None if asked == 0 => missing.push(label.to_owned()),
                None => {}
            }
            text.push('\n');
        }
        text.push('\n');
        for (what, count) in &self.events {
            let _ = writeln!(text, "{what:<56}{count:>12}");
        }
        for event in [
            "limit reached: listeners",
            "limit reached: listeners_per_partition",
            "limit reached: connections",
            "limit reached: connections_per_partition",
            "suspended",
            "resumed",
            "wildcard yields to a class",
            "class yields to an id",
            "to a child that is a guest",
            "to a sibling that is a guest",
        ] {
            if !self.events.contains_key(event) {
                missing.push(event.to_owned());
            }
        }
        // What is rare is missed by a short run now and then.
        if self.cases >= 50_000 {
            for (what, seen, want) in [
                (
                    "connections cut",
                    &self.cut_connections,
                    REASONS_TO_CUT_CONNECTIONS,
                ),
                (
                    "listeners cut",
                    &self.cut_listeners,
                    REASONS_TO_CUT_LISTENERS,
                ),
            ] {
                let unseen = want.iter().filter(|label| !seen.contains_key(**label));
                missing.extend(unseen.map(|label| format!("{what}: {label}")));
            }
        }
        (text, missing)
    }
}

const REASONS_TO_CUT_CONNECTIONS: &[&str] = &[
    "unregistered",
    "disabled",
    "partition_off",
    "partition_paused",
    "no_listener",
];

const REASONS_TO_CUT_LISTENERS: &[&str] = &[
    "unregistered",
    "disabled",
    "denied",
    "partition_unknown",
    "partition_off",
    "not_reachable",
    "wildcard_not_allowed",
];

/// Refusals that need time, a peer or a transport, none of which the fabric has; their words and
/// numbers are tested with all others in `src/refusal.rs`.
fn who_else_refuses(label: &str) -> Option<&'static str> {
    match label {
        "timed_out" => {
            Some("not here: who waits for an answer says it, the library and the broker")
        }
        "service_not_mappable" => Some("not here: transports that know ports only say it"),
        "reset" => Some("not here: who moves the bytes says it, the library and the broker"),
        _ => None,
    }
}
