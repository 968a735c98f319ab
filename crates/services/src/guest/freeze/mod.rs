//! Freeze and thaw, the guest's half.
//!
//! [`mounts`] is which filesystems there are to freeze, [`course`] what happens when, [`hooks`] whom
//! else it concerns, [`freezer`] the process that does it all. The service starts that process, hands
//! on what it says, and thaws itself should somebody kill it. `mark` is for the next agent, should
//! both be killed.

pub mod course;
pub mod freezer;
pub mod hooks;
mod mark;
pub mod mounts;
mod run;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hvsock::Endpoint;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::catalog::FREEZE;
use crate::link::Offer;
use crate::wire::freeze::freeze_server::{Freeze, FreezeServer};
use crate::wire::freeze::thaw_reply::Outcome;
use crate::wire::freeze::{FreezeReply, FreezeRequest, ThawReply, ThawRequest};
use freezer::Order;
pub(super) use run::thaw_what_was_left;
use run::{Run, Stage};

/// The folder of the hooks.
const HOOKS: &str = "/etc/hvsock/freeze.d";

/// The time limit, if the host names none.
const LIMIT: Duration = Duration::from_secs(10);

/// The longest time limit that a host may name.
const LONGEST: Duration = Duration::from_secs(300);

/// How long to wait for what should take no time.
const GRACE: Duration = Duration::from_secs(20);

/// Whether filesystems are frozen, or about to be: then nothing of the agent's writes to one.
#[derive(Clone, Debug, Default)]
pub struct Still(Arc<AtomicBool>);

impl Still {
    /// Whether it is so now.
    pub fn holds(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    pub(super) fn set(&self, holds: bool) {
        self.0.store(holds, Ordering::Release);
    }
}

/// The service.
pub(super) fn offer(endpoint: Endpoint, still: Still) -> Offer {
    let service = Service {
        endpoint,
        desk: Arc::new(Desk {
            still,
            slot: Mutex::default(),
        }),
    };
    Offer::calls(&FREEZE, Routes::new(FreezeServer::new(service)))
}

struct Service {
    endpoint: Endpoint,
    desk: Arc<Desk>,
}

/// What there is of freezes: one at the most, and how the last one ended.
struct Desk {
    still: Still,
    slot: Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    run: Option<Run>,
    last: Option<(u64, ThawReply)>,
}

impl Desk {
    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is frozen any more, as this says.
    fn thawed(&self, id: u64, reply: &ThawReply) {
        self.still.set(false);
        self.slot().last = Some((id, reply.clone()));
    }

    /// Waits a while for the hooks of a freeze that is over but for those.
    async fn finished(&self) {
        let last = self.slot().run.as_ref().map(|run| run.stage.clone());
        let Some(mut stage) = last else {
            return;
        };
        let thawed = matches!(*stage.borrow(), Stage::Thawed(_) | Stage::Failed(_));
        if thawed {
            let gone = async { while stage.changed().await.is_ok() {} };
            let _ = timeout(GRACE, gone).await;
        }
    }

    /// There is room for the next freeze.
    fn over(&self) {
        self.still.set(false);
        self.slot().run = None;
    }
}

fn order(request: &FreezeRequest) -> Result<Order, Status> {
    let limit = match request.limit_ms {
        0 => LIMIT,
        limit => Duration::from_millis(limit.into()),
    };
    if limit > LONGEST {
        let text = format!("the time limit is at most {} s", LONGEST.as_secs());
        return Err(Status::invalid_argument(text));
    }
    if request.mounts.len() > freezer::MOST {
        let text = format!("at most {} filesystems are frozen at once", freezer::MOST);
        return Err(Status::invalid_argument(text));
    }
    let mounts = request.mounts.iter().map(|mount| {
        mounts::normal(mount)
            .filter(|_| !mount.contains('\0'))
            .ok_or_else(|| Status::invalid_argument(format!("{mount:?} is not an absolute path")))
    });
    Ok(Order {
        limit,
        hooks: PathBuf::from(HOOKS),
        mounts: mounts.collect::<Result<_, _>>()?,
    })
}

#[tonic::async_trait]
impl Freeze for Service {
    async fn freeze(
        &self,
        request: Request<FreezeRequest>,
    ) -> Result<Response<FreezeReply>, Status> {
        let order = order(request.get_ref())?;
        if !self.endpoint.uses_vsock() {
            return Err(Status::failed_precondition(
                "a container's filesystems are its host's, and so not its own to freeze",
            ));
        }
        self.desk.finished().await;
        let patience = freezer::HOOKS + order.limit + GRACE;
        let (id, mut stage) = {
            let mut slot = self.desk.slot();
            if slot.run.is_some() {
                return Err(Status::failed_precondition(
                    "a freeze is under way: thaw first, or wait for its time limit",
                ));
            }
            let run = Run::start(&order, &self.desk)
                .map_err(|error| Status::internal(format!("cannot start the freezer: {error}")))?;
            self.desk.still.set(true);
            let named = (run.id, run.stage.clone());
            slot.run = Some(run);
            named
        };
        // Should the host go before it knows, nobody could thaw but the time limit.
        let mut unknown = Unknown(Some((Arc::clone(&self.desk), id)));
        let decided = stage.wait_for(|stage| !matches!(stage, Stage::Freezing));
        let stage = match timeout(patience, decided).await {
            Ok(Ok(stage)) => stage.clone(),
            Ok(Err(_)) => return Err(Status::internal("the freezer is gone")),
            Err(_) => return Err(Status::deadline_exceeded("the freezer does not answer")),
        };
        match stage {
            Stage::Frozen(mut reply) => {
                unknown.0 = None;
                reply.id = id;
                Ok(Response::new(reply))
            }
            Stage::Failed(status) => Err(status),
            Stage::Freezing | Stage::Thawed(_) => Err(Status::aborted(
                "it was thawed at once, by another call or the time limit",
            )),
        }
    }

