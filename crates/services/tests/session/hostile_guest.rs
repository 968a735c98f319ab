//! Guests that violate the session protocol: the host reports an error and stays within its memory limits.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt as _};
use hvsock_services::catalog::SESSION;
use hvsock_services::host::session::{self, CHUNK, Event, Exec, ExecError};
use hvsock_services::link::ServiceServer;
use hvsock_services::wire::session::exited::How;
use hvsock_services::wire::session::output::What;
use hvsock_services::wire::session::session_server::{Session, SessionServer};
use hvsock_services::wire::session::{Exited, Input, Nothing, Output, Started};
use tokio::sync::Notify;
use tokio::time::timeout;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use crate::world::{LONG, World};

type Outputs = Pin<Box<dyn Stream<Item = Result<Output, Status>> + Send>>;

/// Sends the same to every host.
struct HostileGuest<F>(F);

#[tonic::async_trait]
impl<F: Fn() -> Outputs + Send + Sync + 'static> Session for HostileGuest<F> {
    type RunStream = Outputs;

    async fn run(&self, _: Request<Streaming<Input>>) -> Result<Response<Outputs>, Status> {
        Ok(Response::new((self.0)()))
    }
}

async fn hostile(outputs: impl Fn() -> Outputs + Send + Sync + 'static) -> World {
    let routes = Routes::new(SessionServer::new(HostileGuest(outputs)));
    World::with(ServiceServer::calls(&SESSION, routes)).await
}

fn of(what: Option<What>) -> Result<Output, Status> {
    Ok(Output { what })
}

/// The error of a command in a guest that sends these messages, and then either ends the call or is silent.
async fn error_of(messages: Vec<Option<What>>, ends: bool) -> ExecError {
    let world = hostile(move || {
        let sent = stream::iter(messages.clone()).map(of);
        match ends {
            true => Box::pin(sent),
            false => Box::pin(sent.chain(stream::pending())),
        }
    })
    .await;
    let mut running = match session::start(&world.target(), Exec::new(["true"])).await {
        Ok(running) => running,
        Err(error) => return error,
    };
    loop {
        match running.output.next().await {
            Ok(Event::Exited(exit)) => panic!("unexpected exit: {exit:?}"),
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}

fn started() -> Option<What> {
    Some(What::Started(Started { pid: 1 }))
}

fn exited(how: Option<How>) -> Option<What> {
    Some(What::Exited(Exited {
        how,
        output_left_open: false,
    }))
}

#[tokio::test]
async fn protocol_violations_of_a_guest_are_reported() {
    let cases = [
        vec![Some(What::Stdout("x".into()))],
        vec![None],
        vec![started(), started()],
        vec![started(), None],
        vec![started(), Some(What::StdinTaken(1))],
        vec![started(), exited(None)],
        vec![started(), exited(Some(How::Status(256)))],
        vec![started(), exited(Some(How::Signal(0)))],
        vec![started(), exited(Some(How::Signal(128)))],
    ];
    for case in cases {
        let what = format!("{case:?}");
        let error = error_of(case, false).await;
        assert!(matches!(error, ExecError::Broken(_)), "{what}: {error}");
    }
    for case in [vec![], vec![started()]] {
        let error = error_of(case, true).await;
        assert!(matches!(error, ExecError::Broken(_)), "{error}");
    }
}

#[tokio::test]
async fn an_oversized_message_is_rejected() {
    let large = Some(What::Stdout(vec![0; CHUNK + 2048].into()));
    let error = error_of(vec![started(), large], false).await;
    let ExecError::Call(error) = error else {
        panic!("{error}");
    };
    assert!(error.to_string().contains("too large"), "{error}");
}

#[tokio::test]
async fn unread_output_is_limited_by_backpressure() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let world = hostile(move || {
        let counted = Arc::clone(&counted);
        let endless = stream::repeat_with(move || {
            counted.fetch_add(CHUNK, Ordering::SeqCst);
            of(Some(What::Stdout(vec![0; CHUNK].into())))
        });
        Box::pin(stream::iter([of(started())]).chain(endless))
    })
    .await;
    let running = session::start(&world.target(), Exec::new(["yes"]))
        .await
        .unwrap();
    // It settles at the capacity of the windows and buffers.
    let mut before = usize::MAX;
    while sent.load(Ordering::SeqCst) != before {
        before = sent.load(Ordering::SeqCst);
        assert!(before < 8 << 20, "{before} bytes");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    drop(running);
}

#[tokio::test]
async fn a_guest_that_never_starts_the_command_times_out() {
    let called = Arc::new(Notify::new());
    let notify = Arc::clone(&called);
    let world = hostile(move || {
        notify.notify_one();
        Box::pin(stream::pending())
    })
    .await;
    let target = world.target();
    let starting = tokio::spawn(async move { session::start(&target, Exec::new(["true"])).await });
    // The call has reached the guest. From here on the paused clock advances by itself.
    timeout(LONG, called.notified()).await.expect("a call");
    tokio::time::pause();
    let error = starting.await.unwrap().unwrap_err();
    assert!(matches!(error, ExecError::TimedOut), "{error}");
}

#[tokio::test]
async fn no_input_is_sent_after_stdin_is_closed() {
    let world = hostile(|| {
        let messages = [started(), Some(What::StdinClosed(Nothing {}))];
        Box::pin(stream::iter(messages).map(of).chain(stream::pending()))
    })
    .await;
    let mut running = session::start(&world.target(), Exec::new(["true"]))
        .await
        .unwrap();
    assert_eq!(running.output.next().await.unwrap(), Event::StdinClosed);
    assert_eq!(running.input.send("x".into()).await, Err(session::Closed));
}
