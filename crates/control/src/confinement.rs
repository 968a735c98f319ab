//! What the broker has taken from itself.

use serde::{Deserialize, Serialize};

/// The confinement of the broker's process and of its threads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Confinement {
    /// Whether the broker confines its threads.
    pub enabled: bool,
    /// The version of the kernel's Landlock interface, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landlock_abi: Option<u32>,
    /// The capabilities of the process.
    pub capabilities: Vec<String>,
    /// What each kind of thread that the broker has started has come to.
    pub threads: Vec<ConfinedThreads>,
    /// What is not confined although it should be, and why. Each is a sentence without a full stop.
    #[serde(default)]
    pub missing: Vec<String>,
    /// System calls that allow lists have denied.
    pub denied: Vec<DeniedCall>,
    /// The number of denied calls that are not listed.
    pub denied_others: u64,
}

/// The confinement of the threads of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ConfinedThreads {
    /// What they do.
    pub kind: String,
    /// Whether all of them have an allow list of system calls.
    pub seccomp: bool,
    /// Whether Landlock keeps all of them from all files.
    pub landlock: bool,
    /// The capabilities that they have.
    pub capabilities: Vec<String>,
}

/// A system call that was denied to a kind of thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeniedCall {
    /// What the threads do.
    pub kind: String,
    /// The number of the call, of the broker's architecture.
    pub syscall: u32,
    /// The name of the call, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How often it was denied.
    pub count: u64,
}
