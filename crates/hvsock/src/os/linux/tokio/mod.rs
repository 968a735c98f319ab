//! How tokio's runtime watches descriptors, and asks a back-end without blocking a worker thread.

mod dial;
mod listener;
mod look_up;
mod ring;
mod stream;
mod watch;

pub(crate) use dial::obtain;
pub(crate) use listener::ListenerWatch;
pub(crate) use stream::StreamWatch;
