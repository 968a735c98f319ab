//! The program in a partition: it does what the lines of its standard input ask for.
//!
//! A request and its reply are one line of JSON each, with the same `id`. Requests are answered
//! concurrently. The program ends with its input.

use std::collections::HashMap;
use std::io::{self, BufRead, Read, Write};
use std::net::Shutdown;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hvsock::{HvListener, HvStream};
use hvsock_sys::sync::lock;
use serde_json::{Value, json};

use super::pattern::{self, Passed};
use crate::process;

/// The bound on a step of a connection. A request has a bound of its own.
const STEP: Duration = Duration::from_secs(120);

/// How often a listener looks whether it has to end.
const LOOK: Duration = Duration::from_millis(100);

/// The thread of a listener, and what ends it.
type Accepting = (Arc<AtomicBool>, JoinHandle<()>);

/// What continues between requests.
#[derive(Default)]
struct State {
    /// The listeners, by address.
    listeners: Mutex<HashMap<String, Accepting>>,
    started: Mutex<HashMap<u64, Child>>,
}

/// Body of the program.
pub fn serve() -> ExitCode {
    let state = Arc::new(State::default());
    say(&json!({"ready": std::process::id()}));
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let Ok(request) = serde_json::from_str::<Value>(&line) else {
            continue;
        };
        let state = Arc::clone(&state);
        thread::spawn(move || {
            let mut reply = answer(&state, &request).unwrap_or_else(|error| failure(&error));
            reply["id"] = request["id"].clone();
            say(&reply);
        });
    }
    for child in lock(&state.started).values_mut() {
        let _ = child.kill();
    }
    ExitCode::SUCCESS
}

/// Writes a line in one piece.
fn say(reply: &Value) {
    let mut output = io::stdout().lock();
    let _ = output.write_all(format!("{reply}\n").as_bytes());
    let _ = output.flush();
}

/// The reply to a request that failed: the refusal's label, if it is one, and the text of the error.
fn failure(error: &io::Error) -> Value {
    let refusal = hvsock::refusal_of(error).map(hvsock::Refusal::label);
    let kind = error.kind().to_string();
    json!({"failed": error.to_string(), "refusal": refusal, "kind": kind})
}

fn answer(state: &Arc<State>, request: &Value) -> io::Result<Value> {
    let text = |name: &str| request[name].as_str().unwrap_or_default();
    let number = |name: &str| request[name].as_u64().unwrap_or_default();
    match text("do") {
        "run" => run(request),
        "start" => start(state, request),
        "end" => end(state, number("number")),
        "listen" => listen(state, (text("from"), text("service")), request),
        "unlisten" => {
            let key = key(text("from"), text("service"));
            let removed = lock(&state.listeners).remove(&key);
            if let Some((ends, accepting)) = removed {
                ends.store(true, Ordering::Relaxed);
                let _ = accepting.join();
            }
            Ok(json!({}))
        }
        "connect" => {
            let mut stream = connect(request)?;
            let mut banner = String::new();
            stream.shutdown(Shutdown::Write)?;
            stream.read_to_string(&mut banner)?;
            let peer = stream.peer().map(|peer| peer.partition().to_owned());
            Ok(json!({"banner": banner, "peer": peer}))
        }
        "send" => {
            let (mut stream, began) = (connect(request)?, Instant::now());
            let sent = pattern::send(&mut stream, number("bytes"))?;
            stream.shutdown(Shutdown::Write)?;
            let mut seen = String::new();
            stream.read_to_string(&mut seen)?;
            let received = serde_json::from_str(&seen).map_err(io::Error::other)?;
            Ok(moved(sent, &received, began))
        }
        "receive" => {
            let mut stream = connect(request)?;
            let began = Instant::now();
            stream.write_all(&number("bytes").to_le_bytes())?;
            let received = pattern::receive(&mut stream)?;
            Ok(moved(received, &passed(received), began))
        }
        other => Err(io::Error::other(format!("unknown request {other:?}"))),
    }
}

