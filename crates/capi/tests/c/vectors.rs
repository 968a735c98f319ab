//! The test vectors of `docs/vectors`, by a program in C.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::build::{GCC, LIBRARY, sources};

pub fn file(name: &str) -> Value {
    let path = crate::build::root().join("../../docs/vectors").join(name);
    let text = std::fs::read_to_string(path).expect("the file");
    serde_json::from_str(&text).expect("JSON")
}

pub fn rows<'a>(file: &'a Value, section: &str) -> &'a [Value] {
    let rows = file[section].as_array().expect("a section");
    assert!(!rows.is_empty(), "{section}");
    rows
}

pub fn text<'a>(row: &'a Value, field: &str) -> &'a str {
    row[field]
        .as_str()
        .unwrap_or_else(|| panic!("{field} of {row}"))
}

#[test]
fn addresses_are_those_of_the_test_vectors() {
    let file = file("addresses.json");
    let mut asked = Vec::new();
    for row in rows(&file, "guids") {
        // White space around a GUID is ignored, and one row is one line.
        let spaced = text(row, "text").replace('\n', " ");
        asked.push((format!("guid {spaced}"), text(row, "bytes").to_owned()));
        asked.push((
            format!("format {}", text(row, "bytes")),
            text(row, "guid").to_owned(),
        ));
    }
    for row in rows(&file, "invalid_guids") {
        let invalid = text(row, "text");
        // A line of text, and an argument of C.
        if !invalid.contains(['\n', '\0']) {
            asked.push((format!("guid {invalid}"), "invalid".to_owned()));
        }
    }
    for row in rows(&file, "vsock_ports") {
        let hex = |guid: &str| {
            let id: hvsock::ServiceId = guid.parse().expect("a GUID");
            let bytes = id.to_guid_bytes();
            bytes.map(|byte| format!("{byte:02x}")).concat()
        };
        asked.push((format!("port {}", row["port"]), hex(text(row, "service"))));
    }
    let program = LIBRARY.program(&GCC, &sources().join("vectors.c"), &[]);
    let mut child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a program");
    let mut input = child.stdin.take().expect("its input");
    for (line, _) in &asked {
        writeln!(input, "{line}").expect("written");
    }
    drop(input);
    let output = child.wait_with_output().expect("its end");
    assert!(output.status.success());
    let output = String::from_utf8(output.stdout).expect("text");
    let mut lines = output.lines();
    for (line, expected) in &asked {
        assert_eq!(lines.next(), Some(expected.as_str()), "{line}");
    }
    let constants: Vec<_> = lines.collect();
    assert_eq!(constants.len(), 7);
    for row in rows(&file, "well_known") {
        let id: hvsock::VmId = text(row, "guid").parse().expect("a GUID");
        let hex = id
            .to_guid_bytes()
            .map(|byte| format!("{byte:02x}"))
            .concat();
        let expected = format!("{} {hex}", text(row, "constant"));
        assert!(constants.contains(&expected.as_str()), "{expected}");
    }
}

#[test]
fn every_winsock_number_of_a_refusal_is_in_the_header() {
    let header = std::fs::read_to_string(crate::build::root().join("include/winsock2.h"));
    let header = header.expect("a header");
    for row in rows(&file("refusals.json"), "refusals") {
        assert!(header.contains(&format!(" {}\n", row["wsa"])), "{row}");
    }
}
