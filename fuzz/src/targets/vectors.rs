//! The committed test vectors, as seeds.

use serde_json::Value;

use crate::target::Seed;

/// The text of each vector's document.
pub(crate) const ADDRESSES: &str = include_str!("../../../docs/vectors/addresses.json");
/// As [`ADDRESSES`].
pub(crate) const EXPLANATIONS: &str = include_str!("../../../docs/vectors/explanations.json");
/// As [`ADDRESSES`].
pub(crate) const MESSAGES: &str = include_str!("../../../docs/vectors/messages.json");
/// As [`ADDRESSES`].
pub(crate) const TEXT: &str = include_str!("../../../docs/vectors/text.json");

/// The rows of all sections of a document that have a text `key`, each with a name.
fn rows(document: &str, key: &str) -> Vec<(String, String)> {
    let document: Value = serde_json::from_str(document).unwrap_or_default();
    let sections = document.as_object().into_iter().flatten();
    let mut rows = Vec::new();
    for (section, list) in sections {
        for (number, row) in list.as_array().into_iter().flatten().enumerate() {
            if let Some(text) = row[key].as_str() {
                rows.push((format!("{section}-{number}"), text.to_owned()));
            }
        }
    }
    rows
}

/// The fields `key` of a document as bytes.
pub(crate) fn texts(document: &str, key: &str) -> Vec<Seed> {
    let rows = rows(document, key).into_iter();
    rows.map(|(name, text)| (name, text.into_bytes())).collect()
}

/// The fields `key` of a document, which are bytes in hexadecimal.
pub(crate) fn bytes(document: &str, key: &str) -> Vec<Seed> {
    let byte = |digits: &[u8]| {
        let digits = std::str::from_utf8(digits).ok();
        digits.and_then(|digits| u8::from_str_radix(digits, 16).ok())
    };
    let decoded = |text: &str| text.as_bytes().chunks(2).filter_map(byte).collect();
    let rows = rows(document, key).into_iter();
    rows.map(|(name, text)| (name, decoded(&text))).collect()
}
