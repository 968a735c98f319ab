//! The service manager's side of a restart: what a broker stores with it, and what the next one finds.

use std::os::fd::OwnedFd;
use std::time::Duration;

use hvsock_broker::{Broker, BrokerConfig, StoredState};
use hvsock_sys::activation;
use hvsock_sys::service_manager::ServiceManager;

/// How long the service manager may take to handle what it was told.
const HANDLED: Duration = Duration::from_secs(10);

/// Stores the broker with the service manager, if that has room for it. Returns whether it did: then this process
/// only has to end.
pub fn store(broker: &mut Broker) -> bool {
    let room = ServiceManager::store_size();
    if room == 0 {
        return false;
    }
    let stored = broker.store(room, |state| {
        put(state).map_err(|error| format!("the service manager does not store it: {error}"))
    });
    match stored {
        Ok(stored) => {
            let (descriptors, took) = (stored.descriptors, stored.took.as_millis());
            tracing::info!("stored {descriptors} descriptors for the next broker in {took} ms");
            true
        }
        Err(error) => {
            tracing::error!("all connections end, because the broker cannot be stored: {error}");
            false
        }
    }
}

fn put(state: &StoredState) -> std::io::Result<()> {
    let Some(manager) = ServiceManager::find()? else {
        return Err(std::io::ErrorKind::NotConnected.into());
    };
    for (name, descriptor) in state.descriptors() {
        manager.store(name, &[descriptor])?;
    }
    manager.barrier(HANDLED)
}

/// Starts a broker with what the one before has stored. `None` if it has stored nothing, or nothing of use, which is
/// logged: then all of it is closed.
pub fn restore(config: &BrokerConfig) -> Option<(Broker, String)> {
    let state = match take() {
        Ok(state) => state?,
        Err(reason) => {
            tracing::error!("begins without the state of the broker before: {reason}");
            return None;
        }
    };
    match Broker::restore(config.clone(), state) {
        Ok((broker, restored)) => {
            let (from, time) = (restored.from, restored.stored_for.as_millis());
            Some((
                broker,
                format!(", in place of hvsock {from} after {time} ms"),
            ))
        }
        Err(error) => {
            tracing::error!("begins without the state of the broker before: {error}");
            None
        }
    }
}

/// The state that was stored. Nothing of it is stored any more: a broker that it ends would not get it again.
fn take() -> Result<Option<StoredState>, String> {
    let passed = activation::take().map_err(|error| error.to_string())?;
    let named = passed.into_iter().map(|one| (one.name, one.fd));
    let mut passed: Vec<(String, OwnedFd)> = named.collect();
    if passed.is_empty() {
        return Ok(None);
    }
    if let Err(error) = remove() {
        tracing::warn!(%error, "the service manager may keep the state of the broker before");
    }
    StoredState::take(&mut passed).map_err(|error| error.to_string())
}

fn remove() -> std::io::Result<()> {
    let Some(manager) = ServiceManager::find()? else {
        return Ok(());
    };
    for name in StoredState::NAMES {
        manager.remove_stored(name)?;
    }
    // Its duplicates hold the lock of the folders.
    manager.barrier(HANDLED)
}
