//! Watches descriptors with tokio's runtime, and executes requests without blocking a worker
//! thread.

mod execute;
mod listener;
mod recheck;
mod ring;
mod stream;
mod watch;

pub(crate) use execute::execute;
pub(crate) use listener::ListenerWatch;
pub(crate) use stream::StreamWatch;
