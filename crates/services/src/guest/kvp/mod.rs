//! The guest side of the key-value pair service.
//!
//! [`pool`] defines a pool, [`files`] its file, and [`facts`] the automatic pool. The service reads
//! the files for every call, because other programs write them too. A watch reports a change by the
//! agent at once, and a change by another program within a second.

pub mod facts;
pub mod files;
pub mod pool;
mod store;
mod watch;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use tokio::sync::Semaphore;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::catalog::KVP;
use crate::guest::audit::{self, Record};
use crate::guest::freeze::FreezeFlag;
use crate::link::ServiceServer;
use crate::wire::kvp::kvp_server::{Kvp, KvpServer};
use crate::wire::kvp::{
    GetReply, GetRequest, ListReply, ListRequest, Pool as WirePool, SetReply, SetRequest,
    UnsetReply, UnsetRequest, WatchEvent, WatchRequest,
};
use store::{Store, pair};
use watch::Watch;

/// The most concurrent watches.
const WATCHES: usize = 16;

/// The service, with its files in `folder`, or in the default folder if it is `None`.
pub(super) fn server(folder: Option<PathBuf>, frozen: FreezeFlag) -> ServiceServer {
    let service = Service {
        store: Arc::new(Store::new(folder, frozen)),
        watches: Arc::new(Semaphore::new(WATCHES)),
    };
    ServiceServer::calls(&KVP, Routes::new(KvpServer::new(service)))
}

struct Service {
    store: Arc<Store>,
    watches: Arc<Semaphore>,
}

/// Validates the number of a pool.
fn wire_pool(number: i32) -> Result<WirePool, Status> {
    WirePool::try_from(number).map_err(|_| Status::invalid_argument(format!("no pool {number}")))
}

/// Validates the number of a pool that the host may change.
fn host_pool(number: i32) -> Result<WirePool, Status> {
    match wire_pool(number)? {
        pool @ (WirePool::External | WirePool::AutoExternal) => Ok(pool),
        WirePool::Guest | WirePool::Auto => Err(Status::permission_denied(
            "only the guest may change this pool",
        )),
    }
}

/// Writes keys that the host changes to the guest's log.
fn record<'a>(action: &str, keys: impl Iterator<Item = &'a OsStr>) {
    audit::write(&Record {
        action,
        outcome: "started",
        detail: &audit::words(keys),
        ..Record::default()
    });
}

#[tonic::async_trait]
impl Kvp for Service {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetReply>, Status> {
        let GetRequest { pool, key } = request.into_inner();
        let pool = self.store.read(wire_pool(pool)?).await?;
        let value = pool.get(&key);
        let value = value.ok_or_else(|| Status::not_found("no such key"))?;
        Ok(Response::new(GetReply {
            value: value.to_owned(),
        }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListReply>, Status> {
        let pool = self
            .store
            .read(wire_pool(request.into_inner().pool)?)
            .await?;
        let pairs = pool.iter().map(pair).collect();
        Ok(Response::new(ListReply { pairs }))
    }

    async fn set(&self, request: Request<SetRequest>) -> Result<Response<SetReply>, Status> {
        let SetRequest { pool, pairs } = request.into_inner();
        let which = host_pool(pool)?;
        // Values may be secret. The facts of the host come by themselves.
        if which == WirePool::External {
            let keys = pairs.iter().map(|pair| pair.key.as_ref());
            record("kvp_set", keys);
        }
        let changed = self.store.change(which, move |pool| {
            let mut pairs = pairs.iter();
            pairs.try_for_each(|pair| pool.set(&pair.key, &pair.value))
        });
        changed.await?;
        Ok(Response::new(SetReply {}))
    }

    async fn unset(&self, request: Request<UnsetRequest>) -> Result<Response<UnsetReply>, Status> {
        let UnsetRequest { pool, keys } = request.into_inner();
        let which = host_pool(pool)?;
        if which == WirePool::External {
            record("kvp_unset", keys.iter().map(AsRef::as_ref));
        }
        let changed = self.store.change(which, move |pool| {
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
            Status::resource_exhausted(format!("the limit of {WATCHES} watches is reached"))
        })?;
        let mut wanted = [pools.is_empty(); 4];
        for pool in pools {
            wanted[wire_pool(pool)? as usize] = true;
        }
        let watch = Watch::new(Arc::clone(&self.store), wanted, key, permit);
        Ok(Response::new(Box::pin(watch.events())))
    }
}
