//! The document of a device, and a device from it.
//!
//! In it is what both threads have: the VMM's connection with what was negotiated and set up, the queues, the state of
//! the protocol, and the connections with what they hold. The contents of the guest's memory and of rings stay where
//! they are. Not in it: requests and connects that wait for an answer of the core or of a guest. The core gets a
//! guest's requests again; a connect that the guest has not answered is made again by the core.

use std::mem::ManuallyDrop;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use hvsock_sys::event::Event;
use hvsock_sys::sync::lock;
use hvsock_virtio::{Config, GuestCid};
use serde::{Deserialize, Serialize};

use super::command::{Command, DeviceSettings, DeviceState};
use super::device::snapshot::{DeviceState as VmmState, handler};
use super::device::{self, WorkerHandle};
use super::memory::Ram;
use super::vmm::{FIRST_PART_WAIT, Session, Vmm, VmmThread};
use super::worker::Worker;
use super::worker::snapshot::WorkerState;
use crate::gate::Gate;
use crate::guest_link::Resuming;
use crate::handover::snapshot::read_version;
use crate::handover::{Exports, FdIndex, HandoverError, Imports, LinkDocument};
use crate::loop_waker::LoopWaker;

/// The kind of the link.
const KIND: &str = "vhost-user";

/// The version of [`DeviceDocument`] that this release writes.
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct DeviceDocument {
    #[serde(deserialize_with = "read_version::<_, VERSION>")]
    version: u32,
    /// The guest's context id.
    cid: u32,
    /// Where VMMs connect.
    listener: FdIndex,
    session: Option<SessionState>,
    worker: WorkerState,
}

/// The connection of a VMM.
#[derive(Debug, Serialize, Deserialize)]
struct SessionState {
    connection: FdIndex,
    failures: u32,
    vmm: VmmState,
}

/// The document of a device whose threads are both frozen.
pub(super) fn hand_over(
    vmm: &VmmThread,
    worker: &Gate<Worker>,
    exports: &mut Exports,
) -> Result<LinkDocument, HandoverError> {
    let runs = || HandoverError::inconsistent("the threads of the VM are not frozen");
    let front = vmm.with(|vmm| {
        let session = vmm.session().map(|session| {
            Ok::<_, HandoverError>(SessionState {
                connection: exports.fd(&session.connection)?,
                failures: session.failures,
                vmm: lock(&session.device).hand_over(exports)?,
            })
        });
        let listener = exports.fd(vmm.listener())?;
        Ok::<_, HandoverError>((vmm.settings().cid, listener, session.transpose()?))
    });
    let (cid, listener, session) = front.ok_or_else(runs)??;
    let worker = worker.with(|worker| worker.hand_over(exports, Instant::now()));
    let document = DeviceDocument {
        version: VERSION,
        cid: cid.get(),
        listener,
        session,
        worker: worker.ok_or_else(runs)??,
    };
    LinkDocument::new(KIND, &document)
}

/// What a device from a document consists of. Its threads do not run yet.
pub(super) struct Resumed {
    pub(super) cid: GuestCid,
    pub(super) state: DeviceState,
    pub(super) commands: Sender<Command>,
    pub(super) waker: Arc<LoopWaker>,
    /// That of the data thread, closed and without its state.
    pub(super) gate: Arc<Gate<Worker>>,
    pub(super) worker: ManuallyDrop<Box<Worker>>,
    pub(super) vmm: Vmm,
    /// Stops the VMM thread.
    pub(super) event: Arc<Event>,
}

/// A device from a document.
pub(super) fn resume(
    document: LinkDocument,
    unsealed_memory: bool,
    imports: &mut Imports,
    resuming: &Resuming<'_>,
) -> Result<Resumed, HandoverError> {
    let DeviceDocument {
        version: _,
        cid,
        listener,
        session,
        worker,
    } = document.read(KIND)?;
    let own = resuming.settings.cid;
    let cid = GuestCid::try_from(u64::from(cid)).ok();
    let cid = cid.filter(|cid| Some(cid.get()) == own);
    let cid = cid.ok_or_else(|| HandoverError::inconsistent("it is of another guest"))?;
    let settings = DeviceSettings {
        cid,
        unsealed_memory,
    };
    let listener = UnixListener::from(imports.fd(listener)?);
    let event = Event::new().map_err(HandoverError::io("make an event"))?;
    let event = Arc::new(event);
    let state = DeviceState::default();
    let (commands, queue) = mpsc::channel();
    let config = Config {
        max_connections: resuming.settings.max_connections,
        ..Config::new(cid)
    };
    // The VMM thread needs the data thread's waker, and the data thread the VMM's memory.
    let (session, memory) = match session {
        Some(mut session) => {
            let memory = session.vmm.memory(imports, unsealed_memory)?;
            (Some(session), memory)
        }
        None => (None, Ram::default()),
    };
    let worker = Worker::resume(
        worker,
        imports,
        memory.clone(),
        config,
        state.clone(),
        queue,
        resuming,
    )?;
    let (waker, gate) = (worker.waker(), Arc::new(Gate::closed()));
    let handle = WorkerHandle {
        commands: commands.clone(),
        waker: Arc::clone(&waker),
        state: state.clone(),
        gate: Arc::clone(&gate),
    };
    let session = session
        .map(|session| session.resume(imports, settings, memory, handle.clone(), &event))
        .transpose()?;
    let kept = session
        .as_ref()
        .map(|session| session.connection.try_clone());
    let kept = kept.transpose();
    state.set_connection(kept.map_err(HandoverError::io("duplicate the VMM's connection"))?);
    Ok(Resumed {
        cid,
        state,
        commands,
        waker,
        gate,
        worker,
        vmm: Vmm::new(settings, listener, handle, session),
        event,
    })
}

impl SessionState {
    fn resume(
        self,
        imports: &mut Imports,
        settings: DeviceSettings,
        memory: Ram,
        worker: WorkerHandle,
        event: &Arc<Event>,
    ) -> Result<Session, HandoverError> {
        let Self {
            connection,
            failures,
            vmm,
        } = self;
        let connection = UnixStream::from(imports.fd(connection)?);
        let event = Arc::clone(event);
        let device = device::Device::resume(vmm, memory, imports, settings, worker, event)?;
        let device = Arc::new(Mutex::new(device));
        Ok(Session {
            handler: handler(&connection, &device)?,
            connection,
            device,
            failures,
            part_wait: FIRST_PART_WAIT,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(version: u32) -> LinkDocument {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/vhost_user/snapshot");
        let text = std::fs::read_to_string(format!("{folder}/device-{version}.json"));
        serde_json::from_str(&text.unwrap()).unwrap()
    }

    #[test]
    fn the_examples_of_all_versions_can_be_read() {
        for version in 1..=VERSION {
            let document: DeviceDocument = example(version).read(KIND).unwrap();
            assert_eq!(document.version, version);
            assert!(document.session.is_some());
        }
    }

    #[test]
    fn a_later_version_and_another_kind_of_link_are_refused() {
        let mut value = serde_json::to_value(example(VERSION)).unwrap();
        value["state"]["later"] = true.into();
        let document: LinkDocument = serde_json::from_value(value.clone()).unwrap();
        document.read::<DeviceDocument>(KIND).unwrap();
        value["state"]["version"] = (VERSION + 1).into();
        let document: LinkDocument = serde_json::from_value(value).unwrap();
        let error = document.clone().read::<DeviceDocument>(KIND).unwrap_err();
        assert!(error.to_string().contains("has version 2"), "{error}");
        assert!(document.read::<DeviceDocument>("hybrid").is_err());
    }
}
