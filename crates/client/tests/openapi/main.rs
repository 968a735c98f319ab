//! The client against `docs/openapi.json`, the document that the broker generates from its handlers.
//!
//! Each call is made to a server that checks the request against the document, and answers with values
//! made from the schema of the response. A route without a call, a call without a route, and a type
//! that does not match its schema each fail a test. That the broker serves this document and keeps to
//! it is tested in the broker.

#![cfg(unix)]

mod calls;
mod server;

use std::collections::BTreeSet;

use hvsock_client::{Client, ClientError};
use hvsock_testkit::TempFolder;
use hvsock_testkit::openapi::{Document, Operation};
use serde_json::{Value, json};

use calls::{CALLS, Call, NO_CALLS};
use server::{Request, Response, Server};

const JSON: &str = "application/json";
/// The event stream: one JSON object per line.
const LINES: &str = "application/x-ndjson";

/// A method of the client, and its operation in the document.
struct Method<'a> {
    name: &'a str,
    operation: Operation<'a>,
    /// Whether it sends or receives a `.reg` file where its operation also has JSON.
    reg: bool,
    call: Call,
}

/// A body with its content type and schema.
#[derive(Clone, Copy)]
struct Body<'a> {
    content_type: &'a str,
    schema: &'a Value,
}

impl<'a> Method<'a> {
    fn all(document: &'a Document) -> Vec<Self> {
        let method = |(name, operation, call): &(&'a str, &'a str, Call)| {
            let (method, path) = operation.split_once(' ').unwrap();
            let reg = path.ends_with(" (reg)");
            let path = path.trim_end_matches(" (reg)");
            let operation = document.operations().find(|operation| {
                operation.path == path && operation.method.eq_ignore_ascii_case(method)
            });
            let operation = operation
                .unwrap_or_else(|| panic!("{name}: {method} {path} is not in the document"));
            Self {
                name,
                operation,
                reg,
                call: *call,
            }
        };
        CALLS.iter().map(method).collect()
    }

    /// The body that it sends.
    fn request(&self) -> Option<Body<'a>> {
        self.one(self.operation.request().collect())
    }

    /// The status and body that it expects.
    fn response(&self) -> (u16, Body<'a>) {
        let mut statuses = self.operation.statuses();
        let status = statuses.find(|status| (200..300).contains(status)).unwrap();
        let body = self.one(self.operation.response(status).collect());
        (status, body.unwrap())
    }

    fn one(&self, contents: Vec<(&'a str, &'a Value)>) -> Option<Body<'a>> {
        let several = contents.len() > 1;
        let mut fit = contents
            .into_iter()
            .filter(|(content_type, _)| !several || (*content_type == JSON) != self.reg);
        fit.next().map(|(content_type, schema)| Body {
            content_type,
            schema,
        })
    }

    /// Values for the call; null if it sends none.
    fn inputs(&self, document: &Document) -> Vec<Value> {
        self.request()
            .map_or_else(|| vec![Value::Null], |body| body.samples(document))
    }
}

impl Body<'_> {
    fn samples(&self, document: &Document) -> Vec<Value> {
        let mut samples = document.samples(self.schema);
        match self.content_type {
            LINES => {
                // The client does not return it: it opens the next stream. `hvsock`'s tests of upgrades do that.
                samples.retain(|event| event["event"] != "handed_over");
                vec![samples.into()]
            }
            _ => samples,
        }
    }

    fn bytes(&self, sample: &Value) -> Vec<u8> {
        let line = |value: &Value| format!("{value}\n");
        match (self.content_type, sample) {
            (LINES, Value::Array(events)) => events.iter().map(line).collect::<String>().into(),
            (JSON, sample) => sample.to_string().into(),
            (_, sample) => sample.as_str().unwrap().into(),
        }
    }

    fn response(&self, status: u16, sample: &Value) -> Response {
        Response {
            status,
            content_type: self.content_type.to_owned(),
            body: self.bytes(sample),
        }
    }
}

/// A server and its client.
struct World {
    server: Server,
    client: Client,
    _folder: TempFolder,
}

impl World {
    fn new() -> Self {
        let folder = TempFolder::new();
        let server = Server::new(folder.path());
        Self {
            client: Client::new(server.path()).unwrap(),
            server,
            _folder: folder,
        }
    }

    fn call(
        &self,
        method: &Method<'_>,
        input: &Value,
        response: Response,
    ) -> (Request, Result<Value, ClientError>) {
        let answer = |request| (response, request);
        self.server
            .serve(answer, || (method.call)(&self.client, input))
    }
}

fn document() -> Document {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
    Document::parse(&std::fs::read_to_string(path).unwrap())
}

/// The names of an object's properties, or of those in an array.
fn names(value: &Value) -> Vec<&str> {
    let objects = value
        .as_array()
        .map_or(std::slice::from_ref(value), Vec::as_slice);
    let members = objects.iter().filter_map(Value::as_object).flatten();
    members.map(|(name, _)| name.as_str()).collect()
}

/// Whether `value` has everything that `sample` has. Null is the same as absent.
fn contains(value: &Value, sample: &Value) -> bool {
    match (value, sample) {
        (_, Value::Null) => value.is_null(),
        (Value::Object(value), Value::Object(sample)) => sample
            .iter()
            .all(|(name, sample)| contains(value.get(name).unwrap_or(&Value::Null), sample)),
        (Value::Array(value), Value::Array(sample)) => {
            let mut pairs = value.iter().zip(sample);
            value.len() == sample.len() && pairs.all(|(value, sample)| contains(value, sample))
        }
        _ => value == sample,
    }
}

