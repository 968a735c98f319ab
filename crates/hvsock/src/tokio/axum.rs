//! An async listener for `axum::serve`.

use std::io;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use hvsock_address::SockAddrHv;

use super::{HvConnectInfo, HvListener, HvStream};

/// How long to wait after an error that is not final, such as a lack of descriptors.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// `axum::serve(listener, router)` accepts the connections of the listener.
///
/// axum has no error for a listener that has ended, for example because the service was
/// unregistered: it serves the established connections and accepts no more. To stop, or to listen
/// again, wait for [`HvListener::ended`].
///
/// ```no_run
/// use axum::{Router, routing::get};
/// use hvsock::tokio::HvListener;
///
/// # async fn run() -> std::io::Result<()> {
/// let listener = HvListener::bind(("children", "HV Socket Demo")).await?;
/// let app = Router::new().route("/", get(async || "hello"));
/// let ended = listener.ended();
/// axum::serve(listener, app)
///     .with_graceful_shutdown(async { drop(ended.await) })
///     .await
/// # }
/// ```
impl Listener for HvListener {
    type Io = HvStream;
    type Addr = SockAddrHv;

    async fn accept(&mut self) -> (HvStream, SockAddrHv) {
        loop {
            match HvListener::accept(self).await {
                Ok(accepted) => return accepted,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    std::future::pending::<()>().await;
                }
                Err(_) => tokio::time::sleep(RETRY_AFTER).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SockAddrHv> {
        HvListener::local_addr(self)
    }
}

impl Connected<IncomingStream<'_, HvListener>> for HvConnectInfo {
    fn connect_info(stream: IncomingStream<'_, HvListener>) -> Self {
        stream.io().connect_info()
    }
}
