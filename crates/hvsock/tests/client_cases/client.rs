//! A client of the conformance peer.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use hvsock::{Endpoint, HvListener, HvStream, Interest, refusal_of};
use hvsock_testkit::peer::{CLIENT_SERVICE, SERVICE, checksum, pattern};
use hvsock_testkit::wait::TIMEOUT;
use hvsock_testkit::world::limited;
use serde_json::Value;

pub(crate) struct Client {
    pub(crate) endpoint: Endpoint,
    pub(crate) shared_memory: bool,
}

type CaseResult = Result<(), String>;

fn check(holds: bool, error: impl FnOnce() -> String) -> CaseResult {
    if holds { Ok(()) } else { Err(error()) }
}

fn number(case: &Value, field: &str) -> usize {
    let number = case[field].as_u64();
    number.unwrap_or_else(|| panic!("no number `{field}`")) as usize
}

fn text<'a>(case: &'a Value, field: &str) -> &'a str {
    let text = case[field].as_str();
    text.unwrap_or_else(|| panic!("no text `{field}`"))
}

impl Client {
    /// Runs one case. Its `{token}` is `token`.
    pub(crate) fn run(&self, case: &Value, token: &str) -> CaseResult {
        let line = |field| text(case, field).replace("{token}", token);
        match text(case, "do") {
            "exchange" => self.exchanges(case, &line("request"))?,
            "close" => {
                let mut stream = self.request(&line("request"))?;
                stream
                    .write_all(&pattern(number(case, "send")))
                    .map_err(text_of)?;
            }
            "close_unread" => {
                let stream = self.request(&line("request"))?;
                let ready = stream.poll(Interest::READABLE, Some(TIMEOUT));
                check(ready.is_ok_and(|ready| !ready.is_empty()), || {
                    "no data".into()
                })?;
            }
            "backpressure" => {
                let stream = self.request(&line("request"))?;
                let data = pattern(number(case, "limit"));
                stream.set_nonblocking(true).map_err(text_of)?;
                let mut sent = 0;
                loop {
                    let Some(rest) = data.get(sent..).filter(|rest| !rest.is_empty()) else {
                        return Err("no write would block".into());
                    };
                    match (&stream).write(rest) {
                        Ok(count) => sent += count,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error.to_string()),
                    }
                }
                stream.set_nonblocking(false).map_err(text_of)?;
                self.answer(&line("release"), "ok\n")?;
                stream.shutdown(Shutdown::Write).map_err(text_of)?;
                let (data, end) = read(&stream);
                end.map_err(text_of)?;
                let want = format!("{sent} {}\n", checksum(&pattern(sent)));
                check(data == want.as_bytes(), || {
                    format!("{data:?}, not {want:?}")
                })?;
            }
            "accept" => self.accept(case, &line("request"))?,
            "refused" => {
                let address = (text(case, "partition"), text(case, "service"));
                let options = HvStream::options().endpoint(self.endpoint.clone());
                let error = options.connect(address).err().ok_or("it connects")?;
                let label = refusal_of(&error).map(hvsock::Refusal::label);
                check(label == Some(text(case, "label")), || format!("{error}"))?;
            }
            "deadline" => {
                let mut stream = self.request(&line("request"))?;
                let limit = Duration::from_millis(number(case, "milliseconds") as u64);
                stream.set_read_timeout(Some(limit)).map_err(text_of)?;
                let error = stream.read(&mut [0]).err().ok_or("a byte")?;
                let expired = [ErrorKind::TimedOut, ErrorKind::WouldBlock].contains(&error.kind());
                check(expired, || format!("{error}"))?;
                stream.set_read_timeout(Some(TIMEOUT)).map_err(text_of)?;
                stream.write_all(b"x").map_err(text_of)?;
                let mut byte = [0];
                stream.read_exact(&mut byte).map_err(text_of)?;
                check(&byte == b"x", || format!("{byte:?}"))?;
            }
            other => panic!("nobody knows how to do {other}"),
        }
        match case["outcome"].as_str() {
            Some(want) => self.answer(&format!("outcome {token}"), want),
            None => Ok(()),
        }
    }

    /// Connects to the peer and sends the line of a request.
    fn request(&self, line: &str) -> Result<HvStream, String> {
        let options = HvStream::options().endpoint(self.endpoint.clone());
        let options = options.timeout(TIMEOUT).shared_memory(self.shared_memory);
        let stream = options.connect(("loopback", SERVICE)).map_err(text_of)?;
        let mut stream = limited(stream);
        stream
            .write_all(format!("{line}\n").as_bytes())
            .map_err(text_of)?;
        Ok(stream)
    }

    fn answer(&self, line: &str, want: &str) -> CaseResult {
        let (data, end) = read(&self.request(line)?);
        end.map_err(text_of)?;
        let data = String::from_utf8_lossy(&data).into_owned();
        check(data == want, || {
            format!("the answer is {data:?}, not {want:?}")
        })
    }

    fn exchanges(&self, case: &Value, line: &str) -> CaseResult {
        thread::scope(|scope| {
            let connections = 0..number(case, "connections");
            let all: Vec<_> = connections
                .map(|_| scope.spawn(|| self.exchange(case, line)))
                .collect();
            let mut ended = all.into_iter().map(thread::ScopedJoinHandle::join);
            ended.try_for_each(|end| end.unwrap_or_else(|_| Err("a panic".into())))
        })
    }

    fn exchange(&self, case: &Value, line: &str) -> CaseResult {
        let stream = self.request(line)?;
        let data = pattern(number(case, "send"));
        let (write, half_close) = (number(case, "write"), text(case, "half_close"));
        let send = || -> io::Result<()> {
            for chunk in data.chunks(write) {
                (&stream).write_all(chunk)?;
            }
            match half_close {
                "never" => Ok(()),
                _ => stream.shutdown(Shutdown::Write),
            }
        };
        let (received, end, sent) = if half_close == "after_end" {
            let (received, end) = read(&stream);
            (received, end, send())
        } else {
            thread::scope(|scope| {
                let sender = scope.spawn(send);
                let (received, end) = read(&stream);
                let sent = sender.join();
                (
                    received,
                    end,
                    sent.unwrap_or_else(|_| Err(ErrorKind::Other.into())),
                )
            })
        };
        let want = &case["receive"];
        let is_received = if let Some(count) = want["pattern"].as_u64() {
            received == pattern(count as usize)
        } else if let Some(count) = want["prefix"].as_u64() {
            pattern(count as usize).starts_with(&received)
        } else {
            received == text(want, "text").as_bytes()
        };
        check(is_received, || {
            format!("{} bytes, not {want}", received.len())
        })?;
        let failed = end.err().or(sent.err());
        match (text(case, "end"), failed) {
            ("clean", None) => Ok(()),
            ("reset", Some(error)) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
            (end, failed) => Err(format!("the end is {failed:?}, not {end}")),
        }
    }

    fn accept(&self, case: &Value, line: &str) -> CaseResult {
        let options = HvListener::options().endpoint(self.endpoint.clone());
        let options = options.shared_memory(self.shared_memory);
        let listener = options.listen(("any", CLIENT_SERVICE)).map_err(text_of)?;
        thread::scope(|scope| {
            let answer = scope.spawn(|| self.answer(line, text(&case["receive"], "text")));
            for _ in 0..number(case, "connections") {
                let (stream, _) = listener.accept_timeout(TIMEOUT).map_err(text_of)?;
                let stream = limited(stream);
                scope.spawn(move || {
                    let (mut reader, mut writer) = (&stream, &stream);
                    // The peer reports what fails.
                    let _ = io::copy(&mut reader, &mut writer);
                });
            }
            answer.join().unwrap_or_else(|_| Err("a panic".into()))
        })
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the argument of map_err")]
fn text_of(error: io::Error) -> String {
    error.to_string()
}

/// Reads to the end.
fn read(mut stream: &HvStream) -> (Vec<u8>, io::Result<()>) {
    let mut data = Vec::new();
    let end = stream.read_to_end(&mut data);
    (data, end.map(drop))
}
