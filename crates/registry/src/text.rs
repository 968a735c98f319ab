//! What the free texts of a registration (owner, creator, purpose) may hold, and how text of
//! others is shown.

/// The most bytes that an owner, creator or purpose may have.
pub(crate) const MAX_LEN: usize = 1024;

/// Why `text` is not fit to be shown on a terminal, a metrics label or a log line.
pub(crate) fn check(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("must not be empty; leave it out instead".to_owned());
    }
    if text.len() > MAX_LEN {
        let len = text.len();
        return Err(format!("has {len} bytes; at most {MAX_LEN} are taken"));
    }
    match text.chars().find(|c| c.is_control()) {
        Some(c) => Err(format!("holds the control character {c:?}")),
        None => Ok(()),
    }
}

/// Text of others, short and harmless enough for a message.
pub(crate) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().nth(80).is_some() {
        shown.push('…');
    }
    shown
}
