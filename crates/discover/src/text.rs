//! Texts that several managers write in the same form.

/// A UUID of 32 hexadecimal digits in its usual form, unless it is zero.
pub fn hyphenated(digits: &str) -> Option<String> {
    let plain: String = digits.chars().filter(|c| *c != '-').collect();
    let valid = plain.len() == 32 && plain.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_zero = plain.bytes().all(|byte| byte == b'0');
    (valid && !is_zero).then(|| {
        let parts = [
            &plain[..8],
            &plain[8..12],
            &plain[12..16],
            &plain[16..20],
            &plain[20..],
        ];
        parts.join("-").to_ascii_lowercase()
    })
}
