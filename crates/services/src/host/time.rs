//! The time service: answers the probes of guests with the host's time.

use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::stream::{self, Stream};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use crate::catalog::TIME;
use crate::link::ServiceServer;
use crate::wire::time::time_server::{Time, TimeServer};
use crate::wire::time::{Probe, Stamp};

/// The largest probe, in bytes.
const LARGEST: usize = 1024;

/// The rate limit: the shortest time between two answers on one call.
const SHORTEST: Duration = Duration::from_millis(10);

/// The service, to be run by [`ServiceServer::serve`].
pub fn server() -> ServiceServer {
    let server = TimeServer::new(Service).max_decoding_message_size(LARGEST);
    ServiceServer::calls(&TIME, Routes::new(server))
}

struct Service;

#[tonic::async_trait]
impl Time for Service {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<Stamp, Status>> + Send>>;

    async fn exchange(
        &self,
        request: Request<Streaming<Probe>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let probes = request.into_inner();
        let stamps = stream::unfold((probes, false), async |(mut probes, answered)| {
            if answered {
                // The delay comes after an answer, so the first probe after an idle time is
                // answered at once.
                tokio::time::sleep(SHORTEST).await;
            }
            let probe = probes.message().await.ok()??;
            let received_ns = now();
            let stamp = Stamp {
                origin: probe.origin,
                received_ns,
                sent_ns: now(),
            };
            Some((Ok(stamp), (probes, true)))
        });
        Ok(Response::new(Box::pin(stamps)))
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}
