//! The plugin: bytes of the runtime in, bytes for the runtime out.
//!
//! Call [`Plugin::register`] first and send what it returns, then [`Plugin::receive`] with all that arrives.
//! Requests are answered in their order. The plugin keeps nothing about containers: what a request needs is in it,
//! and what exists is asked of [`Endpoints`]. Only the list of Pods and containers at the start may come in
//! several requests.

use std::collections::HashMap;
use std::time::Duration;

use prost::Message;

use crate::api::{
    CREATE_CONTAINER, ConfigureRequest, ConfigureResponse, Container, ContainerAdjustment,
    ContainerRequest, CreateContainerResponse, Hooks, Mount, OciHook, PLUGIN_SERVICE, PodSandbox,
    REMOVE_CONTAINER, RUNTIME_SERVICE, RegisterPluginRequest, STOP_CONTAINER, StateChangeEvent,
    SynchronizeRequest, SynchronizeResponse,
};
use crate::mux::{self, Demux};
use crate::ttrpc::{self, Code, Frame, Kind, Reader, Request, Response};
use crate::wanted::Wanted;

/// Where the endpoint's folder is in a container.
const INSIDE: &str = "/run/hvsock";
/// The stream of the only call of the plugin.
const REGISTER: u32 = 1;
/// The time limit of a request if the runtime says none, as in containerd.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// What is left of the time limit for the answer: after it, the runtime closes the connection and creates the
/// container without the mount.
const RESERVE: Duration = Duration::from_millis(250);
/// The most Pods and the most containers of one list: more than a node can have.
const MAX_LISTED: usize = 10_000;

/// Whose endpoints containers get: the broker.
pub trait Endpoints {
    /// Makes sure that there is the partition, within `limit`.
    ///
    /// # Errors
    /// Why there is none, for the runtime's error message.
    fn prepare(&mut self, wanted: &Wanted, limit: Duration) -> Result<Option<Endpoint>, String>;

    /// These containers were there before the plugin. Does not block.
    fn found(&mut self, wanted: Vec<Wanted>);

    /// The runtime has removed the container. Takes no longer than `limit`.
    fn removed(&mut self, wanted: &Wanted, limit: Duration);
}

/// What a container gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// The folder to mount.
    pub folder: String,
    /// The hooks that run when its runtime has created it.
    pub create_runtime: Vec<Hook>,
    /// The hooks that run when its runtime has removed it.
    pub poststop: Vec<Hook>,
}

/// A program that the OCI runtime runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Its absolute path.
    pub path: String,
    /// Its arguments, the first of which is the program's own name.
    pub args: Vec<String>,
}

/// How a plugin registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Letters, digits, `.`, `_`, `+` and `-`.
    pub name: String,
    /// From 0 to 99: the order in which the runtime calls plugins.
    pub index: u8,
}

