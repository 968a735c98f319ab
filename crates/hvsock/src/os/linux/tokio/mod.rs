//! How tokio's runtime watches descriptors, and asks a back-end without blocking a worker thread.

mod execute;
mod listener;
mod recheck;
mod ring;
mod stream;
mod watch;

pub(crate) use execute::execute;
pub(crate) use listener::ListenerWatch;
pub(crate) use stream::StreamWatch;
