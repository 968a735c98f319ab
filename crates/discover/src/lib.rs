//! Lists the virtual machines that run on this machine, and how each can be reached.
//!
//! A [`Manager`] is something that knows virtual machines: machined, libvirt, Incus, or the processes of
//! VMMs themselves. [`managers`] has all of them, and [`discover`] asks each and merges what they say. For the
//! state of one virtual machine, as a link over the kernel's vsock needs it, see [`state_of_cid`].
//!
//! ```no_run
//! use std::time::Duration;
//!
//! let found = hvsock_discover::discover(&hvsock_discover::managers(), Duration::from_secs(3));
//! for machine in &found.machines {
//!     println!("{:?}", machine);
//! }
//! ```
//!
//! The answers come from other users' programs and are not trusted: each is bounded in bytes and time, and
//! its texts are kept as they are. Whoever prints one escapes it (`hvsock_text`). A manager that is not
//! there, that forbids the question or that does not answer is an [`Unavailable`] and stops nothing else.

#![forbid(unsafe_code)]

mod error;
mod found;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod incus;
mod kind;
mod libvirt;
mod machine;
mod machined;
mod manager;
mod managers;
mod processes;
mod text;
mod wire;

pub use error::Unavailable;
pub use found::{Found, Note, discover, state_of_cid};
pub use incus::Incus;
pub use kind::ManagerKind;
pub use libvirt::{Daemon, Libvirt};
pub use machine::{HybridStyle, Machine, Reach, State};
pub use machined::Machined;
pub use manager::Manager;
pub use managers::{manager, managers};
pub use processes::Processes;
