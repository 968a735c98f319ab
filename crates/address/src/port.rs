//! A vsock port as text.

/// The digits of a vsock port: `2761` or `port:2761`. 32 digits alone are a GUID.
pub(crate) fn port_digits(text: &str) -> Option<&str> {
    let after = text.strip_prefix("port:");
    let digits = after.unwrap_or(text);
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    (is_number && (after.is_some() || digits.len() != 32)).then_some(digits)
}