fn passed(passed: Passed) -> Value {
    json!({"bytes": passed.bytes, "sum": passed.sum})
}

fn moved(own: Passed, other: &Value, began: Instant) -> Value {
    json!({"own": passed(own), "other": other, "seconds": began.elapsed().as_secs_f64()})
}

fn connect(request: &Value) -> io::Result<HvStream> {
    let text = |name: &str| request[name].as_str().unwrap_or_default();
    let options = HvStream::options().timeout(Duration::from_secs(10));
    let stream = options.connect((text("target"), text("service")))?;
    stream.set_read_timeout(Some(STEP))?;
    stream.set_write_timeout(Some(STEP))?;
    Ok(stream)
}

fn key(from: &str, service: &str) -> String {
    format!("{from}\n{service}")
}

/// Listens until [`unlisten`](answer). What each connection gets is the request's `serves`.
fn listen(state: &State, (from, service): (&str, &str), request: &Value) -> io::Result<Value> {
    let listener = HvListener::bind((from, service))?;
    let ends = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&ends);
    let serves = request["serves"].as_str().unwrap_or_default().to_owned();
    let accepting = thread::spawn(move || {
        while !ended.load(Ordering::Relaxed) {
            let stream = match listener.accept_timeout(LOOK) {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => continue,
                Err(_) => break,
            };
            let serves = serves.clone();
            thread::spawn(move || serve_one(stream, &serves));
        }
    });
    lock(&state.listeners).insert(key(from, service), (ends, accepting));
    Ok(json!({}))
}

/// `sink` receives the pattern and reports it, `source` sends as much of it as it is asked for; anything else
/// is sent, with the peer's name.
fn serve_one(mut stream: HvStream, serves: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(STEP))?;
    stream.set_write_timeout(Some(STEP))?;
    match serves {
        "sink" => {
            let received = pattern::receive(&mut stream)?;
            stream.write_all(passed(received).to_string().as_bytes())?;
        }
        "source" => {
            let mut bytes = [0; 8];
            stream.read_exact(&mut bytes)?;
            pattern::send(&mut stream, u64::from_le_bytes(bytes))?;
        }
        banner => {
            let peer = stream.peer().map_or("?", |peer| peer.partition());
            let line = format!("{banner} {peer}");
            stream.write_all(line.as_bytes())?;
        }
    }
    stream.shutdown(Shutdown::Write)?;
    // A close with unread data would be a reset.
    io::copy(&mut stream, &mut io::sink()).map(drop)
}

fn command(request: &Value) -> Command {
    let words = request["args"].as_array().into_iter().flatten();
    let mut words = words.filter_map(Value::as_str);
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

/// Runs a command to its end.
fn run(request: &Value) -> io::Result<Value> {
    use std::os::unix::process::ExitStatusExt;

    let limit = Duration::from_secs(request["seconds"].as_u64().unwrap_or(30));
    let input = request["input"].as_str().unwrap_or_default().as_bytes();
    let output = process::output(&mut command(request), input, limit)?;
    let status = output.status;
    let status = status.code().or(status.signal().map(|signal| 128 + signal));
    Ok(json!({
        "status": status,
        "stdout": String::from_utf8_lossy(&output.stdout),
        "stderr": String::from_utf8_lossy(&output.stderr),
    }))
}

/// Starts a command that runs until [`end`] or the end of this program.
fn start(state: &State, request: &Value) -> io::Result<Value> {
    let mut command = command(request);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let child = command.spawn()?;
    let number = u64::from(child.id());
    lock(&state.started).insert(number, child);
    Ok(json!({"number": number}))
}

/// Kills a started command by `SIGKILL`.
fn end(state: &State, number: u64) -> io::Result<Value> {
    let child = lock(&state.started).remove(&number);
    let mut child = child.ok_or_else(|| io::Error::other("no such command"))?;
    child.kill()?;
    child.wait()?;
    Ok(json!({}))
}
