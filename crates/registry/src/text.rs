//! Validation of free texts (owner, creator, purpose), and escaping of untrusted text for messages.

/// The maximum length in bytes of an owner, creator or purpose.
pub(crate) const MAX_LEN: usize = 1024;

/// Checks that `text` is safe on a terminal, in a metrics label and in a log line.
///
/// The error is the end of a sentence whose subject is the text.
pub(crate) fn check(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("must not be empty; leave it out instead".to_owned());
    }
    if text.len() > MAX_LEN {
        let len = text.len();
        return Err(format!("has {len} bytes; the limit is {MAX_LEN}"));
    }
    match hvsock_text::first_escaped(text) {
        Some(c) => Err(format!(
            "contains `{}`, which is not a visible character",
            c.escape_default()
        )),
        None => Ok(()),
    }
}

/// Escapes untrusted text for a message and truncates it to 80 bytes.
pub(crate) fn escaped(text: &str) -> String {
    hvsock_text::printable(text).at_most(80).to_string()
}
