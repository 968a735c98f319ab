//! What the fuzz targets (`fuzz/`) run, where the API of the crate has no such function. No part of that API.

use std::path::Path;

use hvsock_address::ServiceId;

use crate::linux::entry_folder::EntryKind;
use crate::linux::folder_store::{ServiceFiles, decode_defaults};

/// Decodes a registration's file. What is written for it must be decoded as the same registration.
pub fn service_file(bytes: &[u8]) {
    let (path, id) = (Path::new("x.toml"), ServiceId::from_port(7));
    if let Ok(read) = ServiceFiles::decode(path, &id, bytes, None) {
        let text = ServiceFiles::text(&read, None);
        let again = ServiceFiles::decode(path, &id, text.as_bytes(), None);
        assert_eq!(again.as_ref().ok(), Some(&read), "{text}");
        // The same file, over a built-in registration of the service.
        let over = ServiceFiles::decode(path, &id, bytes, Some(&read));
        assert!(over.is_ok(), "{over:?}");
    }
}

/// Decodes the file of the defaults.
pub fn defaults_file(bytes: &[u8]) {
    let _ = decode_defaults(Path::new("defaults.toml"), bytes);
}
