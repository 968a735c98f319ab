//! Going down when the parent asks for it.

use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::catalog::SHUTDOWN;
use crate::link::Offer;
use crate::wire::shutdown::shutdown_server::{Shutdown, ShutdownServer};
use crate::wire::shutdown::{ShutdownReply, ShutdownRequest};

/// The service.
pub(super) fn offer() -> Offer {
    Offer::calls(&SHUTDOWN, Routes::new(ShutdownServer::new(Service)))
}

struct Service;

#[tonic::async_trait]
impl Shutdown for Service {
    async fn begin(
        &self,
        _request: Request<ShutdownRequest>,
    ) -> Result<Response<ShutdownReply>, Status> {
        Err(Status::unimplemented("this agent cannot shut down yet"))
    }
}
