//! Watches Winsock sockets with tokio's runtime.

mod execute;
mod listener;
mod stream;
mod watch;

pub(crate) use execute::execute;
pub(crate) use listener::ListenerWatch;
pub(crate) use stream::StreamWatch;
