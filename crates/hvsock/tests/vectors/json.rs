//! Access to the fields of a vector. A field that is missing or of another type fails the test and is named.

use serde_json::Value;

/// The rows of a section of a file of vectors.
#[track_caller]
pub(crate) fn rows(file: &str, section: &str) -> Vec<Value> {
    let file: Value = serde_json::from_str(file).expect("JSON");
    let rows = file[section].as_array();
    let rows = rows.unwrap_or_else(|| panic!("no section `{section}`"));
    assert!(!rows.is_empty(), "the section `{section}` is empty");
    rows.clone()
}

/// The names of a file's sections.
pub(crate) fn sections(file: &str) -> Vec<String> {
    let file: Value = serde_json::from_str(file).expect("JSON");
    let sections = file.as_object().expect("an object");
    let names = sections.keys().filter(|name| *name != "about");
    names.cloned().collect()
}

#[track_caller]
pub(crate) fn text<'a>(row: &'a Value, field: &str) -> &'a str {
    let text = row[field].as_str();
    text.unwrap_or_else(|| panic!("no text `{field}` in {row}"))
}

/// A 32-bit number.
#[track_caller]
pub(crate) fn number(row: &Value, field: &str) -> u32 {
    let number = row[field].as_u64().and_then(|n| u32::try_from(n).ok());
    number.unwrap_or_else(|| panic!("no number `{field}` in {row}"))
}

/// A 64-bit number, which is text in JSON.
#[track_caller]
pub(crate) fn long(row: &Value, field: &str) -> u64 {
    let number = text(row, field).parse().ok();
    number.unwrap_or_else(|| panic!("no 64-bit number `{field}` in {row}"))
}

/// Bytes, which are hexadecimal text in JSON.
#[track_caller]
pub(crate) fn bytes(row: &Value, field: &str) -> Vec<u8> {
    let digits = text(row, field).as_bytes();
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).ok()?;
        (pair.len() == 2).then(|| u8::from_str_radix(pair, 16).ok())?
    };
    let bytes: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
    bytes.unwrap_or_else(|| panic!("`{field}` is not hexadecimal in {row}"))
}

/// A GUID in its text form.
#[track_caller]
pub(crate) fn guid<T: std::str::FromStr>(row: &Value, field: &str) -> T {
    let guid = text(row, field).parse().ok();
    guid.unwrap_or_else(|| panic!("`{field}` is no GUID in {row}"))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
