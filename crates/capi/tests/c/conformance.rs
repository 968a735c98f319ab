//! The conformance cases of `docs/vectors`, by a program in C over each of its interfaces.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use hvsock_testkit::peer::{ConformancePeer, checksum, pattern};
use hvsock_testkit::world::World;
use serde_json::Value;

use crate::build::{GCC, LIBRARY, sources};
use crate::vectors::{file, rows, text};

/// A run of the program with one interface.
struct Client<'a> {
    program: &'a Path,
    interface: &'a str,
    endpoint: PathBuf,
}

impl Client<'_> {
    fn run(&self, arguments: &[&str], data: &[u8]) -> Output {
        let mut child = Command::new(self.program)
            .arg(self.interface)
            .args(arguments)
            .env("HVSOCK_ENDPOINT", &self.endpoint)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a program");
        let mut input = child.stdin.take().expect("its input");
        input.write_all(data).expect("written");
        drop(input);
        let output = child.wait_with_output().expect("its end");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        output
    }

    /// What a request without data is answered.
    fn answer(&self, request: &str) -> Vec<u8> {
        self.run(&["exchange", request, "65536", "after_send", "1"], &[])
            .stdout
    }

    /// Runs one case.
    fn case(&self, case: &Value, token: &str) {
        let name = text(case, "name");
        let number = |field: &str| usize::try_from(case[field].as_u64().unwrap_or(0)).unwrap_or(0);
        let request = || text(case, "request").replace("{token}", token);
        match text(case, "do") {
            "exchange" => {
                let (write, connections) = (number("write"), number("connections"));
                let (write, connections) = (write.to_string(), connections.to_string());
                let half_close = text(case, "half_close");
                let data = pattern(number("send"));
                let request = request();
                let arguments = ["exchange", &request, &write, half_close, &connections];
                let output = self.run(&arguments, &data);
                let want = &case["receive"];
                let received = &output.stdout;
                let is_received = match (want["pattern"].as_u64(), want["prefix"].as_u64()) {
                    (Some(count), _) => *received == pattern(count as usize),
                    (_, Some(count)) => pattern(count as usize).starts_with(received),
                    _ => received == text(want, "text").as_bytes(),
                };
                assert!(is_received, "{name}: {} bytes", received.len());
                let end = String::from_utf8_lossy(&output.stderr);
                assert_eq!(end, text(case, "end"), "{name} by {}", self.interface);
            }
            kind @ ("close" | "close_unread") => {
                self.run(&[kind, &request()], &pattern(number("send")));
            }
            "refused" => {
                let output = self.run(
                    &["refused", text(case, "partition"), text(case, "service")],
                    &[],
                );
                assert_eq!(
                    String::from_utf8_lossy(&output.stderr),
                    text(case, "label"),
                    "{name}"
                );
            }
            "deadline" => {
                let milliseconds = number("milliseconds").to_string();
                for way in WAYS {
                    self.run(&["deadline", &request(), &milliseconds, way], &[]);
                }
            }
            "backpressure" => {
                for way in WAYS {
                    let line =
                        |field| text(case, field).replace("{token}", &format!("{token}-{way}"));
                    let (request, release) = (line("request"), line("release"));
                    let limit = number("limit").to_string();
                    let arguments = ["backpressure", &request, &release, &limit, way];
                    let output = self.run(&arguments, &[]);
                    let sent = String::from_utf8_lossy(&output.stderr).parse();
                    let sent: usize = sent.unwrap_or_else(|_| panic!("{name}: {output:?}"));
                    assert!(sent > 0, "{name}");
                    let want = format!("{sent} {}\n", checksum(&pattern(sent)));
                    assert_eq!(String::from_utf8_lossy(&output.stdout), want, "{name}");
                }
            }
            "accept" => {
                let connections = number("connections").to_string();
                for way in WAYS {
                    let output = self.run(&["accept", &request(), &connections, way], &[]);
                    let answer = String::from_utf8_lossy(&output.stdout);
                    assert_eq!(answer, text(&case["receive"], "text"), "{name}");
                }
            }
            kind => panic!("nobody knows how to do {kind}"),
        }
        if let Some(want) = case["outcome"].as_str() {
            let answer = self.answer(&format!("outcome {token}"));
            let answer = String::from_utf8_lossy(&answer);
            assert_eq!(answer, want, "{name} by {}", self.interface);
        }
    }
}

/// How a program bounds its calls.
const WAYS: [&str; 3] = ["timeout", "poll", "nonblocking"];

/// Runs all cases over one interface of the library.
fn passes(interface: &str) {
    let world = World::new();
    let endpoint = world.host().endpoint();
    let _peer = ConformancePeer::start(&endpoint).expect("a peer");
    let program = LIBRARY.program(&GCC, &sources().join("conformance.c"), &["-D_GNU_SOURCE"]);
    let client = Client {
        program: &program,
        interface,
        endpoint: endpoint.paths()[0].clone(),
    };
    for (at, case) in rows(&file("conformance.json"), "cases").iter().enumerate() {
        client.case(case, &format!("{interface}-{at}"));
    }
}

#[test]
fn every_conformance_case_passes_over_the_calls_of_windows() {
    passes("winsock");
}

#[test]
fn every_conformance_case_passes_over_the_library() {
    passes("native");
}

#[test]
fn every_conformance_case_passes_over_the_library_without_shared_memory() {
    passes("descriptor");
}

#[test]
fn every_conformance_case_passes_over_the_library_in_place() {
    passes("in_place");
}
