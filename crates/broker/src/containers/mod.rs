//! What container runtimes say about containers, beside the core, which makes no system call for it:
//! [`bindings`] keeps it in files, so that a restarted broker finds its containers again, and [`observer`] waits
//! for their ends and for their pauses, as [`orders`] say.

mod bindings;
mod observer;
mod orders;

pub(crate) use bindings::{BindingFiles, Found, Kept};
pub(crate) use observer::{ContainerObserver, Unstarted as UnstartedObserver};
pub(crate) use orders::{Observed, Orders};
