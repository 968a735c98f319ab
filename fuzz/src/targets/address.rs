//! Addresses as text and bytes: GUIDs, names, references, URLs, both socket addresses. What is printed is parsed as the
//! same value.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use hvsock_address::{
    ElementName, HvUrl, PartitionName, PartitionRef, ServiceId, ServiceRef, SockAddrHv, SockAddrVm,
    VmId,
};

use super::vectors;
use crate::target::Seed;

/// Parses the bytes as each of them.
pub(crate) fn run(bytes: &[u8]) {
    if let Ok(address) = SockAddrHv::from_bytes(bytes) {
        assert_eq!(SockAddrHv::from_bytes(&address.to_bytes()), Ok(address));
    }
    if let Ok(address) = SockAddrVm::from_bytes(bytes) {
        assert_eq!(SockAddrVm::from_bytes(&address.to_bytes()), Ok(address));
    }
    let text = String::from_utf8_lossy(bytes);
    parsed::<VmId>(&text);
    parsed::<ServiceId>(&text);
    parsed::<ElementName>(&text);
    parsed::<PartitionName>(&text);
    parsed::<PartitionRef>(&text);
    parsed::<ServiceRef>(&text);
    parsed::<HvUrl>(&text);
    if let Ok(name) = PartitionName::new(text.as_ref()) {
        assert_eq!(name.parts().is_some(), name.is_nested());
    }
    let shown = hvsock_text::printable(text.as_ref()).to_string();
    assert_eq!(hvsock_text::first_escaped(&shown), None, "{shown:?}");
    let shown = hvsock_text::printable_bytes(bytes).to_string();
    assert_eq!(hvsock_text::first_escaped(&shown), None, "{shown:?}");
}

fn parsed<T: FromStr + Display + Debug + PartialEq>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        let again = value.to_string().parse::<T>();
        assert_eq!(again.as_ref().ok(), Some(&value), "{value}");
    }
}

/// The addresses of the vectors.
pub(crate) fn seeds() -> Vec<Seed> {
    let texts = vectors::texts(vectors::ADDRESSES, "text").into_iter();
    let texts = texts.map(|(name, text)| (format!("text-{name}"), text));
    let bytes = vectors::bytes(vectors::ADDRESSES, "bytes").into_iter();
    let bytes = bytes.map(|(name, bytes)| (format!("bytes-{name}"), bytes));
    let escaped = super::named([(
        "escaped",
        "a\u{202e}\u{1b}[2J\u{fe0f}\\n".as_bytes().to_vec(),
    )]);
    texts.chain(bytes).chain(escaped).collect()
}
