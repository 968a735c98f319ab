//! Lines of the text protocol.

use hvsock::{ServiceId, VmId};
use hvsock_endpoint::{
    IdOrName, InvalidTextReply, InvalidTextRequest, TextConnect, TextListen, TextPartition,
    TextReply, TextRequest,
};
use serde_json::Value;

use crate::json::{guid, number, rows, sections, text};

const FILE: &str = include_str!("../../../../docs/vectors/text.json");

fn partition(row: &Value) -> TextPartition {
    let value = &row["partition"];
    match value["cid"].is_null() {
        false => TextPartition::Cid(number(value, "cid")),
        true => TextPartition::Named(id_or_name::<VmId>(value)),
    }
}

fn service(row: &Value) -> IdOrName<ServiceId> {
    id_or_name(&row["service"])
}

fn id_or_name<T: std::str::FromStr>(value: &Value) -> IdOrName<T> {
    match value["name"].as_str() {
        Some(name) => IdOrName::Name(name.to_owned()),
        None => IdOrName::Id(guid(value, "guid")),
    }
}

/// The request that a row describes.
fn request(row: &Value) -> TextRequest {
    match text(row, "request") {
        "connect" => TextRequest::Connect(TextConnect {
            timeout_ms: number(row, "timeout"),
            partition: partition(row),
            service: service(row),
        }),
        "connect_port" => TextRequest::ConnectPort(number(row, "port")),
        "listen" => TextRequest::Listen(TextListen {
            backlog: number(row, "backlog"),
            callback: row["at"].as_str().map(Into::into),
            from: partition(row),
            service: service(row),
        }),
        "accept" => TextRequest::Accept(guid::<VmId>(row, "token").to_guid_bytes()),
        "why" => TextRequest::Why {
            partition: partition(row),
            service: service(row),
        },
        "lookup_partition" => TextRequest::LookupPartition(partition(row)),
        "lookup_service" => TextRequest::LookupService(service(row)),
        "cid" => TextRequest::Cid(partition(row)),
        other => panic!("no request is named {other}"),
    }
}

#[test]
fn requests_of_the_text_protocol_are_read_as_in_the_vectors() {
    let mut found = sections(FILE);
    found.sort_unstable();
    let known = ["answers", "invalid_answers", "invalid_requests", "requests"];
    assert_eq!(found, known);
    for row in rows(FILE, "requests") {
        let parsed = TextRequest::parse(text(&row, "line").as_bytes());
        assert_eq!(parsed, Ok(request(&row)), "{row}");
    }
    for row in rows(FILE, "invalid_requests") {
        let error = TextRequest::parse(text(&row, "line").as_bytes());
        let label = match error.expect_err("no request") {
            InvalidTextRequest::UnknownWord => "unknown_word",
            InvalidTextRequest::Incomplete(_) => "incomplete",
            InvalidTextRequest::UnknownOption(_) => "unknown_option",
            InvalidTextRequest::OptionValue(_) => "option_value",
            InvalidTextRequest::NotCid => "cid",
            InvalidTextRequest::NotToken => "token",
            InvalidTextRequest::NotAddress(_) => "address",
            InvalidTextRequest::TooLong => "too_long",
            InvalidTextRequest::NoNewline => "no_newline",
            InvalidTextRequest::NotUtf8 => "not_utf8",
        };
        assert_eq!(label, text(&row, "error"), "{row}");
    }
}

#[test]
fn answers_of_the_text_protocol_are_written_and_read_as_in_the_vectors() {
    for row in rows(FILE, "answers") {
        let answer = match row["ok"].as_str() {
            Some(words) => TextReply::Ok(words.to_owned()),
            None => TextReply::Refused {
                label: text(&row, "label").to_owned(),
                reason: text(&row, "reason").to_owned(),
            },
        };
        assert_eq!(answer.to_line(), text(&row, "line"));
        for (key, value) in row["values"].as_object().into_iter().flatten() {
            assert_eq!(answer.value(key), value.as_str(), "{row}");
        }
        let parsed = TextReply::parse(text(&row, "line").as_bytes());
        assert_eq!(parsed, Ok(answer), "{row}");
    }
    for row in rows(FILE, "invalid_answers") {
        let error = TextReply::parse(text(&row, "line").as_bytes());
        let label = match error.expect_err("no answer") {
            InvalidTextReply::Unknown => "unknown",
            InvalidTextReply::NotALine => "not_a_line",
            InvalidTextReply::NotUtf8 => "not_utf8",
        };
        assert_eq!(label, text(&row, "error"), "{row}");
    }
}
