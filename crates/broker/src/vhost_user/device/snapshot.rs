//! What a VMM has set up, in the document of its device.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use hvsock_sys::descriptor;
use hvsock_sys::event::Event;
use serde::{Deserialize, Serialize};
use vhost::vhost_user::BackendReqHandler;
use vhost::vhost_user::message::FrontendReq;

use super::{Device, Negotiated, VringConfig, WorkerHandle};
use crate::handover::{Exports, FdIndex, HandoverError, Imports};
use crate::vhost_user::command::DeviceSettings;
use crate::vhost_user::device_state::Loading;
use crate::vhost_user::device_state::snapshot::LoadingState;
use crate::vhost_user::memory::Ram;
use crate::vhost_user::memory::snapshot::RamState;

/// What a VMM has set up.
#[derive(Debug, Serialize, Deserialize)]
pub(in super::super) struct DeviceState {
    memory: Option<RamState>,
    features: u64,
    /// The VMM has asked for the device's features.
    asked: bool,
    /// The features that the VMM has acknowledged last, and those of the protocol.
    acknowledged: Option<u64>,
    protocol: Option<u64>,
    rings: [RingState; 3],
    loading: Option<LoadingState>,
    transferred: bool,
    requests: Option<FdIndex>,
}

#[derive(Debug, Serialize, Deserialize)]
struct RingState {
    size: u16,
    addresses: Option<[u64; 3]>,
    base: u16,
}

impl Device {
    pub(in super::super) fn hand_over(
        &self,
        exports: &mut Exports,
    ) -> Result<DeviceState, HandoverError> {
        let Self {
            settings: _,
            worker: _,
            ram,
            features,
            negotiated,
            rings,
            loading,
            transferred,
            stop: _,
            requests,
        } = self;
        let ring = |ring: &VringConfig| RingState {
            size: ring.size,
            addresses: ring.addresses,
            base: ring.base,
        };
        let loading = loading.as_ref();
        let requests = requests.as_ref();
        Ok(DeviceState {
            memory: Some(ram.hand_over(exports)?),
            features: *features,
            asked: negotiated.asked,
            acknowledged: negotiated.features,
            protocol: negotiated.protocol,
            rings: rings.each_ref().map(ring),
            loading: loading.map(|state| state.hand_over(exports)).transpose()?,
            transferred: *transferred,
            requests: requests.map(|channel| exports.fd(channel)).transpose()?,
        })
    }

    pub(in super::super) fn resume(
        state: DeviceState,
        ram: Ram,
        imports: &mut Imports,
        settings: DeviceSettings,
        worker: WorkerHandle,
        stop: Arc<Event>,
    ) -> Result<Self, HandoverError> {
        let DeviceState {
            memory: _,
            features,
            asked,
            acknowledged,
            protocol,
            rings,
            loading,
            transferred,
            requests,
        } = state;
        let ring = |ring: RingState| VringConfig {
            size: ring.size,
            addresses: ring.addresses,
            base: ring.base,
        };
        Ok(Self {
            ram,
            settings,
            worker,
            features,
            negotiated: Negotiated {
                asked,
                features: acknowledged,
                protocol,
            },
            rings: rings.map(ring),
            loading: loading
                .map(|state| Loading::resume(state, imports))
                .transpose()?,
            transferred,
            stop,
            requests: requests.map(|channel| imports.fd(channel)).transpose()?,
        })
    }
}

impl DeviceState {
    /// Maps the guest's memory.
    pub(in super::super) fn memory(
        &mut self,
        imports: &mut Imports,
        may_shrink: bool,
    ) -> Result<Ram, HandoverError> {
        let memory = self.memory.take();
        memory.map_or_else(
            || Ok(Ram::default()),
            |memory| Ram::resume(memory, imports, may_shrink),
        )
    }
}

/// A handler for a VMM that has negotiated with another one. The crate keeps what was negotiated to itself, so the
/// handler negotiates again, with this process, and then its socket is replaced.
pub(in super::super) fn handler(
    connection: &UnixStream,
    device: &Arc<Mutex<Device>>,
) -> Result<BackendReqHandler<Mutex<Device>>, HandoverError> {
    let failed = HandoverError::io("negotiate with a handler of the VMM's requests");
    let (own, mut vmm) = match UnixStream::pair() {
        Ok(pair) => pair,
        Err(error) => return Err(failed(error)),
    };
    let Negotiated {
        asked,
        features,
        protocol,
    } = hvsock_sys::sync::lock(device).negotiated;
    let mut handler = BackendReqHandler::from_stream(own, Arc::clone(device));
    let requests = [
        (FrontendReq::GET_FEATURES, asked.then_some(None)),
        (FrontendReq::SET_FEATURES, features.map(Some)),
        (FrontendReq::SET_PROTOCOL_FEATURES, protocol.map(Some)),
    ];
    for (request, body) in requests {
        let Some(body) = body else { continue };
        let sent = vmm.write_all(&message(request, body));
        let handled = sent
            .map_err(|error| error.to_string())
            .and_then(|()| handler.handle_request().map_err(|error| error.to_string()));
        if let Err(error) = handled {
            let what = format!("the VMM cannot have negotiated these features: {error}");
            return Err(HandoverError::damaged(what));
        }
    }
    // What the VMM did not ask for stays unasked.
    hvsock_sys::sync::lock(device).negotiated = Negotiated {
        asked,
        features,
        protocol,
    };
    descriptor::replace(&mut handler, connection).map_err(failed)?;
    Ok(handler)
}

fn message(request: FrontendReq, body: Option<u64>) -> Vec<u8> {
    const VERSION: u32 = 1;
    let len = if body.is_some() { 8 } else { 0 };
    let words = [request as u32, VERSION, len];
    let mut message: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
    message.extend(body.into_iter().flat_map(u64::to_ne_bytes));
    message
}
