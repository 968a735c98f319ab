//! Concurrent writers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use hvsock_registry::key_store::KeyError;

use super::*;

#[test]
fn exactly_one_of_several_writers_gets_a_name() {
    const NAMES: usize = 12;
    let scratch = Scratch::new();
    let done = AtomicBool::new(false);
    let won: usize = thread::scope(|scope| {
        // A concurrent reader sees complete services only.
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !done.load(Ordering::Relaxed) {
                let listing = scratch.read();
                assert_eq!(listing.problems, [""; 0]);
                for one in listing.registry.iter() {
                    assert_eq!(one.purpose.as_deref(), Some("a test"), "{one:?}");
                }
                reads += 1;
            }
            reads
        });
        let writer = || {
            let mut store = scratch.store();
            let puts = (0..NAMES).map(|n| {
                let service = new_service(&format!("Name {n}"));
                match store.put(&service) {
                    Ok(()) => {
                        store.set_enabled(service.id, false).unwrap();
                        store.set_enabled(service.id, true).unwrap();
                        1
                    }
                    Err(KeyError::Clash(_)) => 0,
                    Err(other) => panic!("{other}"),
                }
            });
            puts.sum::<usize>()
        };
        let writers: Vec<_> = (0..3).map(|_| scope.spawn(writer)).collect();
        let won = writers
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect::<Vec<_>>();
        done.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
        won.into_iter().map(Result::unwrap).sum()
    });
    assert_eq!(won, NAMES);
    assert_eq!(scratch.read().registry.len(), NAMES);
    assert_eq!(scratch.keys()[1].len(), 0);
}

#[test]
fn a_writer_that_waits_too_long_reports_busy() {
    let scratch = Scratch::new();
    let service = new_service("Late");
    let name = format!(
        "hvsock {}",
        scratch.services().replace('\\', "/").to_lowercase()
    );
    let limit = std::time::Duration::ZERO;
    let turn = hvsock_sys::named_mutex::lock(&name, limit)
        .unwrap()
        .unwrap();
    let busy = thread::scope(|scope| {
        let put = scope.spawn(|| scratch.store().put(&service));
        put.join().unwrap()
    });
    assert!(matches!(busy, Err(KeyError::Busy(5))), "{busy:?}");
    drop(turn);
    scratch.store().put(&service).unwrap();
}
