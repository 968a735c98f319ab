//! Hosts that violate the protocol or exceed a limit: the guest reports an error and ends the command.

use std::path::Path;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use hvsock_services::catalog::SESSION;
use hvsock_services::host::session::{self, Ending, Event, Exec, ExecError, Running, WINDOW};
use hvsock_services::wire::session::input::What as In;
use hvsock_services::wire::session::output::What as Out;
use hvsock_services::wire::session::session_client::SessionClient;
use hvsock_services::wire::session::{Input, Size, Start};
use tokio::time::{sleep, timeout};
use tonic::{Code, Status};

use crate::world::{LONG, World};

fn start(argv: &[&'static str]) -> In {
    In::Start(Start {
        argv: argv.iter().map(|word| (*word).into()).collect(),
        stdin: true,
        ..Start::default()
    })
}

/// The status that ends a call with these inputs, and the process that the call started.
async fn status_of(world: &World, inputs: Vec<In>) -> (Option<u32>, Status) {
    let channel = world.target().channel(&SESSION).await.unwrap();
    let inputs = inputs.into_iter().map(|what| Input { what: Some(what) });
    let inputs = stream::iter(inputs).chain(stream::pending());
    let call = async {
        let mut pid = None;
        let mut outputs = match SessionClient::new(channel).run(inputs).await {
            Ok(response) => response.into_inner(),
            Err(status) => return (pid, status),
        };
        loop {
            match outputs.message().await {
                Ok(output) => match output.expect("an output").what {
                    Some(Out::Started(started)) => pid = Some(started.pid),
                    Some(Out::StdinTaken(_)) => {}
                    other => panic!("{other:?}"),
                },
                Err(status) => return (pid, status),
            }
        }
    };
    timeout(LONG, call).await.expect("an answer")
}

async fn gone(pid: u32) {
    let place = format!("/proc/{pid}");
    let gone = async {
        while Path::new(&place).exists() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG, gone).await.expect("the process ends");
}

#[tokio::test]
async fn a_violation_is_reported_and_ends_the_command() {
    let world = World::with_agent().await;
    let sleep = || start(&["sleep", "600"]);
    let much = || In::Stdin(vec![0; WINDOW / 4].into());
    for inputs in [
        vec![In::Stdin("x".into())],
        vec![sleep(), sleep()],
        vec![sleep(), In::Signal(0)],
        vec![sleep(), In::Signal(65)],
        vec![sleep(), In::Signal(u32::MAX)],
        vec![
            sleep(),
            In::Resize(Size {
                rows: 65_536,
                cols: 1,
            }),
        ],
        // A pipe holds 65,536 bytes, for which credit may be returned.
        vec![sleep(), much(), much(), much(), much(), much(), much()],
        vec![start(&["a\0b"])],
    ] {
        let what = format!("{:?}", &inputs.get(1));
        let (pid, status) = status_of(&world, inputs).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status}");
        if let Some(pid) = pid {
            gone(pid).await;
        }
    }
    let large = In::Start(Start {
        argv: vec![vec![b'x'; 2 << 20].into()],
        ..Start::default()
    });
    let (pid, status) = status_of(&world, vec![large]).await;
    assert_eq!((pid, status.code()), (None, Code::OutOfRange), "{status}");
}

#[tokio::test]
async fn concurrent_commands_are_limited_and_slots_are_reused() {
    let world = World::with_agent().await;
    let target = world.target();
    let mut all = Vec::new();
    let refused = loop {
        match session::start(&target, Exec::new(["sleep", "600"])).await {
            Ok(running) => all.push(running),
            Err(error) => break error,
        }
        assert!(all.len() < 1000);
    };
    assert_eq!(all.len(), 128);
    assert!(
        refused.to_string().contains("128 concurrent commands"),
        "{refused}"
    );
    let pids: Vec<u32> = all.iter().map(|running| running.pid).collect();
    drop(all);
    for pid in pids {
        gone(pid).await;
    }
    let again = async {
        while session::start(&target, Exec::new(["true"])).await.is_err() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG, again).await.expect("a free slot");
}

#[tokio::test]
async fn input_that_is_dropped_before_its_end_ends_the_command() {
    let world = World::with_agent().await;
    let exec = Exec {
        stdin: true,
        ..Exec::new(["sh", "-c", "echo up; cat; echo complete"])
    };
    let Running {
        input, mut output, ..
    } = session::start(&world.target(), exec).await.unwrap();
    assert_eq!(output.next().await.unwrap(), Event::Stdout("up\n".into()));
    input.send("part\n".into()).await.unwrap();
    assert_eq!(output.next().await.unwrap(), Event::Stdout("part\n".into()));
    drop(input);
    let ended = output.next().await.unwrap();
    assert_eq!(ended, Event::HungUp(session::HungUp::default()));
}

#[tokio::test]
async fn a_program_can_run_commands_through_the_library() {
    let world = World::with_agent().await;
    let exec = Exec {
        stdin: true,
        ..Exec::new(["sh", "-c", "cat; echo err >&2; kill -9 $$"])
    };
    let mut running = session::start(&world.target(), exec).await.unwrap();
    running.input.send("hello".into()).await.unwrap();
    running.input.end().await.unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = loop {
        match running.output.next().await.unwrap() {
            Event::Stdout(bytes) => out.extend(bytes),
            Event::Stderr(bytes) => err.extend(bytes),
            Event::StdinClosed => {}
            Event::Exited(exit) => break exit,
            Event::HungUp(hung_up) => panic!("unexpected: {hung_up:?}"),
        }
    };
    assert_eq!((&out[..], &err[..]), (&b"hello"[..], &b"err\n"[..]));
    assert_eq!((exit.how, exit.code()), (Ending::Signal(9), 137));

    let failed = session::start(&world.target(), Exec::new(["/no/such"])).await;
    let Err(ExecError::Failed { reason, what }) = failed else {
        panic!("{failed:?}");
    };
    assert_eq!(reason, session::Reason::NotFound);
    assert_eq!(what, "/no/such: not found");
}
