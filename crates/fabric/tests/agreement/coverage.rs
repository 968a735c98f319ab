//! Counters of the cases that a run covered, and the check that it covered all.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use hvsock_fabric::Refusal;

/// How often each case occurred.
#[derive(Default)]
pub struct Coverage {
    pub cases: u64,
    /// By row of the address table, verb and outcome.
    rows: BTreeMap<(Row, Verb), BTreeMap<&'static str, u64>>,
    /// By refusal: of requests, of connections that were reset, and of listeners that were closed.
    refused: BTreeMap<&'static str, u64>,
    reset_connections: BTreeMap<&'static str, u64>,
    closed_listeners: BTreeMap<&'static str, u64>,
    /// Other events.
    events: BTreeMap<String, u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    Connect,
    Listen,
}

/// The rows of the address table in docs/tutorial.md. An id whose meaning depends on the partition has
/// several rows.
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
    GrandchildsId,
    GrandparentsId,
    GrandparentsIdOuter,
    OutersId,
    SiblingsIdInOneGroup,
    SiblingsIdInNoGroup,
    OwnId,
    ParentsId,
    UnrelatedId,
    UnknownIdInRoot,
    UnknownId,
}

const GRANTED: &str = "granted";

impl Row {
    const ALL: [(Row, &'static str); 24] = [
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
        (Row::GrandchildsId, "a child's child's id"),
        (Row::GrandparentsId, "the host's id, in VM's container"),
        (Row::GrandparentsIdOuter, "the outer's id, container"),
        (Row::OutersId, "the outer's id, root"),
        (Row::SiblingsIdInOneGroup, "a sibling's id, one group"),
        (Row::SiblingsIdInNoGroup, "a sibling's id, no group"),
        (Row::OwnId, "its own id"),
        (Row::ParentsId, "its parent's id"),
        (Row::UnrelatedId, "any other id of the fabric"),
        (Row::UnknownIdInRoot, "an unknown id, root"),
        (Row::UnknownId, "an unknown id, elsewhere"),
    ];

    /// The refusal that the table requires for every request of this row. `None` if the request may
    /// succeed. Requests that are refused before the address is resolved are not counted.
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
                | Row::UnrelatedId
                | Row::UnknownId,
                _,
            ) => Some(Refusal::NotReachable),
            _ => None,
        }
    }
}

impl Coverage {
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

    pub fn reset_connection(&mut self, refusal: &Refusal) {
        *self.reset_connections.entry(refusal.label()).or_default() += 1;
    }

    pub fn terminate_listener(&mut self, refusal: &Refusal) {
        *self.closed_listeners.entry(refusal.label()).or_default() += 1;
    }

    pub fn event(&mut self, what: impl Into<String>) {
        *self.events.entry(what.into()).or_default() += 1;
    }

    /// The coverage as text, and the required cases that did not occur.
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
        let head = [
            "refusal",
            "requested",
            "connections reset",
            "listeners closed",
        ];
        let _ = writeln!(
            text,
            "\n{:<24}{:>12}{:>18}{:>16}",
            head[0], head[1], head[2], head[3]
        );
        for label in Refusal::ALL_LABELS {
            let count = |of: &BTreeMap<&str, u64>| of.get(label).copied().unwrap_or(0);
            let requested = count(&self.refused);
            let _ = write!(text, "{label:<24}{requested:>12}");
            let (reset, closed) = (
                count(&self.reset_connections),
                count(&self.closed_listeners),
            );
            let _ = write!(text, "{reset:>18}{closed:>16}");
            match other_source(label) {
                Some(who) => {
                    let _ = write!(text, "  {who}");
                    assert_eq!(requested + reset + closed, 0, "{label} is not the fabric's");
                }
                None if requested == 0 => missing.push(label.to_owned()),
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
            "weight changed",
            "weight refused",
            "a verdict changed",
            "a verdict lasted",
            "wildcard yields to a class",
            "class yields to an id",
            "to a child that is a guest",
            "to a sibling that is a guest",
            "to a container in a guest",
            "to the host of this VM",
            "from the host of this VM",
        ] {
            if !self.events.contains_key(event) {
                missing.push(event.to_owned());
            }
        }
        // A short run may miss rare cases.
        if self.cases >= 50_000 {
            for (what, seen, want) in [
                ("connections reset", &self.reset_connections, RESET_REASONS),
                ("listeners closed", &self.closed_listeners, CLOSE_REASONS),
            ] {
                let unseen = want.iter().filter(|label| !seen.contains_key(**label));
                missing.extend(unseen.map(|label| format!("{what}: {label}")));
            }
        }
        (text, missing)
    }
}

const RESET_REASONS: &[&str] = &[
    "unregistered",
    "disabled",
    "partition_off",
    "no_driver",
    "partition_exited",
    "partition_paused",
    "no_listener",
];

const CLOSE_REASONS: &[&str] = &[
    "unregistered",
    "disabled",
    "denied",
    "partition_unknown",
    "partition_off",
    "no_driver",
    "partition_exited",
    "not_reachable",
    "wildcard_not_allowed",
];

/// The source of a refusal that needs a timeout, a peer or a transport, which the fabric does not have.
/// The tests in `src/refusal.rs` cover the labels and codes of these refusals.
fn other_source(label: &str) -> Option<&'static str> {
    match label {
        "timed_out" => Some("not here: the library and the broker report it after a timeout"),
        "service_not_mappable" => Some("not here: transports with port numbers only report it"),
        "reset" => Some("not here: the library and the broker report it during data transfer"),
        _ => None,
    }
}
