//! The test's end of the program in a partition.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use hvsock_sys::sync::lock;
use serde_json::{Value, json};

/// The bound on a request that names none.
const LIMIT: Duration = Duration::from_secs(60);

/// The program in one partition. Dropping it ends the program.
pub struct Probe {
    partition: String,
    /// The command `hvsock` there, with the options that lead to the partition's broker.
    hvsock: Vec<String>,
    requests: Mutex<Requests>,
    /// Keeps what the program runs in.
    _keeps: Option<Box<dyn Send + Sync>>,
}

struct Requests {
    input: Box<dyn Write + Send>,
    next: u64,
    waiting: Waiting,
}

type Waiting = Arc<Mutex<HashMap<u64, Sender<Value>>>>;

/// A command's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// The exit status; 128 plus the signal's number if a signal ended it.
    pub status: i64,
    /// Its standard output, as text.
    pub stdout: String,
    /// Its standard error, as text.
    pub stderr: String,
}

impl Ran {
    /// Whether the exit status is 0.
    pub fn success(&self) -> bool {
        self.status == 0
    }

    /// The standard output of a command that succeeded.
    ///
    /// # Panics
    /// If it failed, with its output.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.success(), "{self}");
        self.stdout
    }

    /// The standard error of a command that exited with status 1.
    ///
    /// # Panics
    /// If it ended otherwise, with its output.
    #[track_caller]
    pub fn refused(self) -> String {
        assert_eq!(self.status, 1, "{self}");
        self.stderr
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            status,
            stdout,
            stderr,
        } = self;
        write!(f, "status {status}\n{stdout}{stderr}")
    }
}

/// Why a connect or listen failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The refusal's label, as in metrics; empty for another error.
    pub reason: String,
    /// The text of the error.
    pub text: String,
}

/// A connection that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    /// What the listener said of itself.
    pub listener: String,
    /// Whom the listener saw.
    pub seen_as: String,
    /// Whom the connecting process saw.
    pub peer: String,
}

/// What a listener does with each connection.
#[derive(Clone, Copy, Debug)]
pub enum Listens<'a> {
    /// It says this name and whom it sees.
    As(&'a str),
    /// It receives what [`Probe::send`] sends.
    Sink,
    /// It sends what [`Probe::receive`] asks for.
    Source,
}

/// A long transfer, of which every byte was compared and both ends have the same sum.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// The bytes that were sent and received.
    pub bytes: u64,
    /// The time from the connection to the end of the data.
    pub time: Duration,
}

impl Moved {
    /// Bytes per second.
    pub fn rate(&self) -> f64 {
        self.bytes as f64 / self.time.as_secs_f64()
    }
}

impl Probe {
    /// Takes over a program that has been started in `partition`, and waits until it is ready.
    ///
    /// # Errors
    /// If it ends before, or `TimedOut`.
    pub fn new(
        partition: &str,
        input: impl Write + Send + 'static,
        output: impl Read + Send + 'static,
        limit: Duration,
    ) -> io::Result<Self> {
        let waiting = Waiting::default();
        let (ready, is_ready) = mpsc::channel();
        let replies = Arc::clone(&waiting);
        thread::spawn(move || read_replies(output, &ready, &replies));
        is_ready
            .recv_timeout(limit)
            .map_err(|error| io::Error::other(format!("the probe in {partition}: {error}")))?;
        Ok(Self {
            partition: partition.to_owned(),
            hvsock: vec!["hvsock".to_owned()],
            requests: Mutex::new(Requests {
                input: Box::new(input),
                next: 0,
                waiting,
            }),
            _keeps: None,
        })
    }

