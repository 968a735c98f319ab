//! Commands to a guest over a Unix socket: one line each way, an answer for each connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

/// The answer to a command: what was seen, or what failed.
pub type Answer = Result<String, String>;

/// The longest command in bytes.
const MAX_COMMAND: u64 = 64 << 10;

/// Sends a command to the guest at `path`.
pub fn send(path: &Path, command: &[&str]) -> Answer {
    let exchange = || {
        let mut stream = UnixStream::connect(path)?;
        writeln!(stream, "{}", command.join("\t"))?;
        stream.shutdown(Shutdown::Write)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        io::Result::Ok(text)
    };
    let text = exchange().map_err(|error| format!("{}: {error}", path.display()))?;
    match text.split_once(' ') {
        Some(("ok", rest)) => Ok(rest.to_owned()),
        Some(("error", rest)) => Err(rest.to_owned()),
        _ => Err("the guest has ended without an answer".to_owned()),
    }
}

/// Serves commands, each on a thread of its own, for ever.
pub fn serve(path: &Path, act: impl Fn(&[&str]) -> Answer + Sync) -> Answer {
    // Who waits for the file connects as soon as it is there.
    let unfinished = path.with_extension("new");
    let _ = std::fs::remove_file(&unfinished);
    let listener = UnixListener::bind(&unfinished).map_err(|error| error.to_string())?;
    std::fs::rename(&unfinished, path).map_err(|error| error.to_string())?;
    thread::scope(|scope| {
        loop {
            let (stream, _) = listener.accept().map_err(|error| error.to_string())?;
            let act = &act;
            scope.spawn(move || {
                let mut line = String::new();
                let read = BufReader::new((&stream).take(MAX_COMMAND)).read_line(&mut line);
                let words: Vec<&str> = line.trim_end_matches('\n').split('\t').collect();
                let answer = read
                    .map_err(|error| error.to_string())
                    .and_then(|_| act(&words));
                let text = match answer {
                    Ok(text) => format!("ok {text}"),
                    Err(text) => format!("error {text}"),
                };
                let _ = (&stream).write_all(text.as_bytes());
            });
        }
    })
}

/// A number of a command.
pub fn number<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse()
        .map_err(|_| format!("{word:?} is not a number"))
}
