//! The guest side of freeze and thaw.
//!
//! [`mounts`] selects the filesystems to freeze, [`state`] tracks the progress of a freeze,
//! [`hooks`] runs the programs to run before and after, and [`freezer`] is the process that does
//! the freeze. The service starts that process, passes on what it reports, and thaws the
//! filesystems itself if the process is killed. `marker` informs the next agent if both are killed.

pub mod freezer;
pub mod hooks;
mod manager;
mod marker;
pub mod mounts;
mod run;
pub mod state;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hvsock::Endpoint;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::catalog::FREEZE;
use crate::guest::audit::{self, Record};
use crate::link::ServiceServer;
use crate::wire::freeze::freeze_server::{Freeze, FreezeServer};
use crate::wire::freeze::thaw_reply::Outcome;
use crate::wire::freeze::{FreezeReply, FreezeRequest, ThawReply, ThawRequest};
use freezer::FreezeCommand;
pub use manager::FreezeFlag;
use manager::{FreezeManager, GRACE, Stage, UnreportedFreeze};
pub(super) use run::thaw_leftovers;

/// The default time limit.
const LIMIT: Duration = Duration::from_secs(10);

/// The longest time limit that a host may request.
const MAX_LIMIT: Duration = Duration::from_secs(300);

/// The service.
pub(super) fn server(endpoint: Endpoint, frozen: FreezeFlag) -> ServiceServer {
    let service = Service {
        endpoint,
        manager: Arc::new(FreezeManager::new(frozen)),
    };
    ServiceServer::calls(&FREEZE, Routes::new(FreezeServer::new(service)))
}

struct Service {
    endpoint: Endpoint,
    manager: Arc<FreezeManager>,
}

fn command(request: &FreezeRequest) -> Result<FreezeCommand, Status> {
    let limit = match request.limit_ms {
        0 => LIMIT,
        limit => Duration::from_millis(limit.into()),
    };
    if limit > MAX_LIMIT {
        let text = format!("the time limit is at most {} s", MAX_LIMIT.as_secs());
        return Err(Status::invalid_argument(text));
    }
    if request.mounts.len() > freezer::MAX_FILESYSTEMS {
        let text = format!(
            "at most {} filesystems can be frozen at once",
            freezer::MAX_FILESYSTEMS
        );
        return Err(Status::invalid_argument(text));
    }
    let mounts = request.mounts.iter().map(|mount| {
        mounts::normalize(mount)
            .filter(|_| !mount.contains('\0'))
            .ok_or_else(|| Status::invalid_argument(format!("{mount:?} is not an absolute path")))
    });
    Ok(FreezeCommand {
        limit,
        hooks: PathBuf::from(hooks::FOLDER),
        mounts: mounts.collect::<Result<_, _>>()?,
    })
}

/// Writes a freeze or thaw by the host to the guest's log.
fn record(action: &str, id: u64) {
    audit::write(&Record {
        action,
        outcome: "done",
        detail: &format!("id {id}"),
        ..Record::default()
    });
}

#[tonic::async_trait]
impl Freeze for Service {
    async fn freeze(
        &self,
        request: Request<FreezeRequest>,
    ) -> Result<Response<FreezeReply>, Status> {
        let command = command(request.get_ref())?;
        if !self.endpoint.uses_vsock() {
            return Err(Status::failed_precondition(
                "a container's filesystems are its host's: freeze them on the host",
            ));
        }
        self.manager.finished().await;
        let deadline = freezer::HOOKS + command.limit + GRACE;
        let (id, mut stage) = {
            let mut slot = self.manager.slot();
            if slot.run.is_some() {
                return Err(Status::failed_precondition(
                    "a freeze is active: thaw first, or wait for its time limit",
                ));
            }
            let run = run::start(&command, &self.manager)
                .map_err(|error| Status::internal(format!("cannot start the freezer: {error}")))?;
            self.manager.frozen.set(true);
            let handle = (run.id, run.stage.clone());
            slot.run = Some(run);
            handle
        };
        // If the host disconnects before it receives the id, only the time limit could thaw.
        let mut unreported = UnreportedFreeze(Some((Arc::clone(&self.manager), id)));
        let reported = stage.wait_for(|stage| !matches!(stage, Stage::Freezing));
        let stage = match timeout(deadline, reported).await {
            Ok(Ok(stage)) => stage.clone(),
            Ok(Err(_)) => return Err(Status::internal("the freezer process has exited")),
            Err(_) => {
                return Err(Status::deadline_exceeded(
                    "timed out: the freezer process did not answer",
                ));
            }
        };
        match stage {
            Stage::Frozen(mut reply) => {
                unreported.0 = None;
                record("freeze", id);
                reply.id = id;
                Ok(Response::new(reply))
            }
            Stage::Failed(status) => Err(status),
            Stage::Freezing | Stage::Thawed(_) => Err(Status::aborted(
                "it was already thawed, by another call or the time limit",
            )),
        }
    }

    async fn thaw(&self, request: Request<ThawRequest>) -> Result<Response<ThawReply>, Status> {
        let id = request.into_inner().id;
        record("thaw", id);
        let reply = |outcome: Outcome| ThawReply {
            outcome: outcome.into(),
            ..ThawReply::default()
        };
        let found = {
            let mut slot = self.manager.slot();
            let run = slot.run.as_mut().filter(|run| id == 0 || id == run.id);
            run.map(|run| (run.stdin.take(), run.stage.clone()))
                // The result is known from here on, although the hooks may still run.
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
            // The process may have exited meanwhile; it has reported its result then.
            let _ = stdin.write_all(b"t").await;
        }
        let ended = stage.wait_for(|stage| matches!(stage, Stage::Thawed(_) | Stage::Failed(_)));
        let stage = match timeout(GRACE, ended).await {
            Ok(Ok(stage)) => stage.clone(),
            Ok(Err(_)) => return Err(Status::internal("the freezer process has exited")),
            Err(_) => {
                return Err(Status::deadline_exceeded(
                    "timed out: the disks did not answer",
                ));
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn request(limit_ms: u32, mounts: &[&str]) -> FreezeRequest {
        let mounts = mounts.iter().map(|mount| (*mount).to_owned()).collect();
        FreezeRequest { limit_ms, mounts }
    }

    #[test]
    fn a_freeze_request_is_validated() {
        let usual = command(&request(0, &["/srv//data/"])).unwrap();
        assert_eq!(usual.limit, Duration::from_secs(10));
        assert_eq!(usual.mounts, [PathBuf::from("/srv/data")]);
        assert!(command(&request(300_000, &[])).is_ok());
        assert!(command(&request(300_001, &[])).is_err());
        assert!(command(&request(0, &["srv"])).is_err());
        assert!(command(&request(0, &["/a\0b"])).is_err());
        assert!(command(&request(0, &["/"; 257])).is_err());
    }

    #[tokio::test]
    async fn a_container_refuses_to_freeze_and_starts_nothing() {
        let service = Service {
            endpoint: Endpoint::at("/nonexistent"),
            manager: Arc::new(FreezeManager::new(FreezeFlag::default())),
        };
        let refused = service
            .freeze(Request::new(request(0, &[])))
            .await
            .unwrap_err();
        assert!(refused.message().contains("its host's"), "{refused}");
        assert!(service.manager.slot().run.is_none());
        let thawed = service
            .thaw(Request::new(ThawRequest { id: 7 }))
            .await
            .unwrap();
        assert_eq!(thawed.into_inner().outcome(), Outcome::NotFrozen);
    }
}