    /// Uses this command line instead of `hvsock`.
    #[must_use]
    pub fn with_hvsock(mut self, words: &[&str]) -> Self {
        self.hvsock = words.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Keeps this as long as the probe.
    #[must_use]
    pub fn keeping(mut self, what: impl Send + Sync + 'static) -> Self {
        self._keeps = Some(Box::new(what));
        self
    }

    /// The partition that it was started in.
    pub fn partition(&self) -> &str {
        &self.partition
    }

    /// Runs `hvsock ARGUMENTS` to its end.
    ///
    /// # Panics
    /// If the program in the partition does not answer.
    #[track_caller]
    pub fn hvsock(&self, arguments: &[&str]) -> Ran {
        self.hvsock_with_input(arguments, "")
    }

    /// Runs `hvsock ARGUMENTS` with this standard input to its end.
    ///
    /// # Panics
    /// If the program in the partition does not answer.
    #[track_caller]
    pub fn hvsock_with_input(&self, arguments: &[&str], input: &str) -> Ran {
        let words: Vec<&str> = self.hvsock.iter().map(String::as_str).collect();
        self.run(&[&words, arguments].concat(), input)
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// If the program in the partition does not answer, or the command cannot be started.
    #[track_caller]
    pub fn run(&self, words: &[&str], input: &str) -> Ran {
        let reply = self.ask(json!({"do": "run", "args": words, "input": input}), LIMIT);
        let text = |name: &str| reply[name].as_str().unwrap_or_default().to_owned();
        let status = reply["status"].as_i64();
        Ran {
            status: status.unwrap_or_else(|| panic!("{}: {words:?}: {reply}", self.partition)),
            stdout: text("stdout"),
            stderr: text("stderr"),
        }
    }

    /// Starts a command that runs until [`end`](Self::end). Returns its process id there.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn start(&self, words: &[&str]) -> u64 {
        let reply = self.ask(json!({"do": "start", "args": words}), LIMIT);
        let number = reply["number"].as_u64();
        number.unwrap_or_else(|| panic!("{}: {words:?}: {reply}", self.partition))
    }

    /// Kills a started command by `SIGKILL`.
    ///
    /// # Panics
    /// If there is no such command.
    #[track_caller]
    pub fn end(&self, number: u64) {
        let reply = self.ask(json!({"do": "end", "number": number}), LIMIT);
        assert!(reply["failed"].is_null(), "{reply}");
    }

    /// Connects, and reads what the listener says.
    ///
    /// # Errors
    /// The refusal, or another error of the library.
    pub fn connect(&self, target: &str, service: &str) -> Result<Connected, Refused> {
        let request = json!({"do": "connect", "target": target, "service": service});
        let reply = done(self.ask(request, LIMIT))?;
        let banner = reply["banner"].as_str().unwrap_or_default();
        let (listener, seen_as) = banner.rsplit_once(' ').unwrap_or((banner, ""));
        Ok(Connected {
            listener: listener.to_owned(),
            seen_as: seen_as.to_owned(),
            peer: reply["peer"].as_str().unwrap_or_default().to_owned(),
        })
    }

    /// Listens until [`unlisten`](Self::unlisten).
    ///
    /// # Errors
    /// The refusal, or another error of the library.
    pub fn listen(&self, from: &str, service: &str, does: Listens<'_>) -> Result<(), Refused> {
        let serves = match does {
            Listens::As(name) => name,
            Listens::Sink => "sink",
            Listens::Source => "source",
        };
        let request = json!({"do": "listen", "from": from, "service": service, "serves": serves});
        done(self.ask(request, LIMIT)).map(drop)
    }

    /// Ends a listener.
    pub fn unlisten(&self, from: &str, service: &str) {
        let request = json!({"do": "unlisten", "from": from, "service": service});
        self.ask(request, LIMIT);
    }

    /// Sends this many bytes to a listener that [`Listens::Sink`]s them.
    ///
    /// # Errors
    /// The refusal, or that a byte was lost or changed.
    pub fn send(&self, target: &str, service: &str, bytes: u64) -> Result<Moved, Refused> {
        self.transfer("send", (target, service), bytes)
    }

    /// Receives this many bytes from a [`Listens::Source`].
    ///
    /// # Errors
    /// The refusal, or that a byte was lost or changed.
    pub fn receive(&self, target: &str, service: &str, bytes: u64) -> Result<Moved, Refused> {
        self.transfer("receive", (target, service), bytes)
    }

    fn transfer(
        &self,
        way: &str,
        (target, service): (&str, &str),
        bytes: u64,
    ) -> Result<Moved, Refused> {
        let request = json!({"do": way, "target": target, "service": service, "bytes": bytes});
        let reply = done(self.ask(request, Duration::from_secs(300)))?;
        let (own, other) = (&reply["own"], &reply["other"]);
        let moved = own["bytes"].as_u64().unwrap_or_default();
        if own != other || moved < bytes {
            return Err(Refused {
                reason: String::new(),
                text: format!("of {bytes} bytes, the ends have seen {own} and {other}"),
            });
        }
        Ok(Moved {
            bytes: moved,
            time: Duration::from_secs_f64(reply["seconds"].as_f64().unwrap_or_default()),
        })
    }

    /// Sends a request and waits for its reply.
    #[track_caller]
    fn ask(&self, mut request: Value, limit: Duration) -> Value {
        let (reply, replies) = mpsc::channel();
        let written = {
            let mut requests = lock(&self.requests);
            requests.next += 1;
            let id = requests.next;
            request["id"] = id.into();
            lock(&requests.waiting).insert(id, reply);
            let line = format!("{request}\n");
            requests.input.write_all(line.as_bytes())
        };
        let received = written.map_err(|error| error.to_string()).and_then(|()| {
            replies
                .recv_timeout(limit)
                .map_err(|error| error.to_string())
        });
        received
            .unwrap_or_else(|error| panic!("the probe in {}: {request}: {error}", self.partition))
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe")
            .field("partition", &self.partition)
            .finish_non_exhaustive()
    }
}

fn done(reply: Value) -> Result<Value, Refused> {
    match reply["failed"].as_str() {
        None => Ok(reply),
        Some(text) => Err(Refused {
            reason: reply["refusal"].as_str().unwrap_or_default().to_owned(),
            text: text.to_owned(),
        }),
    }
}

/// Passes each reply to the request that waits for it. Lines of other programs on the same terminal are
/// ignored.
fn read_replies(
    output: impl Read,
    ready: &Sender<()>,
    waiting: &Mutex<HashMap<u64, Sender<Value>>>,
) {
    for line in BufReader::new(output).lines() {
        let Ok(line) = line else { break };
        let Ok(reply) = serde_json::from_str::<Value>(&line) else {
            continue;
        };
        if reply.get("ready").is_some() {
            let _ = ready.send(());
        }
        let id = reply["id"].as_u64();
        let request = id.and_then(|id| lock(waiting).remove(&id));
        if let Some(request) = request {
            let _ = request.send(reply);
        }
    }
    // Whoever waits is told by the end of its channel.
    lock(waiting).clear();
}