/// Why a connection cannot be used any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A piece of the multiplexed connection is too long.
    #[error(transparent)]
    Piece(#[from] mux::TooLong),
    /// A message is too long.
    #[error(transparent)]
    Message(#[from] ttrpc::TooLong),
    /// The runtime does not take the plugin.
    #[error("the runtime does not register the plugin: {0}")]
    NotRegistered(String),
}

/// The plugin's side of one connection.
#[derive(Debug, Default)]
pub struct Plugin {
    demux: Demux,
    requests: Reader,
    responses: Reader,
    /// The stream of the last request.
    last: u32,
    timeout: Option<Duration>,
    /// The runtime's name and version, once it has configured the plugin.
    runtime: Option<String>,
    /// Of a list that comes in several requests: the Pods, and the containers that want something.
    pods: HashMap<String, PodSandbox>,
    found: Vec<Wanted>,
}

impl Plugin {
    /// What to send first.
    pub fn register(identity: &Identity) -> Vec<u8> {
        let request = RegisterPluginRequest {
            plugin_name: identity.name.clone(),
            plugin_idx: format!("{:02}", identity.index.min(99)),
        };
        let call = Request {
            service: RUNTIME_SERVICE.to_owned(),
            method: "RegisterPlugin".to_owned(),
            payload: request.encode_to_vec(),
            timeout_nano: 0,
        };
        let mut out = Vec::new();
        send(
            mux::RUNTIME,
            &Frame::new(REGISTER, Kind::Request, &call),
            &mut out,
        );
        out
    }

    /// The runtime's name and version, once it has configured the plugin.
    pub fn runtime(&self) -> Option<&str> {
        self.runtime.as_deref()
    }

    /// Handles what has arrived. Returns what to send.
    ///
    /// # Errors
    /// A [`Violation`] of the protocol: close the connection.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        endpoints: &mut dyn Endpoints,
    ) -> Result<Vec<u8>, Violation> {
        let (mut calls, mut answers) = (Vec::new(), Vec::new());
        let (requests, responses) = (&mut self.requests, &mut self.responses);
        let mut result: Result<(), ttrpc::TooLong> = Ok(());
        self.demux.receive(bytes, |connection, bytes| {
            let read = match connection {
                mux::PLUGIN => requests.receive(bytes, |frame| calls.push(frame)),
                mux::RUNTIME => responses.receive(bytes, |frame| answers.push(frame)),
                // Of a connection that this version does not know.
                _ => Ok(()),
            };
            if result.is_ok() {
                result = read;
            }
        })?;
        result?;
        for frame in answers {
            registered(&frame)?;
        }
        let mut out = Vec::new();
        for frame in calls {
            if let Some(response) = self.answer(&frame, endpoints) {
                send(
                    mux::PLUGIN,
                    &Frame::new(frame.stream, Kind::Response, &response),
                    &mut out,
                );
            }
        }
        Ok(out)
    }

    /// The response to a message of the runtime.
    fn answer(&mut self, frame: &Frame, endpoints: &mut dyn Endpoints) -> Option<Response> {
        let invalid = |what: &str| Some(Response::failed(Code::InvalidArgument, what.to_owned()));
        if frame.kind != Kind::Request as u8 {
            // Data of a stream is part of no call here, and other types are of later versions.
            return None;
        }
        if frame.stream.is_multiple_of(2) || frame.stream <= self.last {
            return invalid("the number of a stream is odd, and higher than those before");
        }
        self.last = frame.stream;
        let Ok(request) = Request::decode(frame.data.as_slice()) else {
            return invalid("the request cannot be decoded");
        };
        if request.service != PLUGIN_SERVICE || frame.flags != 0 {
            let what = "only calls of the plugin's service with one request are known";
            return Some(Response::failed(Code::Unimplemented, what.to_owned()));
        }
        let answered = self.call(&request, endpoints);
        Some(answered.unwrap_or_else(|(code, message)| Response::failed(code, message)))
    }

    fn call(
        &mut self,
        request: &Request,
        endpoints: &mut dyn Endpoints,
    ) -> Result<Response, (Code, String)> {
        let limit = self.limit(request);
        let payload = request.payload.as_slice();
        match request.method.as_str() {
            "Configure" => {
                let request: ConfigureRequest = decoded(payload)?;
                self.runtime = Some(format!(
                    "{} {}",
                    request.runtime_name, request.runtime_version
                ));
                let timeout = u64::try_from(request.request_timeout).unwrap_or_default();
                self.timeout = (timeout > 0).then(|| Duration::from_millis(timeout));
                let bit = |event: i32| 1 << (event - 1);
                let events = [CREATE_CONTAINER, STOP_CONTAINER, REMOVE_CONTAINER].map(bit);
                Ok(answer(&ConfigureResponse {
                    events: events.into_iter().sum(),
                }))
            }
            "Synchronize" => {
                let request: SynchronizeRequest = decoded(payload)?;
                self.synchronize(&request);
                if !request.more {
                    self.pods.clear();
                    endpoints.found(std::mem::take(&mut self.found));
                }
                Ok(answer(&SynchronizeResponse { more: request.more }))
            }
            "CreateContainer" => create(&decoded(payload)?, endpoints, limit),
            "RemoveContainer" => {
                let ContainerRequest { pod, container } = decoded(payload)?;
                removed(pod, container, endpoints, limit);
                Ok(Response::default())
            }
            "StateChange" => {
                let event: StateChangeEvent = decoded(payload)?;
                if event.event == REMOVE_CONTAINER {
                    removed(event.pod, event.container, endpoints, limit);
                }
                Ok(Response::default())
            }
            // A hook and the end of its first process say that it has stopped. The rest is only sent by runtimes
            // that do not look at the subscription.
            "StopContainer"
            | "Shutdown"
            | "RunPodSandbox"
            | "UpdatePodSandbox"
            | "PostUpdatePodSandbox"
            | "StopPodSandbox"
            | "RemovePodSandbox"
            | "PostCreateContainer"
            | "StartContainer"
            | "PostStartContainer"
            | "UpdateContainer"
            | "PostUpdateContainer" => Ok(Response::default()),
            _ => Err((Code::Unimplemented, "no such method".to_owned())),
        }
    }

    /// Reads a list of the containers that were there before the plugin.
    fn synchronize(&mut self, request: &SynchronizeRequest) {
        let room = MAX_LISTED.saturating_sub(self.pods.len());
        for pod in request.pods.iter().take(room) {
            if let Ok(pod) = PodSandbox::decode(pod.as_slice()) {
                self.pods.insert(pod.id.clone(), pod);
            }
        }
        let none = PodSandbox::default();
        for container in &request.containers {
            let Ok(container) = Container::decode(container.as_slice()) else {
                continue;
            };
            let pod = self.pods.get(&container.pod_sandbox_id).unwrap_or(&none);
            if self.found.len() < MAX_LISTED
                && let Ok(Some(wanted)) = Wanted::read(pod, &container)
            {
                self.found.push(wanted);
            }
        }
    }

    /// How long a request may take.
    fn limit(&self, request: &Request) -> Duration {
        let own = u64::try_from(request.timeout_nano)
            .ok()
            .filter(|nanos| *nanos > 0);
        let configured = self.timeout.unwrap_or(REQUEST_TIMEOUT);
        let limit = own.map_or(configured, |own| configured.min(Duration::from_nanos(own)));
        limit.saturating_sub(RESERVE).max(limit / 2)
    }
}

