//! Options of the form `key=value,key=value`.

use serde_json::Value;

/// Splits at single commas; a doubled comma is a literal one, as QEMU has it.
pub fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let is_separator = character == ',' && characters.next_if_eq(&',').is_none();
        match parts.last_mut() {
            Some(part) if !is_separator => part.push(character),
            _ => parts.push(String::new()),
        }
    }
    parts
}

/// The value of a key. QEMU's options may also be a JSON object.
pub fn value(text: &str, key: &str) -> Option<String> {
    if text.starts_with('{') {
        let object: Value = serde_json::from_str(text).ok()?;
        return match object.get(key)? {
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        };
    }
    let parts = split(text);
    let value = |part: &String| {
        let (name, value) = part.split_once('=')?;
        (name == key).then(|| value.to_owned())
    };
    parts.iter().find_map(value)
}

/// The value of a key, or the first part if that has no key.
pub fn value_or_first(text: &str, key: &str) -> Option<String> {
    let first = || split(text).into_iter().next();
    value(text, key).or_else(|| first().filter(|first| !first.contains('=')))
}

/// A context id of a guest, in decimal or hexadecimal digits.
pub fn cid(text: &str) -> Option<u32> {
    let number = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    number.ok().filter(|cid| (3..u32::MAX).contains(cid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubled_comma_is_part_of_a_value_and_json_is_read_too() {
        assert_eq!(
            value("socket,id=a,path=/x,,y", "path").as_deref(),
            Some("/x,y")
        );
        assert_eq!(split("a,,,b"), ["a,", "b"]);
        let json = r#"{"driver":"vhost-vsock-pci","guest-cid":3}"#;
        assert_eq!(value(json, "guest-cid").as_deref(), Some("3"));
        assert_eq!(
            value_or_first("web,debug-threads=on", "guest").as_deref(),
            Some("web")
        );
        assert_eq!(value_or_first("guest=web", "guest").as_deref(), Some("web"));
        assert_eq!(value("{", "a"), None);
        assert_eq!(cid("0x10"), Some(16));
        for bad in ["2", "4294967295", "-1", "x", ""] {
            assert_eq!(cid(bad), None, "{bad}");
        }
    }
}
