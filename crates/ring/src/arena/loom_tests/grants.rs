//! The broker revokes a grant, and asks for messages, while the pair opens and accepts connections.

use loom::sync::Arc;
use loom::thread;

use crate::arena::grant::Grant;
use crate::arena::words::{ClientEntry, EndTotals, GrantWords, ServerEntry};
use crate::arena::{ResetCause, changes, reset, table};
use crate::layout::RESET;
use crate::loom_tests::explore;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

const SEQ: u32 = 7;

struct Shared {
    grant: GrantWords,
    client: ClientEntry,
    server: ServerEntry,
    state: AtomicU64,
}

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            grant: GrantWords::new(),
            client: ClientEntry::new(),
            server: ServerEntry::new(),
            state: AtomicU64::new(u64::from(SEQ) << 32),
        })
    }

    fn is_listed(&self) -> bool {
        table::open_connection(&self.client, &self.server, 0, [false; 2]).is_some()
    }
}

#[test]
fn a_connection_that_a_revocation_does_not_find_is_refused() {
    explore(None, || {
        let shared = Shared::new();
        let client = Arc::clone(&shared);
        let opens = thread::spawn(move || {
            table::open(&client.client, SEQ, 0);
            table::grant_after_change(&client.grant)
        });
        Grant::Revoked.store(&shared.grant);
        let is_listed = shared.is_listed();
        assert!(opens.join().unwrap() == Grant::Revoked || is_listed);
    });
}

#[test]
fn a_connection_that_the_broker_finds_unaccepted_after_a_revocation_is_not_accepted() {
    explore(None, || {
        let shared = Shared::new();
        let server = Arc::clone(&shared);
        let accepts =
            thread::spawn(move || table::accept(&server.server, SEQ, &server.state, &server.grant));
        Grant::Revoked.store(&shared.grant);
        let was_accepted = table::is_accepted(&shared.server, SEQ);
        if !was_accepted {
            reset::change(&shared.state, SEQ, RESET, 0);
        }
        assert!(was_accepted || !accepts.join().unwrap());
    });
}

/// The broker resets what was not accepted without a revocation, as for a listener that was closed.
#[test]
fn a_connection_that_was_reset_before_it_was_accepted_is_not_accepted() {
    explore(None, || {
        let shared = Shared::new();
        let server = Arc::clone(&shared);
        let accepts =
            thread::spawn(move || table::accept(&server.server, SEQ, &server.state, &server.grant));
        reset::change(&shared.state, SEQ, RESET | ResetCause::Control.bits(), 0);
        crate::sync::fence(Ordering::SeqCst);
        let was_accepted = table::is_accepted(&shared.server, SEQ);
        assert!(was_accepted || !accepts.join().unwrap());
    });
}

#[test]
fn the_broker_is_told_of_a_change_or_finds_it() {
    explore(None, || {
        let shared = Arc::new((EndTotals::new(), AtomicU32::new(0)));
        let end = Arc::clone(&shared);
        let closes = thread::spawn(move || {
            changes::count_closed(&end.0, 0);
            changes::take_request(&end.1)
        });
        let (totals, request) = &*shared;
        let is_unchanged = || totals.closed.load(Ordering::Acquire) == 0;
        let is_waiting = changes::request(request, is_unchanged);
        let was_told = closes.join().unwrap();
        assert!(!is_waiting || was_told);
        // Nothing is left of a request that was answered or withdrawn.
        assert_eq!(request.load(Ordering::Relaxed), 0);
    });
}