fn create(
    request: &ContainerRequest,
    endpoints: &mut dyn Endpoints,
    limit: Duration,
) -> Result<Response, (Code, String)> {
    let none = PodSandbox::default();
    let pod = request.pod.as_ref().unwrap_or(&none);
    let Some(container) = &request.container else {
        return Err((
            Code::InvalidArgument,
            "the request has no container".to_owned(),
        ));
    };
    let refused = |what: String| (Code::FailedPrecondition, format!("hvsock: {what}"));
    let wanted = Wanted::read(pod, container).map_err(|error| refused(error.to_string()))?;
    let Some(wanted) = wanted else {
        return Ok(answer(&CreateContainerResponse::default()));
    };
    let prepared = endpoints.prepare(&wanted, limit).map_err(refused)?;
    let Some(endpoint) = prepared else {
        return Ok(answer(&CreateContainerResponse::default()));
    };
    let mounted = container
        .mounts
        .iter()
        .filter_map(|mount| Mount::decode(mount.as_slice()).ok());
    let mounted = mounted
        .into_iter()
        .find(|mount| mount.destination == INSIDE);
    let mounts = match mounted {
        None => vec![Mount {
            destination: INSIDE.to_owned(),
            kind: "bind".to_owned(),
            source: endpoint.folder,
            options: ["bind", "ro", "nosuid", "nodev", "noexec"]
                .map(str::to_owned)
                .into(),
        }],
        // Its CDI device has mounted it.
        Some(mount) if mount.source == endpoint.folder => Vec::new(),
        Some(mount) => {
            let source = hvsock_text::printable(&mount.source);
            return Err(refused(format!(
                "{source} is mounted at {INSIDE}, where {} is to be",
                wanted.name
            )));
        }
    };
    let hooks = |hooks: Vec<Hook>| {
        let hooks = hooks.into_iter();
        hooks
            .map(|Hook { path, args }| OciHook { path, args })
            .collect()
    };
    Ok(answer(&CreateContainerResponse {
        adjust: Some(ContainerAdjustment {
            mounts,
            hooks: Some(Hooks {
                create_runtime: hooks(endpoint.create_runtime),
                poststop: hooks(endpoint.poststop),
            }),
        }),
    }))
}

fn removed(
    pod: Option<PodSandbox>,
    container: Option<Container>,
    endpoints: &mut dyn Endpoints,
    limit: Duration,
) {
    let (pod, container) = (pod.unwrap_or_default(), container.unwrap_or_default());
    if let Ok(Some(wanted)) = Wanted::read(&pod, &container) {
        endpoints.removed(&wanted, limit);
    }
}

/// Checks the response to the registration.
fn registered(frame: &Frame) -> Result<(), Violation> {
    if (frame.stream, frame.kind) != (REGISTER, Kind::Response as u8) {
        return Ok(());
    }
    let response = Response::decode(frame.data.as_slice());
    let response = response.map_err(|error| Violation::NotRegistered(error.to_string()))?;
    match response.status {
        Some(status) if status.code != 0 => {
            let message = hvsock_text::printable(&status.message).to_string();
            Err(Violation::NotRegistered(message))
        }
        _ => Ok(()),
    }
}

fn decoded<M: Message + Default>(payload: &[u8]) -> Result<M, (Code, String)> {
    let what = || {
        (
            Code::InvalidArgument,
            "the request cannot be decoded".to_owned(),
        )
    };
    M::decode(payload).map_err(|_| what())
}

fn answer(payload: &impl Message) -> Response {
    Response {
        status: None,
        payload: payload.encode_to_vec(),
    }
}

fn send(connection: u32, frame: &Frame, out: &mut Vec<u8>) {
    // What this side sends is short, apart from paths.
    if let Some(bytes) = frame.encode() {
        mux::send(connection, &bytes, out);
    }
}
