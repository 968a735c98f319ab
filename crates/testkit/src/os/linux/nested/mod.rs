//! A real guest with a broker and containers of its own, and a program that does in any partition what a
//! test asks.
//!
//! - [`GuestBroker`]: a VM in which `hvsock broker` runs, with the programs that its containers need.
//! - [`ContainerInVm`]: a container that runc or crun started in that VM.
//! - [`Probe`]: the far end is [`serve`], a program with one process in each partition. It connects and
//!   listens with the library and runs commands, so that a request costs no boot and no shell.

mod container;
mod guest;
mod pattern;
mod probe;
mod program;

pub use container::{ContainerInVm, ContainerOnHost, RunningContainer};
pub use guest::{GuestBroker, Programs};
pub use probe::{Connected, Listens, Moved, Probe, Ran, Refused};
pub use program::serve;
