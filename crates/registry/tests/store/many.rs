//! A hundred thousand registrations.

use std::fs;
use std::time::{Duration, Instant};

use hvsock_registry::entry_folder::Changed;

use super::*;

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Prints the costs (`--nocapture`). The cost of a single change must not depend on the number of
/// registrations. So it is compared with that of a full rescan on the same machine, not with a clock.
#[test]
fn a_change_among_a_hundred_thousand_registrations_is_much_cheaper_than_a_rescan() {
    const COUNT: u32 = 100_000;
    let folder = scratch();
    let config = Config::new_in(&folder);
    let begun = Instant::now();
    // Port 920 is the broker's own.
    for port in (0..=COUNT).filter(|port| *port != 920) {
        let text = format!(
            "name = \"Service {port}\"\nowner = \"alice\"\ncreator = \"test\"\n\n[connect]\n\
             partitions = [\"web\", \"@ci\"]\n"
        );
        config.write(id(port), &text);
    }
    let written = begun.elapsed();
    let before = resident();
    let begun = Instant::now();
    let mut store = config.store();
    let opened = begun.elapsed();
    let memory = resident().saturating_sub(before) / COUNT as usize;
    assert_eq!(store.len(), COUNT as usize);

    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let time = |work: &mut dyn FnMut(u32)| {
        let times = (0..101).map(|n| {
            let begun = Instant::now();
            work(n);
            begun.elapsed()
        });
        median(times.collect())
    };
    let put = time(&mut |n| {
        let port = COUNT + 1 + n;
        let new = registration(port, &format!("New {port}"));
        assert_eq!(store.put(new).unwrap().len(), 1);
    });
    let enable = time(&mut |n| drop(store.set_enabled(id(n * 7), false, None).unwrap()));
    let reload = time(&mut |n| {
        config.write(id(n), &format!("name = \"Edited {n}\"\n"));
        let changes = store.reload(&Changed::Files(vec![config.file(id(n))]));
        assert!(matches!(changes[..], [Change::Updated(_)]));
    });
    let begun = Instant::now();
    assert_eq!(store.reload(&Changed::Everything), []);
    let everything = begun.elapsed();

    let empty = Config::new_in(&folder);
    let mut small = empty.store();
    let put_empty = time(&mut |n| drop(small.put(registration(n, &format!("s{n}"))).unwrap()));
    eprintln!(
        "{COUNT} registrations: written by hand in {written:.2?}, opened in {opened:.2?}, \
         {memory} bytes each; put {put:.1?} (in an empty folder {put_empty:.1?}), disable \
         {enable:.1?}, reload of one file {reload:.1?}, of everything {everything:.2?}"
    );
    assert!(opened < Duration::from_secs(60), "{opened:?}");
    assert!(reload * 20 < everything, "{reload:?} of {everything:?}");
    assert!(put * 20 < everything, "{put:?} of {everything:?}");
}
