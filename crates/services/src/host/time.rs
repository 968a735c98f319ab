//! Telling guests the time.

use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::stream::{self, Stream};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use crate::catalog::TIME;
use crate::link::Offer;
use crate::wire::time::time_server::{Time, TimeServer};
use crate::wire::time::{Probe, Stamp};

/// Bytes of a probe.
const LARGEST: usize = 1024;

/// From one answer to the next, at the least.
const SHORTEST: Duration = Duration::from_millis(10);

/// The service.
pub fn offer() -> Offer {
    let server = TimeServer::new(Service).max_decoding_message_size(LARGEST);
    Offer::calls(&TIME, Routes::new(server))
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
                // After an answer, so that it keeps nobody's probe waiting who leaves time between.
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
