//! Formats numbers and names for people.

/// Bytes with two to four digits and a unit: `999 B`, `1.5 KiB`, `20 MiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next().unwrap_or(&"KiB");
    while value >= 1023.5 {
        let Some(next) = units.next() else { break };
        unit = next;
        value /= 1024.0;
    }
    if value < 9.95 {
        format!("{value:.1} {unit}")
    } else {
        format!("{value:.0} {unit}")
    }
}

/// A count with its noun: `1 service`, `2 services`.
pub fn count(count: usize, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

/// Quotes `text` as one word of a POSIX shell.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:@%+".contains(c);
    if !text.is_empty() && text.chars().all(plain) && !text.starts_with('-') {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// A command with these words as its arguments, and then `options`, which is empty or starts with a
/// space. A word that starts with `-` follows the options and a `--`, or it would be taken for an option
/// itself: quoting does not prevent that.
pub fn command_line(command: &str, words: &[&str], options: &str) -> String {
    let quoted: Vec<_> = words.iter().map(|word| shell_word(word)).collect();
    let quoted = quoted.join(" ");
    match words.iter().any(|word| word.starts_with('-')) {
        true => format!("{command}{options} -- {quoted}"),
        false => format!("{command} {quoted}{options}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_a_unit_that_fits() {
        for (number, want) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (10 * 1024, "10 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (20 << 20, "20 MiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(bytes(number), want);
        }
    }

    #[test]
    fn a_shell_word_stays_one() {
        assert_eq!(shell_word("/tmp/x"), "/tmp/x");
        assert_eq!(shell_word("HV Socket Demo"), "'HV Socket Demo'");
        assert_eq!(shell_word("a'b"), r"'a'\''b'");
        assert_eq!(shell_word(""), "''");
    }
}
