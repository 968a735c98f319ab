//! A server for one request, which it records.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// The longest wait for a request.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A request as it arrived.
#[derive(Debug)]
pub struct Request {
    pub method: String,
    /// The path, still escaped.
    pub path: String,
    /// The parameters of the query, unescaped.
    pub query: Vec<(String, String)>,
    pub content_type: Option<String>,
    pub body: Vec<u8>,
}

/// A response with its status, content type and body.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub content_type: String,
    pub body: Vec<u8>,
}

/// A listening socket.
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    pub fn new(folder: &Path) -> Self {
        let path = folder.join("control");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self { listener, path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes `call`, whose request gets the response that `answer` chooses. Returns the results of
    /// both.
    pub fn serve<T: Send, R>(
        &self,
        answer: impl FnOnce(Request) -> (Response, T) + Send,
        call: impl FnOnce() -> R,
    ) -> (T, R) {
        thread::scope(|scope| {
            let server = scope.spawn(|| self.serve_one(answer));
            let result = call();
            let answered = server.join();
            let answered = answered.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (answered, result)
        })
    }

    fn serve_one<T>(&self, answer: impl FnOnce(Request) -> (Response, T)) -> T {
        let end = Instant::now() + TIMEOUT;
        let mut stream = loop {
            match self.listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) => assert!(Instant::now() < end, "no request: {error}"),
            }
            thread::sleep(Duration::from_millis(1));
        };
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let (response, result) = answer(read(&mut BufReader::new(&stream)));
        let Response {
            status,
            content_type,
            body,
        } = response;
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&body).unwrap();
        result
    }
}

fn read(stream: &mut impl BufRead) -> Request {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let header = |name: &str| {
        let headers = lines
            .iter()
            .skip(1)
            .filter_map(|line| line.split_once(": "));
        let mut found = headers.filter(|(one, _)| one.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.to_owned())
    };
    let mut words = lines[0].split(' ');
    let method = words.next().unwrap().to_owned();
    let uri = words.next().unwrap();
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let length = header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    Request {
        method,
        path: path.to_owned(),
        query: pairs
            .map(|(name, value)| (name.to_owned(), unescaped(value)))
            .collect(),
        content_type: header("content-type"),
        body,
    }
}

fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next().unwrap(), rest.next().unwrap()];
            let digits = str::from_utf8(&digits).unwrap();
            bytes.push(u8::from_str_radix(digits, 16).unwrap());
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).unwrap()
}
