//! Commands and shells for the parent.
//!
//! A call is one command. `plan` is what it asks for, checked; `user` and `environment` are
//! as whom and with what it runs; `process` starts it and knows its end; `terminal` and
//! `stdin` are its streams; `run` moves bytes, sizes and signals until it is over; `sweep`
//! leaves nothing of it behind when the parent is gone, and `orphans` is for what is left anyway.

mod environment;
mod orphans;
mod plan;
mod process;
mod run;
mod stdin;
mod sweep;
mod terminal;
mod user;

pub(crate) use orphans::take_note;
pub(crate) use process::settle;

use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::{self, Stream};
use tokio::sync::{Semaphore, mpsc};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use crate::catalog::SESSION;
use crate::link::Offer;
use crate::wire::session::session_server::{Session, SessionServer};
use crate::wire::session::{Input, Output};

/// The most commands at once, those that are being ended among them.
const COMMANDS: usize = 128;

/// The most bytes of one message, which is `start` then.
const MESSAGE: usize = 1 << 20;

/// How many messages wait for the parent to read them; what the command prints after that waits
/// in its pipe, and then it waits itself.
const OUTPUTS: usize = 4;

/// The service.
pub(super) fn offer() -> Offer {
    let service = Service {
        room: Arc::new(Semaphore::new(COMMANDS)),
    };
    let server = SessionServer::new(service).max_decoding_message_size(MESSAGE);
    Offer::calls(&SESSION, Routes::new(server))
}

struct Service {
    room: Arc<Semaphore>,
}

#[tonic::async_trait]
impl Session for Service {
    type RunStream = Pin<Box<dyn Stream<Item = Result<Output, Status>> + Send>>;

    async fn run(
        &self,
        request: Request<Streaming<Input>>,
    ) -> Result<Response<Self::RunStream>, Status> {
        let room = Arc::clone(&self.room).try_acquire_owned();
        let room = room.map_err(|_| {
            Status::resource_exhausted(format!(
                "the guest runs {COMMANDS} commands already, which is its limit"
            ))
        })?;
        let (out, mut outputs) = mpsc::channel(OUTPUTS);
        tokio::spawn(run::serve(request.into_inner(), out, room));
        let outputs = stream::poll_fn(move |context| outputs.poll_recv(context));
        Ok(Response::new(Box::pin(outputs)))
    }
}
