//! A watch: what it has sent, and what remains to be sent.
//!
//! It keeps the state that it sent, not a history of changes. So a slow reader costs no more than a
//! fast one, and it always receives the final state.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use super::pool::Pool;
use super::store::{Seen, Store, pair};
use crate::wire::kvp::watch_event::Kind;
use crate::wire::kvp::{Pair, Pool as WirePool, WatchEvent};

/// How often the files are checked for changes by other programs.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

const POOLS: [WirePool; 4] = [
    WirePool::External,
    WirePool::Guest,
    WirePool::Auto,
    WirePool::AutoExternal,
];

/// One call of `Watch`.
pub(super) struct Watch {
    store: Arc<Store>,
    wanted: [bool; 4],
    key: Option<String>,
    changes: Receiver<Seen>,
    sent: Seen,
    /// The differences between `sent` and `next`, by pool number, in reverse order.
    next: Seen,
    differences: Vec<(usize, Difference)>,
    first: bool,
    next_check: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Watch {
    pub(super) fn new(
        store: Arc<Store>,
        wanted: [bool; 4],
        key: Option<String>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let changes = store.watch();
        Self {
            store,
            wanted,
            key,
            changes,
            sent: Seen::default(),
            next: Seen::default(),
            differences: Vec::new(),
            first: true,
            next_check: Instant::now(),
            _permit: permit,
        }
    }

    /// The events, without an end.
    pub(super) fn events(self) -> impl Stream<Item = Result<WatchEvent, Status>> + Send {
        stream::unfold(Some(self), async |watch| {
            let mut watch = watch?;
            match watch.event().await {
                Ok(event) => Some((Ok(event), Some(watch))),
                Err(status) => Some((Err(status), None)),
            }
        })
    }

    async fn event(&mut self) -> Result<WatchEvent, Status> {
        loop {
            if let Some((pool, difference)) = self.differences.pop() {
                return Ok(self.to_event(pool, difference));
            }
            self.sent = self.next.clone();
            if self.first {
                self.check_files().await?;
                self.update();
                self.first = false;
                // Sent last, so it is first in the reversed list.
                self.differences.insert(0, (0, Difference::SnapshotEnd));
                continue;
            }
            tokio::select! {
                changed = self.changes.changed() => {
                    changed.map_err(|_| Status::unavailable("the agent is stopping"))?;
                }
                () = sleep_until(self.next_check) => self.check_files().await?,
            }
            self.update();
        }
    }

    /// Reads the pools that are watched.
    async fn check_files(&mut self) -> Result<(), Status> {
        for pool in POOLS {
            if self.wanted[pool as usize] {
                self.store.read(pool).await?;
            }
        }
        self.next_check = Instant::now() + CHECK_INTERVAL;
        Ok(())
    }

    /// Computes the differences to the latest state.
    fn update(&mut self) {
        self.next = self.changes.borrow_and_update().clone();
        for pool in POOLS {
            let number = pool as usize;
            if self.wanted[number] {
                let differences =
                    differences(&self.sent[number], &self.next[number], self.key.as_deref());
                self.differences.extend(
                    differences
                        .into_iter()
                        .map(|difference| (number, difference)),
                );
            }
        }
        self.differences.reverse();
    }

    fn to_event(&self, number: usize, difference: Difference) -> WatchEvent {
        let (kind, pair) = match difference {
            Difference::SnapshotEnd => (Kind::SnapshotEnd, None),
            Difference::Set(at) => (Kind::Set, self.next[number].iter().nth(at).map(pair)),
            Difference::Removed(at) => {
                let gone = self.sent[number].iter().nth(at);
                let key = gone.map(|(key, _)| key.to_owned()).unwrap_or_default();
                let value = String::new();
                (Kind::Removed, Some(Pair { key, value }))
            }
        };
        WatchEvent {
            kind: kind.into(),
            pool: number as i32,
            pair,
        }
    }
}

/// A difference between two pools. An index is enough, because both pools are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Difference {
    /// The pair at this index of the new pool is new or has a new value.
    Set(usize),
    /// The pair at this index of the old pool was removed.
    Removed(usize),
    /// The snapshot is complete.
    SnapshotEnd,
}