    async fn thaw(&self, request: Request<ThawRequest>) -> Result<Response<ThawReply>, Status> {
        let id = request.into_inner().id;
        let reply = |outcome: Outcome| ThawReply {
            outcome: outcome.into(),
            ..ThawReply::default()
        };
        let found = {
            let mut slot = self.desk.slot();
            let run = slot.run.as_mut().filter(|run| id == 0 || id == run.id);
            run.map(|run| (run.stdin.take(), run.stage.clone()))
                // How one ended is known from then on, although its hooks may still run.
                .filter(|(_, stage)| !matches!(*stage.borrow(), Stage::Thawed(_)))
                .ok_or_else(|| slot.last.clone().filter(|(last, _)| id == 0 || id == *last))
        };
        let (stdin, mut stage) = match found {
            Ok(found) => found,
            Err(None) => return Ok(Response::new(reply(Outcome::NotFrozen))),
            Err(Some((_, mut last))) => {
                if last.outcome() == Outcome::Thawed {
                    last.set_outcome(Outcome::Earlier);
                }
                return Ok(Response::new(last));
            }
        };
        let by_this_call = stdin.is_some();
        if let Some(mut stdin) = stdin {
            // It may have ended meanwhile, and then has said so.
            let _ = stdin.write_all(b"t").await;
        }
        let ended = stage.wait_for(|stage| matches!(stage, Stage::Thawed(_) | Stage::Failed(_)));
        let stage = match timeout(GRACE, ended).await {
            Ok(Ok(stage)) => stage.clone(),
            Ok(Err(_)) => return Err(Status::internal("the freezer is gone")),
            Err(_) => return Err(Status::deadline_exceeded("the disks do not answer")),
        };
        let mut thawed = match stage {
            Stage::Thawed(thawed) => thawed,
            _ => reply(Outcome::NotFrozen),
        };
        if thawed.outcome() == Outcome::Thawed && !by_this_call {
            thawed.set_outcome(Outcome::Earlier);
        }
        Ok(Response::new(thawed))
    }
}

/// A freeze that its host does not know of yet: dropped, it ends.
struct Unknown(Option<(Arc<Desk>, u64)>);

impl Drop for Unknown {
    fn drop(&mut self) {
        if let Some((desk, id)) = self.0.take() {
            let mut slot = desk.slot();
            let run = slot.run.as_mut().filter(|run| run.id == id);
            drop(run.and_then(|run| run.stdin.take()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(limit_ms: u32, mounts: &[&str]) -> FreezeRequest {
        let mounts = mounts.iter().map(|mount| (*mount).to_owned()).collect();
        FreezeRequest { limit_ms, mounts }
    }

    #[test]
    fn what_a_host_asks_for_is_held_to_the_limits() {
        let usual = order(&request(0, &["/srv//data/"])).unwrap();
        assert_eq!(usual.limit, Duration::from_secs(10));
        assert_eq!(usual.mounts, [PathBuf::from("/srv/data")]);
        assert!(order(&request(300_000, &[])).is_ok());
        assert!(order(&request(300_001, &[])).is_err());
        assert!(order(&request(0, &["srv"])).is_err());
        assert!(order(&request(0, &["/a\0b"])).is_err());
        assert!(order(&request(0, &["/"; 257])).is_err());
    }

    #[tokio::test]
    async fn a_container_is_told_why_it_cannot_freeze_and_nothing_is_started() {
        let service = Service {
            endpoint: Endpoint::at("/nonexistent"),
            desk: Arc::new(Desk {
                still: Still::default(),
                slot: Mutex::default(),
            }),
        };
        let refused = service
            .freeze(Request::new(request(0, &[])))
            .await
            .unwrap_err();
        assert!(refused.message().contains("its host's"), "{refused}");
        assert!(service.desk.slot().run.is_none());
        let thawed = service
            .thaw(Request::new(ThawRequest { id: 7 }))
            .await
            .unwrap();
        assert_eq!(thawed.into_inner().outcome(), Outcome::NotFrozen);
    }
}
