//! Reads `os-release(5)`.

use std::fs;

/// The text of the file, or an empty text if there is none. It has two locations; the first one wins.
pub(super) fn read() -> String {
    let files = ["/etc/os-release", "/usr/lib/os-release"];
    let text = files.iter().find_map(|path| fs::read_to_string(path).ok());
    text.unwrap_or_default()
}

/// The value of a variable: a shell word in double quotes, in single quotes or without quotes. `None` if the
/// variable is missing or empty.
pub(super) fn value(os_release: &str, name: &str) -> Option<String> {
    let mut lines = os_release.lines();
    let value = lines.find_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='))?;
    let quoted = |quote| value.strip_prefix(quote)?.strip_suffix(quote);
    let value = match (quoted('"'), quoted('\'')) {
        (Some(inner), _) => unescaped(inner),
        (None, Some(inner)) => inner.to_owned(),
        (None, None) => value.to_owned(),
    };
    (!value.is_empty()).then_some(value)
}

/// Removes the escapes of a text in double quotes: a backslash stands for the character after it.
fn unescaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        plain.extend(match c {
            '\\' => characters.next(),
            c => Some(c),
        });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_read_with_any_kind_of_quotes() {
        for (file, want) in [
            (
                "NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n",
                Some("Debian GNU/Linux 12 (bookworm)"),
            ),
            ("PRETTY_NAME='Alpine Linux'", Some("Alpine Linux")),
            ("PRETTY_NAME=Void", Some("Void")),
            (r#"PRETTY_NAME="a \"b\" \$c""#, Some(r#"a "b" $c"#)),
            ("PRETTY_NAME=\"\"", None),
            ("PRETTY_NAME=\"", Some("\"")),
            ("NAME=x", None),
            ("PRETTY_NAMES=x", None),
        ] {
            assert_eq!(value(file, "PRETTY_NAME").as_deref(), want, "{file}");
        }
    }
}
