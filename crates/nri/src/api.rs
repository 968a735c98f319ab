//! The messages of NRI that the plugin uses, with the fields that it uses (`nri.pkg.api.v1alpha1`). What else is
//! in them is skipped.
//!
//! Lists of a runtime are kept as bytes until each element is looked at: an empty element takes two bytes on
//! the wire, and would take a hundred times that as a value.

use std::collections::HashMap;

use prost::Message;

/// The runtime's service, which a plugin calls.
pub const RUNTIME_SERVICE: &str = "nri.pkg.api.v1alpha1.Runtime";
/// The plugin's service, which the runtime calls.
pub const PLUGIN_SERVICE: &str = "nri.pkg.api.v1alpha1.Plugin";

/// The events that the plugin subscribes to, by their numbers.
pub const CREATE_CONTAINER: i32 = 4;
pub const STOP_CONTAINER: i32 = 10;
pub const REMOVE_CONTAINER: i32 = 11;

#[derive(Clone, PartialEq, Message)]
pub struct RegisterPluginRequest {
    #[prost(string, tag = "1")]
    pub plugin_name: String,
    /// Two digits: plugins are called in this order.
    #[prost(string, tag = "2")]
    pub plugin_idx: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ConfigureRequest {
    #[prost(string, tag = "2")]
    pub runtime_name: String,
    #[prost(string, tag = "3")]
    pub runtime_version: String,
    /// The time limit of a request in milliseconds.
    #[prost(int64, tag = "5")]
    pub request_timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct ConfigureResponse {
    /// The wanted events: the bit 2^(n-1) for the event n.
    #[prost(int32, tag = "2")]
    pub events: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct SynchronizeRequest {
    /// Of [`PodSandbox`].
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub pods: Vec<Vec<u8>>,
    /// Of [`Container`].
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub containers: Vec<Vec<u8>>,
    /// Whether there are more, in another request.
    #[prost(bool, tag = "3")]
    pub more: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct SynchronizeResponse {
    /// Whether the plugin takes more.
    #[prost(bool, tag = "2")]
    pub more: bool,
}

/// The requests about one container: `CreateContainer`, `StopContainer`, `RemoveContainer`.
#[derive(Clone, PartialEq, Message)]
pub struct ContainerRequest {
    #[prost(message, optional, tag = "1")]
    pub pod: Option<PodSandbox>,
    #[prost(message, optional, tag = "2")]
    pub container: Option<Container>,
}

/// By which older runtimes report what newer ones have a request for.
#[derive(Clone, PartialEq, Message)]
pub struct StateChangeEvent {
    #[prost(int32, tag = "1")]
    pub event: i32,
    #[prost(message, optional, tag = "2")]
    pub pod: Option<PodSandbox>,
    #[prost(message, optional, tag = "3")]
    pub container: Option<Container>,
}

#[derive(Clone, PartialEq, Message)]
pub struct CreateContainerResponse {
    #[prost(message, optional, tag = "1")]
    pub adjust: Option<ContainerAdjustment>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PodSandbox {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, tag = "3")]
    pub uid: String,
    #[prost(string, tag = "4")]
    pub namespace: String,
    #[prost(map = "string, string", tag = "5")]
    pub labels: HashMap<String, String>,
    #[prost(map = "string, string", tag = "6")]
    pub annotations: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Container {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub pod_sandbox_id: String,
    #[prost(string, tag = "3")]
    pub name: String,
    #[prost(map = "string, string", tag = "5")]
    pub labels: HashMap<String, String>,
    #[prost(map = "string, string", tag = "6")]
    pub annotations: HashMap<String, String>,
    /// Of [`Mount`].
    #[prost(bytes = "vec", repeated, tag = "9")]
    pub mounts: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Mount {
    #[prost(string, tag = "1")]
    pub destination: String,
    #[prost(string, tag = "2")]
    pub kind: String,
    #[prost(string, tag = "3")]
    pub source: String,
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerAdjustment {
    #[prost(message, repeated, tag = "3")]
    pub mounts: Vec<Mount>,
    #[prost(message, optional, tag = "5")]
    pub hooks: Option<Hooks>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Hooks {
    #[prost(message, repeated, tag = "2")]
    pub create_runtime: Vec<OciHook>,
    #[prost(message, repeated, tag = "6")]
    pub poststop: Vec<OciHook>,
}

#[derive(Clone, PartialEq, Message)]
pub struct OciHook {
    #[prost(string, tag = "1")]
    pub path: String,
    #[prost(string, repeated, tag = "2")]
    pub args: Vec<String>,
}