/// The differences between two pools, for one key or for all.
fn differences(old: &Pool, new: &Pool, key: Option<&str>) -> Vec<Difference> {
    let wanted = |known: &str| key.is_none_or(|key| key == known);
    let (before, after): (HashMap<_, _>, HashMap<_, _>) =
        (old.iter().collect(), new.iter().collect());
    let removed = old
        .iter()
        .enumerate()
        .filter(|(_, (key, _))| wanted(key) && !after.contains_key(key));
    let set = new
        .iter()
        .enumerate()
        .filter(|(_, (key, value))| wanted(key) && before.get(key) != Some(value));
    let removed = removed.map(|(at, _)| Difference::Removed(at));
    removed
        .chain(set.map(|(at, _)| Difference::Set(at)))
        .collect()
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use tokio::sync::Semaphore;

    use super::super::files::Files;
    use super::*;
    use crate::guest::freeze::FreezeFlag;

    fn pool(pairs: &[(&str, &str)]) -> Pool {
        let mut pool = Pool::default();
        for (key, value) in pairs {
            pool.set(key, value).unwrap();
        }
        pool
    }

    #[test]
    fn differences_lead_from_one_pool_to_the_other() {
        let old = pool(&[("a", "1"), ("b", "2"), ("c", "3")]);
        let new = pool(&[("c", "3"), ("b", "two"), ("d", "4")]);
        let all = differences(&old, &new, None);
        assert_eq!(
            all,
            [
                Difference::Removed(0),
                Difference::Set(1),
                Difference::Set(2)
            ]
        );
        assert_eq!(differences(&old, &new, Some("d")), [Difference::Set(2)]);
        assert_eq!(differences(&new, &new, None), []);
    }

    async fn next(
        events: &mut (impl Stream<Item = Result<WatchEvent, Status>> + Unpin),
    ) -> (Kind, WirePool, String, String) {
        let wait = tokio::time::timeout(Duration::from_secs(60), events.next());
        let event = wait.await.unwrap().unwrap().unwrap();
        let (kind, pool) = (event.kind(), event.pool());
        let pair = event.pair.unwrap_or_default();
        (kind, pool, pair.key, pair.value)
    }

    #[tokio::test]
    async fn a_watch_sends_a_snapshot_and_then_changes_by_any_program() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = Files::new(folder.path());
        let store = Arc::new(Store::new(
            Some(folder.path().to_owned()),
            FreezeFlag::default(),
        ));
        let set = |which, key: &'static str, value: &'static str| {
            store.change(which, move |pool| pool.set(key, value))
        };
        set(WirePool::External, "a", "1").await.unwrap();
        set(WirePool::External, "b", "2").await.unwrap();
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let wanted = [true, true, false, false];
        let watch = Watch::new(Arc::clone(&store), wanted, None, permit);
        let mut events = Box::pin(watch.events());
        let external = WirePool::External;
        let event = |kind, which, key: &str, value: &str| (kind, which, key.into(), value.into());
        assert_eq!(
            next(&mut events).await,
            event(Kind::Set, external, "a", "1")
        );
        assert_eq!(
            next(&mut events).await,
            event(Kind::Set, external, "b", "2")
        );
        assert_eq!(
            next(&mut events).await,
            event(Kind::SnapshotEnd, external, "", "")
        );
        set(WirePool::AutoExternal, "of no interest", "")
            .await
            .unwrap();
        set(external, "a", "in between").await.unwrap();
        set(external, "a", "one").await.unwrap();
        assert_eq!(
            next(&mut events).await,
            event(Kind::Set, external, "a", "one")
        );
        elsewhere
            .change(WirePool::Guest, |pool| pool.set("g", "3"))
            .unwrap();
        assert_eq!(
            next(&mut events).await,
            event(Kind::Set, WirePool::Guest, "g", "3")
        );
        store
            .change(external, |pool| pool.unset("b"))
            .await
            .unwrap();
        assert_eq!(
            next(&mut events).await,
            event(Kind::Removed, external, "b", "")
        );
    }
}
