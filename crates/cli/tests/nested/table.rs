//! The resolution table, cell by cell: from each partition to each address, for each listener of each partition.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::thread;

use hvsock_address::VmId;
use hvsock_testkit::nested::{Listens, Probe};

use crate::partitions::Partitions;
use crate::reading::{self, Meaning, Place};

/// The words of the table.
const WORDS: [(&str, Meaning); 6] = [
    ("wildcard", Meaning::Wildcard),
    ("parent", Meaning::Parent),
    ("children", Meaning::Children),
    ("loopback", Meaning::Loopback),
    ("broadcast", Meaning::Broadcast),
    ("silohost", Meaning::SiloHost),
];

/// An address as text in one partition.
struct Address {
    text: String,
    means: Meaning,
}

/// Every address in a partition: the words, the ids and names of all partitions, and those of none.
fn addresses(partitions: &Partitions, at: Place) -> Vec<Address> {
    let address = |text: &str, means| Address {
        text: text.to_owned(),
        means,
    };
    let mut all: Vec<Address> = WORDS
        .iter()
        .map(|(text, means)| address(text, *means))
        .collect();
    for place in Place::ALL {
        let id = partitions.id(at, place);
        all.push(address(&id.to_string(), Meaning::The(place)));
        let name = partitions.name(at, place);
        all.push(match name {
            Some(name) => address(name, Meaning::Named(place)),
            // A name of another broker means nothing here.
            None => address(&format!("not-{place:?}"), Meaning::NoName),
        });
    }
    all.push(address(&VmId::random().to_string(), Meaning::Nobody));
    all.push(address("nobody", Meaning::NoName));
    all
}

/// The listeners that each partition tries: one service for each meaning, so that every one can be reached
/// alone.
fn bindings() -> Vec<Meaning> {
    let words = WORDS.iter().map(|(_, means)| *means);
    let ids = Place::ALL.into_iter().map(Meaning::The);
    let names = Place::ALL.into_iter().map(Meaning::Named);
    let nobody = [Meaning::Nobody, Meaning::NoName];
    words.chain(ids).chain(names).chain(nobody).collect()
}

fn service(index: usize) -> String {
    format!("{}", 7100 + index)
}

/// The service at which each partition has all its listeners.
const SHARED: &str = "7200";

/// What happens in a cell, as words.
type Outcome = Result<String, String>;

#[test]
fn every_cell_of_the_resolution_table_is_as_read_from_each_of_five_partitions() {
    let Some(partitions) = Partitions::new() else {
        return;
    };
    let mut ports: Vec<String> = (0..bindings().len()).map(service).collect();
    ports.push(SHARED.to_owned());
    for owner in [&partitions.stage.host, &partitions.stage.vm] {
        for port in &ports {
            let name = format!("Service {port}");
            owner
                .hvsock(&["service", "register", &name, "--port", port])
                .ok();
        }
    }
    let mut wrong = String::new();
    let mut cells = 0;
    let mut check = |checked: Vec<(String, Outcome, Outcome)>| {
        for (cell, want, seen) in checked {
            cells += 1;
            if want != seen {
                let _ = writeln!(wrong, "{cell}: {seen:?}, and not {want:?}");
            }
        }
    };
    for checked in partitions.each(|at, probe| listen_everywhere(&partitions, at, probe)) {
        check(checked);
    }
    for checked in partitions.each(|at, probe| connect_everywhere(&partitions, at, probe)) {
        check(checked);
    }
    eprintln!("{cells} cells");
    assert!(wrong.is_empty(), "{wrong}");
}

