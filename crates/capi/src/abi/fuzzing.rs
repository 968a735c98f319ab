//! What the fuzz targets (`fuzz/`) run: the functions that take texts, with any texts. No part of the API.

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr;

use super::connection::{hvsock_close, hvsock_connect, hvsock_connect_address, hvsock_connect_url};
use super::error::{hvsock_error_fix, hvsock_error_label, hvsock_error_text};
use super::options::hvsock_options;
use super::service::{
    hvsock_explain_listen, hvsock_guid_format, hvsock_guid_parse, hvsock_partition_id,
    hvsock_service_id, hvsock_text_free,
};

/// An endpoint that nobody has, so that nothing is connected.
const NOBODY: &CStr = c"/dev/null/hvsock";

/// Calls the functions with texts that end at the zero bytes of `bytes`, and with NULL for one that is empty.
pub fn texts(bytes: &[u8]) {
    let mut parts = bytes.split(|byte| *byte == 0);
    let mut next = || {
        let part = parts.next().unwrap_or_default();
        CString::new(part).ok().filter(|text| !text.is_empty())
    };
    let (one, other) = (next(), next());
    let pointer = |text: &Option<CString>| text.as_ref().map_or(ptr::null(), |text| text.as_ptr());
    let (one, other) = (pointer(&one), pointer(&other));
    let options = hvsock_options {
        size: size_of::<hvsock_options>(),
        endpoint: NOBODY.as_ptr(),
        timeout_ms: u32::from(bytes.first().copied().unwrap_or_default()) << 12,
        backlog: 0,
        ring_size: 0,
        flags: u32::from(bytes.last().copied().unwrap_or_default()),
        action: other,
        detail: one,
    };
    let mut guid = [0_u8; 16];
    let mut text: [c_char; 40] = [0; 40];
    // SAFETY: the texts are NULL or end with a zero byte and live until the end of this function; a GUID has 16 bytes
    // and its text 37; the address has the length that is passed; handles are closed once.
    unsafe {
        let to = guid.as_mut_ptr().cast();
        if hvsock_guid_parse(one, to) == 0 {
            let copied = hvsock_guid_format(guid.as_ptr().cast(), text.as_mut_ptr());
            assert_eq!(copied, 0);
            let mut again = [0_u8; 16];
            let parsed = hvsock_guid_parse(text.as_ptr(), again.as_mut_ptr().cast());
            assert_eq!((parsed, again), (0, guid));
        }
        let mut failed: Vec<c_int> = vec![
            hvsock_service_id(one, NOBODY.as_ptr(), to),
            hvsock_partition_id(other, NOBODY.as_ptr(), to),
        ];
        let connections = [
            hvsock_connect(one, other, &raw const options),
            hvsock_connect_url(one, &raw const options),
            hvsock_connect_address(bytes.as_ptr().cast(), bytes.len(), &raw const options),
        ];
        for connection in connections {
            failed.push(if connection.is_null() { -1 } else { 0 });
            hvsock_close(connection);
        }
        let explanation = hvsock_explain_listen(one, other, &raw const options, ptr::null_mut());
        failed.push(if explanation.is_null() { -1 } else { 0 });
        hvsock_text_free(explanation);
        assert!(failed.iter().all(|result| *result == -1), "{failed:?}");
        for text in [
            hvsock_error_text(),
            hvsock_error_label(),
            hvsock_error_fix(),
        ] {
            assert!(CStr::from_ptr(text).to_str().is_ok());
        }
    }
}
