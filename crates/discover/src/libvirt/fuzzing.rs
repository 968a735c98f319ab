//! What the fuzz targets run of libvirt's answers.

use super::client::Domain;
use super::xdr::Reader;
use super::{domain, xml};

/// Reads a domain's description.
pub(crate) fn description(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for tag in xml::tags(&text) {
        let _ = tag.attribute("name");
    }
    let domain = Domain {
        name: "web".to_owned(),
        uuid: [7; 16],
        id: 1,
    };
    let _ = domain::machine(&domain, 1, &text);
}

/// Reads texts of an answer, to its end.
pub(crate) fn domains(bytes: &[u8]) {
    let mut reader = Reader(bytes);
    while let Some(text) = reader.optional_string() {
        assert!(text.is_none_or(|text| text.len() <= 3 * bytes.len()));
    }
    let mut reader = Reader(bytes);
    while reader.string().is_some() && reader.fixed(16).is_some() && reader.word().is_some() {}
}
