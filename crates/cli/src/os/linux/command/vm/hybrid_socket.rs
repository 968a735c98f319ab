//! The socket by which programs that know only hybrid vsock reach a VM's guest.

use hvsock_control::Partition;

use crate::format::shell_word;

/// The vsock port of the example: SSH's.
const PORT: u32 = 22;

/// The socket, and a command that connects by it.
pub fn facts(partition: &Partition) -> Vec<(&'static str, String)> {
    let Some(socket) = &partition.hybrid_socket else {
        return Vec::new();
    };
    let mut facts = vec![("hybrid vsock", socket.display().to_string())];
    // Other paths cannot be told to a shell as text.
    facts.extend(socket.to_str().map(|path| ("example", example(path))));
    facts
}

/// A shell command that connects standard input and output to the port.
fn example(path: &str) -> String {
    let address = shell_word(&format!("UNIX-CONNECT:{}", socat_word(path)));
    format!(r"(printf 'CONNECT {PORT}\n'; cat) | socat - {address}")
}

/// Escapes what has a meaning in an address of socat.
fn socat_word(text: &str) -> String {
    let mut word = String::with_capacity(text.len());
    for character in text.chars() {
        if r#":,!\"'()[]{}"#.contains(character) {
            word.push('\\');
        }
        word.push(character);
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reaches_socat_as_it_is() {
        assert_eq!(
            example("/run/hvsock/vm/web.vsock"),
            r"(printf 'CONNECT 22\n'; cat) | socat - UNIX-CONNECT:/run/hvsock/vm/web.vsock"
        );
        let odd = example("/a b/c:d,e'f/web.vsock");
        let want = r"socat - 'UNIX-CONNECT:/a b/c\:d\,e\'\''f/web.vsock'";
        assert!(odd.ends_with(want), "{odd}");
    }
}