/// Listens for each meaning, by each address that has it, in turn. The last one stays.
fn listen_everywhere(
    partitions: &Partitions,
    at: Place,
    probe: &Probe,
) -> Vec<(String, Outcome, Outcome)> {
    let mut checked = Vec::new();
    let all = addresses(partitions, at);
    for (index, means) in bindings().into_iter().enumerate() {
        let service = service(index);
        let texts: Vec<&str> = all
            .iter()
            .filter(|address| address.means == means)
            .map(|address| address.text.as_str())
            .collect();
        for (turn, from) in texts.iter().enumerate() {
            let name = format!("{at:?}:{means:?}");
            let seen = probe.listen(from, &service, Listens::As(&name));
            let want = reading::listens(at, means).map(|()| "listening".to_owned());
            let seen = seen
                .map(|()| "listening".to_owned())
                .map_err(|error| error.reason);
            checked.push((
                format!("{at:?} listens from {from}"),
                want.map_err(str::to_owned),
                seen,
            ));
            if turn + 1 < texts.len() {
                probe.unlisten(from, &service);
            }
        }
    }
    // One for each partition or set of them that it can accept from.
    let mut distinct: BTreeMap<Vec<bool>, &Address> = BTreeMap::new();
    for address in &all {
        let is_name = matches!(address.means, Meaning::Named(_));
        if !is_name && reading::listens(at, address.means).is_ok() {
            let accepts = |from| reading::accepts(at, address.means, from).is_some();
            let mut key: Vec<bool> = Place::ALL.into_iter().map(accepts).collect();
            // CHILDREN and the one child's id are two addresses.
            key.push(matches!(address.means, Meaning::The(child) if child.parent() == Some(at)));
            key.push(address.means == Meaning::Children);
            distinct.entry(key).or_insert(address);
        }
    }
    for address in distinct.values() {
        let name = format!("{at:?}:{:?}", address.means);
        let seen = probe.listen(&address.text, SHARED, Listens::As(&name));
        checked.push((
            format!("{at:?} listens from {} as well", address.text),
            Ok(String::new()),
            seen.map(|()| String::new()).map_err(|error| error.text),
        ));
    }
    checked
}

/// Connects to each address: to every listener of the partition that it leads to, or once if it leads nowhere.
fn connect_everywhere(
    partitions: &Partitions,
    from: Place,
    probe: &Probe,
) -> Vec<(String, Outcome, Outcome)> {
    let mut checked = Vec::new();
    let mut cell = |to: &str, port: &str, want: Outcome| {
        let seen = probe.connect(to, port);
        let seen = seen
            .map(|connected| format!("{} sees {}", connected.listener, connected.seen_as))
            .map_err(|refused| refused.reason);
        checked.push((format!("{from:?} to {to} {port}"), want, seen));
    };
    for address in addresses(partitions, from) {
        let at = match reading::connects_to(from, address.means) {
            Err(reason) => {
                cell(&address.text, SHARED, Err(reason.to_owned()));
                continue;
            }
            Ok(at) => at,
        };
        let seen_as = partitions.name(at, from).unwrap_or("?");
        let answer = |means| Ok(format!("{at:?}:{means:?} sees {seen_as}"));
        for (index, means) in bindings().into_iter().enumerate() {
            let want = match reading::accepts(at, means, from) {
                Some(_) => answer(means),
                None => Err("no_listener".to_owned()),
            };
            cell(&address.text, &service(index), want);
        }
        let best = bindings()
            .into_iter()
            .filter(|means| !matches!(means, Meaning::Named(_)))
            .filter_map(|means| Some((reading::accepts(at, means, from)?, means)))
            // A VM's parent has two spellings, of which the word is the one that listens.
            .min_by_key(|(rank, _)| *rank);
        let want = best.map_or(Err("no_listener".to_owned()), |(_, means)| answer(means));
        cell(&address.text, SHARED, want);
    }
    checked
}

impl Partitions {
    /// Does the same in each partition, concurrently.
    fn each<T: Send>(&self, does: impl Fn(Place, &Probe) -> T + Sync) -> Vec<T> {
        thread::scope(|scope| {
            let does = &does;
            let running: Vec<_> = Place::ALL
                .into_iter()
                .map(|at| scope.spawn(move || does(at, self.probe(at))))
                .collect();
            let joined = running.into_iter().map(thread::ScopedJoinHandle::join);
            joined.map(|done| done.expect("no panic")).collect()
        })
    }
}
