//! One who watches: what it has been told, and so what there is to tell.
//!
//! It remembers what it saw, not what happened, so that a slow reader costs no more than a quick
//! one and learns how things are in the end.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use super::pair;
use super::pool::Pool;
use super::store::{Seen, Store};
use crate::wire::kvp::watch_event::Kind;
use crate::wire::kvp::{Pair, Pool as Which, WatchEvent};

/// How often the files are looked at for changes by other programs.
const LOOK: Duration = Duration::from_secs(1);

const POOLS: [Which; 4] = [
    Which::External,
    Which::Guest,
    Which::Auto,
    Which::AutoExternal,
];

/// One call of `Watch`.
pub(super) struct Watch {
    store: Arc<Store>,
    wanted: [bool; 4],
    key: Option<String>,
    changes: Receiver<Seen>,
    told: Seen,
    /// What is between `told` and `next`, as steps by the pool's number, the last step first.
    next: Seen,
    steps: Vec<(usize, Step)>,
    first: bool,
    look: Instant,
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
            told: Seen::default(),
            next: Seen::default(),
            steps: Vec::new(),
            first: true,
            look: Instant::now(),
            _permit: permit,
        }
    }

    /// What it is told, without an end.
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
            if let Some((pool, step)) = self.steps.pop() {
                return Ok(self.say(pool, step));
            }
            self.told = self.next.clone();
            if self.first {
                self.look().await?;
                self.take();
                self.first = false;
                // Told last, so it is first among the steps.
                self.steps.insert(0, (0, Step::Told));
                continue;
            }
            tokio::select! {
                changed = self.changes.changed() => {
                    changed.map_err(|_| Status::unavailable("the agent ends"))?;
                }
                () = sleep_until(self.look) => self.look().await?,
            }
            self.take();
        }
    }

    /// Looks at the files that are of interest.
    async fn look(&mut self) -> Result<(), Status> {
        for pool in POOLS {
            if self.wanted[pool as usize] {
                self.store.read(pool).await?;
            }
        }
        self.look = Instant::now() + LOOK;
        Ok(())
    }

    /// Takes what was seen last for what is to be told next.
    fn take(&mut self) {
        self.next = self.changes.borrow_and_update().clone();
        for pool in POOLS {
            let number = pool as usize;
            if self.wanted[number] {
                let steps = steps(&self.told[number], &self.next[number], self.key.as_deref());
                self.steps
                    .extend(steps.into_iter().map(|step| (number, step)));
            }
        }
        self.steps.reverse();
    }

    fn say(&self, number: usize, step: Step) -> WatchEvent {
        let (kind, pair) = match step {
            Step::Told => (Kind::Told, None),
            Step::Set(at) => (Kind::Set, self.next[number].iter().nth(at).map(pair)),
            Step::Removed(at) => {
                let gone = self.told[number].iter().nth(at);
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

/// One difference between two pools. A place is all that it takes: both are kept meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The pair at this place of the new pool is new, or has a new value.
    Set(usize),
    /// The pair at this place of the old pool is gone.
    Removed(usize),
    /// Everything that was there has been told.
    Told,
}

/// What leads from one pool to the other, of one key or of all.
fn steps(old: &Pool, new: &Pool, key: Option<&str>) -> Vec<Step> {
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
    let removed = removed.map(|(at, _)| Step::Removed(at));
    removed.chain(set.map(|(at, _)| Step::Set(at))).collect()
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use tokio::sync::Semaphore;

    use super::super::files::Files;
    use super::*;
    use crate::guest::freeze::Still;

    fn pool(pairs: &[(&str, &str)]) -> Pool {
        let mut pool = Pool::default();
        for (key, value) in pairs {
            pool.set(key, value).unwrap();
        }
        pool
    }

    #[test]
    fn steps_are_what_differs() {
        let old = pool(&[("a", "1"), ("b", "2"), ("c", "3")]);
        let new = pool(&[("c", "3"), ("b", "two"), ("d", "4")]);
        let all = steps(&old, &new, None);
        assert_eq!(all, [Step::Removed(0), Step::Set(1), Step::Set(2)]);
        assert_eq!(steps(&old, &new, Some("d")), [Step::Set(2)]);
        assert_eq!(steps(&new, &new, None), []);
    }

    async fn next(
        events: &mut (impl Stream<Item = Result<WatchEvent, Status>> + Unpin),
    ) -> (Kind, Which, String, String) {
        let wait = tokio::time::timeout(Duration::from_secs(60), events.next());
        let event = wait.await.unwrap().unwrap().unwrap();
        let (kind, pool) = (event.kind(), event.pool());
        let pair = event.pair.unwrap_or_default();
        (kind, pool, pair.key, pair.value)
    }

    #[tokio::test]
    async fn what_is_there_is_told_and_then_what_changes_by_whomever() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = Files::new(folder.path());
        let store = Arc::new(Store::new(Some(folder.path().to_owned()), Still::default()));
        let set = |which, key: &'static str, value: &'static str| {
            store.change(which, move |pool| pool.set(key, value))
        };
        set(Which::External, "a", "1").await.unwrap();
        set(Which::External, "b", "2").await.unwrap();
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let wanted = [true, true, false, false];
        let watch = Watch::new(Arc::clone(&store), wanted, None, permit);
        let mut events = Box::pin(watch.events());
        let external = Which::External;
        let said = |kind, which, key: &str, value: &str| (kind, which, key.into(), value.into());
        assert_eq!(next(&mut events).await, said(Kind::Set, external, "a", "1"));
        assert_eq!(next(&mut events).await, said(Kind::Set, external, "b", "2"));
        assert_eq!(next(&mut events).await, said(Kind::Told, external, "", ""));
        set(Which::AutoExternal, "of no interest", "")
            .await
            .unwrap();
        set(external, "a", "in between").await.unwrap();
        set(external, "a", "one").await.unwrap();
        assert_eq!(
            next(&mut events).await,
            said(Kind::Set, external, "a", "one")
        );
        elsewhere
            .change(Which::Guest, |pool| pool.set("g", "3"))
            .unwrap();
        assert_eq!(
            next(&mut events).await,
            said(Kind::Set, Which::Guest, "g", "3")
        );
        store
            .change(external, |pool| pool.unset("b"))
            .await
            .unwrap();
        assert_eq!(
            next(&mut events).await,
            said(Kind::Removed, external, "b", "")
        );
    }
}
