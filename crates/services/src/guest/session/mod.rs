//! Commands and shells for the parent.
//!
//! Each call is one command. `plan` validates the request; `user` and `environment` determine the
//! user and the environment; `process` starts the command and waits for its exit; `terminal` and
//! `stdin` are its streams; `record` is what the guest's log says of it; `run` transfers bytes, sizes and signals; `sweep` ends all processes of
//! the command when the parent is gone; `reaper` reaps orphaned children.

mod environment;
mod plan;
mod process;
mod reaper;
mod record;
mod run;
mod stdin;
mod sweep;
mod terminal;
mod user;

pub(crate) use process::wait_for_sweeps;
pub(crate) use reaper::reap_children;

use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::{self, Stream};
use tokio::sync::{Semaphore, mpsc};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use crate::catalog::SESSION;
use crate::link::ServiceServer;
use crate::wire::session::session_server::{Session, SessionServer};
use crate::wire::session::{Input, Output};

/// The most concurrent commands, including those that are being ended.
const COMMANDS: usize = 128;

/// The largest message, in bytes, which is `start`.
const MESSAGE: usize = 1 << 20;

/// How many output messages are queued for the parent. Then backpressure reaches the command: its
/// output stays in its pipe until it blocks.
const OUTPUTS: usize = 4;

/// The service.
pub(super) fn server() -> ServiceServer {
    let service = Service {
        limit: Arc::new(Semaphore::new(COMMANDS)),
    };
    let server = SessionServer::new(service).max_decoding_message_size(MESSAGE);
    ServiceServer::calls(&SESSION, Routes::new(server))
}

/// Validates a request, as [`Session::run`] does first.
#[cfg(feature = "fuzzing")]
pub(super) fn validate(start: crate::wire::session::Start) {
    let _ = plan::Plan::new(start);
}

struct Service {
    limit: Arc<Semaphore>,
}

#[tonic::async_trait]
impl Session for Service {
    type RunStream = Pin<Box<dyn Stream<Item = Result<Output, Status>> + Send>>;

    async fn run(
        &self,
        request: Request<Streaming<Input>>,
    ) -> Result<Response<Self::RunStream>, Status> {
        let permit = Arc::clone(&self.limit).try_acquire_owned();
        let permit = permit.map_err(|_| {
            Status::resource_exhausted(format!(
                "the guest's limit of {COMMANDS} concurrent commands is reached"
            ))
        })?;
        let (out, mut outputs) = mpsc::channel(OUTPUTS);
        tokio::spawn(run::serve(request.into_inner(), out, permit));
        let outputs = stream::poll_fn(move |context| outputs.poll_recv(context));
        Ok(Response::new(Box::pin(outputs)))
    }
}
