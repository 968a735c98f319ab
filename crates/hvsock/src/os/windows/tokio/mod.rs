//! How tokio's runtime watches sockets of Winsock.

mod dial;
mod listener;
mod stream;
mod watch;

pub(crate) use dial::obtain;
pub(crate) use listener::ListenerWatch;
pub(crate) use stream::StreamWatch;
