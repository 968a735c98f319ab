//! Data exchange, the guest's half.
//!
//! [`pool`] is what a pool is, [`files`] where it lies, [`facts`] what the automatic one says. The
//! service reads the files anew for every call, for other programs write them, too; those who
//! watch learn of a change by the agent at once, and of one by another program within a second.

pub mod facts;
pub mod files;
pub mod pool;
mod store;
mod watch;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use tokio::sync::Semaphore;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::catalog::KVP;
use crate::guest::freeze::Still;
use crate::link::Offer;
use crate::wire::kvp::kvp_server::{Kvp, KvpServer};
use crate::wire::kvp::{
    GetReply, GetRequest, ListReply, ListRequest, Pair, Pool as Which, SetReply, SetRequest,
    UnsetReply, UnsetRequest, WatchEvent, WatchRequest,
};
use store::Store;
use watch::Watch;

/// The most watches at once.
const WATCHES: usize = 16;

/// The service, with its files in `folder` if not where programs look for them.
pub(super) fn offer(folder: Option<PathBuf>, still: Still) -> Offer {
    let service = Service {
        store: Arc::new(Store::new(folder, still)),
        watches: Arc::new(Semaphore::new(WATCHES)),
    };
    Offer::calls(&KVP, Routes::new(KvpServer::new(service)))
}

struct Service {
    store: Arc<Store>,
    watches: Arc<Semaphore>,
}

/// The pool that a number means.
fn which(number: i32) -> Result<Which, Status> {
    Which::try_from(number)
        .map_err(|_| Status::invalid_argument(format!("there is no pool {number}")))
}

/// A pool that the host may change.
fn of_the_host(number: i32) -> Result<Which, Status> {
    match which(number)? {
        pool @ (Which::External | Which::AutoExternal) => Ok(pool),
        Which::Guest | Which::Auto => Err(Status::permission_denied(
            "only the guest itself changes its pools",
        )),
    }
}

#[tonic::async_trait]
impl Kvp for Service {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetReply>, Status> {
        let GetRequest { pool, key } = request.into_inner();
        let pool = self.store.read(which(pool)?).await?;
        let value = pool.get(&key);
        let value = value.ok_or_else(|| Status::not_found("there is no such key"))?;
        Ok(Response::new(GetReply {
            value: value.to_owned(),
        }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListReply>, Status> {
        let pool = self.store.read(which(request.into_inner().pool)?).await?;
        let pairs = pool.iter().map(pair).collect();
        Ok(Response::new(ListReply { pairs }))
    }

    async fn set(&self, request: Request<SetRequest>) -> Result<Response<SetReply>, Status> {
        let SetRequest { pool, pairs } = request.into_inner();
        let changed = self.store.change(of_the_host(pool)?, move |pool| {
            let mut pairs = pairs.iter();
            pairs.try_for_each(|pair| pool.set(&pair.key, &pair.value))
        });
        changed.await?;
        Ok(Response::new(SetReply {}))
    }

    async fn unset(&self, request: Request<UnsetRequest>) -> Result<Response<UnsetReply>, Status> {
        let UnsetRequest { pool, keys } = request.into_inner();
        let changed = self.store.change(of_the_host(pool)?, move |pool| {
            let mut removed = 0;
            for key in keys {
                removed += u32::from(pool.unset(&key)?);
            }
            Ok(removed)
        });
        let removed = changed.await?;
        Ok(Response::new(UnsetReply { removed }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchEvent, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let WatchRequest { pools, key } = request.into_inner();
        let permit = Arc::clone(&self.watches).try_acquire_owned();
        let permit = permit.map_err(|_| {
            Status::resource_exhausted(format!("there are {WATCHES} watches already"))
        })?;
        let mut wanted = [pools.is_empty(); 4];
        for pool in pools {
            wanted[which(pool)? as usize] = true;
        }
        let watch = Watch::new(Arc::clone(&self.store), wanted, key, permit);
        Ok(Response::new(Box::pin(watch.events())))
    }
}

fn pair((key, value): (&str, &str)) -> Pair {
    Pair {
        key: key.to_owned(),
        value: value.to_owned(),
    }
}
