//! Guests that break the rules: a host hears of it, and keeps its memory.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt as _};
use hvsock_services::catalog::SESSION;
use hvsock_services::host::session::{self, Event, Exec, ExecError, PIECE};
use hvsock_services::link::Offer;
use hvsock_services::wire::session::exited::How;
use hvsock_services::wire::session::output::What;
use hvsock_services::wire::session::session_server::{Session, SessionServer};
use hvsock_services::wire::session::{Exited, Input, Nothing, Output, Started};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use crate::world::World;

type Outputs = Pin<Box<dyn Stream<Item = Result<Output, Status>> + Send>>;

/// Says the same to everybody.
struct Liar<F>(F);

#[tonic::async_trait]
impl<F: Fn() -> Outputs + Send + Sync + 'static> Session for Liar<F> {
    type RunStream = Outputs;

    async fn run(&self, _: Request<Streaming<Input>>) -> Result<Response<Outputs>, Status> {
        Ok(Response::new((self.0)()))
    }
}

async fn liar(says: impl Fn() -> Outputs + Send + Sync + 'static) -> World {
    let routes = Routes::new(SessionServer::new(Liar(says)));
    World::with(Offer::calls(&SESSION, routes)).await
}

fn of(what: Option<What>) -> Result<Output, Status> {
    Ok(Output { what })
}

/// What comes of a command in a guest that says this, and then nothing, or that all was said.
async fn told(lies: Vec<Option<What>>, ends: bool) -> ExecError {
    let world = liar(move || {
        let said = stream::iter(lies.clone()).map(of);
        match ends {
            true => Box::pin(said),
            false => Box::pin(said.chain(stream::pending())),
        }
    })
    .await;
    let mut running = match session::start(&world.target(), Exec::new(["true"])).await {
        Ok(running) => running,
        Err(error) => return error,
    };
    loop {
        match running.output.next().await {
            Ok(Event::Exited(exit)) => panic!("it passed for {exit:?}"),
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
async fn a_guest_that_breaks_the_rules_is_told_from_one_that_fails() {
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
        let error = told(case, false).await;
        assert!(matches!(error, ExecError::Broken(_)), "{what}: {error}");
    }
    for case in [vec![], vec![started()]] {
        let error = told(case, true).await;
        assert!(matches!(error, ExecError::Broken(_)), "{error}");
    }
}

#[tokio::test]
async fn a_message_that_is_too_large_is_not_taken() {
    let large = Some(What::Stdout(vec![0; PIECE + 2048].into()));
    let error = told(vec![started(), large], false).await;
    let ExecError::Call(error) = error else {
        panic!("{error}");
    };
    assert!(error.to_string().contains("too large"), "{error}");
}

#[tokio::test]
async fn what_nobody_reads_is_held_up_in_the_guest() {
    let said = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&said);
    let world = liar(move || {
        let counted = Arc::clone(&counted);
        let endless = stream::repeat_with(move || {
            counted.fetch_add(PIECE, Ordering::SeqCst);
            of(Some(What::Stdout(vec![0; PIECE].into())))
        });
        Box::pin(stream::iter([of(started())]).chain(endless))
    })
    .await;
    let running = session::start(&world.target(), Exec::new(["yes"]))
        .await
        .unwrap();
    // It settles, at no more than what windows and buffers hold.
    let mut before = usize::MAX;
    while said.load(Ordering::SeqCst) != before {
        before = said.load(Ordering::SeqCst);
        assert!(before < 8 << 20, "{before} bytes");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    drop(running);
}

#[tokio::test]
async fn a_guest_that_never_starts_the_command_is_given_up() {
    let world = liar(|| Box::pin(stream::pending())).await;
    let target = world.target();
    let starting = tokio::spawn(async move { session::start(&target, Exec::new(["true"])).await });
    // Once connected; then the clock goes on by itself, for nothing else happens.
    tokio::time::sleep(Duration::from_millis(500)).await;
    tokio::time::pause();
    let error = starting.await.unwrap().unwrap_err();
    assert!(matches!(error, ExecError::TimedOut), "{error}");
}

#[tokio::test]
async fn a_command_that_reads_no_more_is_sent_no_more() {
    let world = liar(|| {
        let said = [started(), Some(What::StdinClosed(Nothing {}))];
        Box::pin(stream::iter(said).map(of).chain(stream::pending()))
    })
    .await;
    let mut running = session::start(&world.target(), Exec::new(["true"]))
        .await
        .unwrap();
    assert_eq!(running.output.next().await.unwrap(), Event::StdinClosed);
    assert_eq!(running.input.send("x".into()).await, Err(session::Closed));
}
