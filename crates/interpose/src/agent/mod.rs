//! Whole containers: the runtime gives the listener of a container's seccomp filter to an agent.
//!
//! 1. [`Profile`] is the container's seccomp profile with the rules that notify, and the path of the agent's socket.
//! 2. The runtime connects to that socket for each process that it starts in the container, and sends a
//!    [`ContainerProcess`] with the listener.
//! 3. The agent answers the calls until the last process under that filter has ended.
//!
//! What a container is comes from the runtime: the profile names its partition, and only whoever may start
//! containers of this broker can connect to the agent's socket.

mod inbox;
mod message;
mod profile;

pub use inbox::{Handover, Inbox, InboxError};
pub use message::{ContainerProcess, MAX_MESSAGE, MessageError};
pub use profile::{Form, MergeError, Profile};