#[test]
fn each_operation_has_a_call_with_all_its_parameters_and_each_call_is_an_operation() {
    let document = document();
    let world = World::new();
    // What is in the document, and what the calls sent, as `GET /path` with a kind and a name.
    let mut documented = BTreeSet::new();
    for operation in document.operations() {
        let of = format!("{} {}", operation.method, operation.path);
        documented.insert((of.clone(), "operation", String::new()));
        for name in operation.query_names() {
            documented.insert((of.clone(), "query", name.to_owned()));
        }
        for (content_type, schema) in operation.request() {
            documented.insert((of.clone(), "content", content_type.to_owned()));
            for sample in document.samples(schema) {
                let names = names(&sample).into_iter();
                documented.extend(names.map(|name| (of.clone(), "body", name.to_owned())));
            }
        }
    }
    let mut sent = BTreeSet::new();
    for method in Method::all(&document) {
        let (status, body) = method.response();
        let sample = &body.samples(&document)[0];
        for input in method.inputs(&document) {
            let response = body.response(status, sample);
            let (request, result) = world.call(&method, &input, response);
            result.unwrap_or_else(|error| panic!("{}: {error}", method.name));
            let what = format!("{} {}", request.method, request.path);
            let operation = document.find(&request.method, &request.path);
            let operation = operation.unwrap_or_else(|| panic!("{what} is no operation"));
            let of = format!("{} {}", operation.method, operation.path);
            assert_eq!(
                of,
                format!("{} {}", method.operation.method, method.operation.path),
                "{}",
                method.name
            );
            operation.check_query(&request.query);
            sent.insert((of.clone(), "operation", String::new()));
            let query = request.query.iter();
            sent.extend(query.map(|(name, _)| (of.clone(), "query", name.clone())));
            let Some(body) = method.request() else {
                assert!(request.body.is_empty(), "{what} with a body");
                continue;
            };
            let content_type = request.content_type.unwrap_or_default();
            assert_eq!(content_type, body.content_type, "{what}");
            let value = match body.content_type {
                JSON => serde_json::from_slice(&request.body).unwrap(),
                _ => Value::from(str::from_utf8(&request.body).unwrap()),
            };
            let fits = document.validate(body.schema, &value);
            fits.unwrap_or_else(|error| panic!("{what}: {error}\n{value:#}"));
            sent.insert((of.clone(), "content", content_type));
            let names = names(&value).into_iter();
            sent.extend(names.map(|name| (of.clone(), "body", name.to_owned())));
        }
    }
    // Sent by a stream that goes on, and by no call.
    sent.insert(("get /v1/events".to_owned(), "query", "resume".to_owned()));
    let without: Vec<_> = documented.difference(&sent).collect();
    assert!(
        without.is_empty(),
        "no call of the client sends these: {without:#?}"
    );
}

#[test]
fn each_documented_response_is_returned_with_all_its_values() {
    let document = document();
    let world = World::new();
    for method in Method::all(&document) {
        let (status, body) = method.response();
        let input = &method.inputs(&document)[0];
        for sample in body.samples(&document) {
            let (_, result) = world.call(&method, input, body.response(status, &sample));
            let name = method.name;
            let value = result.unwrap_or_else(|error| panic!("{name}: {error}\n{sample:#}"));
            assert!(
                contains(&value, &sample),
                "{name}: {value:#}\nlacks some of {sample:#}"
            );
            let values = match (body.content_type, &value) {
                (LINES, Value::Array(events)) => events.as_slice(),
                _ => std::slice::from_ref(&value),
            };
            for value in values {
                let fits = document.validate(body.schema, value);
                fits.unwrap_or_else(|error| panic!("{name}: {error}\n{value:#}"));
            }
        }
    }
}

#[test]
fn each_documented_error_is_returned_with_its_status_and_message() {
    let document = document();
    let world = World::new();
    let mut errors = 0;
    for method in Method::all(&document) {
        let input = &method.inputs(&document)[0];
        for status in method.operation.statuses().filter(|status| *status >= 400) {
            let (content_type, schema) = method.operation.response(status).next().unwrap();
            let body = Body {
                content_type,
                schema,
            };
            let sample = json!({ "error": format!("error {status}") });
            document.validate(schema, &sample).unwrap();
            let (_, result) = world.call(&method, input, body.response(status, &sample));
            match result {
                Err(ClientError::Refused {
                    status: got,
                    message,
                    fix,
                }) => {
                    assert_eq!(fix, None);
                    assert_eq!((got, message), (status, format!("error {status}")));
                }
                other => panic!("{} {status}: {other:?}", method.name),
            }
            errors += 1;
        }
    }
    assert!(errors >= CALLS.len(), "{errors}");
}

#[test]
fn the_table_of_calls_has_every_method_of_the_client() {
    let source = include_str!("../../src/lib.rs");
    let client = source.split_once("impl Client {").unwrap().1;
    let client = client.split_once("\n}\n").unwrap().0;
    let methods = client
        .lines()
        .filter_map(|line| line.strip_prefix("    pub fn "));
    let methods: BTreeSet<_> = methods.filter_map(|line| line.split('(').next()).collect();
    let tested = CALLS.iter().map(|(name, ..)| *name);
    let tested: BTreeSet<_> = tested.chain(NO_CALLS.iter().copied()).collect();
    assert_eq!(methods, tested);
}
