//! A plugin on a socket.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::plugin::{Endpoints, Identity, Plugin, Violation};

/// How long the runtime may leave bytes unread.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// The bytes of one read.
const BUFFER: usize = 64 * 1024;

/// Why the connection has ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The runtime has closed it, as when it stops.
    #[error("the runtime has closed the connection")]
    Closed,
    /// The socket has failed.
    #[error("the connection to the runtime has failed")]
    Io(#[from] io::Error),
    /// The runtime has broken the protocol, or does not take the plugin.
    #[error(transparent)]
    Violation(#[from] Violation),
}

/// Registers the plugin at the runtime and answers its requests until the connection ends. `configured` is called
/// with the runtime's name and version once it has taken the plugin.
pub fn serve(
    mut socket: &UnixStream,
    identity: &Identity,
    endpoints: &mut dyn Endpoints,
    mut configured: impl FnMut(&str),
) -> Ended {
    let mut run = || -> Result<(), Ended> {
        socket.set_write_timeout(Some(WRITE_TIMEOUT))?;
        socket.write_all(&Plugin::register(identity))?;
        let (mut plugin, mut is_configured) = (Plugin::default(), false);
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = match socket.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            let bytes = buffer.get(..read).unwrap_or_default();
            let answer = plugin.receive(bytes, endpoints)?;
            socket.write_all(&answer)?;
            if let Some(runtime) = plugin.runtime().filter(|_| !is_configured) {
                configured(runtime);
                is_configured = true;
            }
        }
    };
    match run() {
        Ok(()) => Ended::Closed,
        Err(ended) => ended,
    }
}
