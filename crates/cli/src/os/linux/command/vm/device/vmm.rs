//! What a VMM is asked and answers: the seam of the device's options.

use std::fmt;

use hvsock_address::PartitionName;

use super::machine_type::MachineType;
use super::memory::Memory;
use crate::failure::Failure;
use crate::format::shell_word;

/// The virtio id of a vsock device (virtio 1.2 §5).
pub const VIRTIO_ID_VSOCK: u32 = 19;

/// The virtual machine that gets the device.
#[derive(Debug)]
pub struct Machine<'a> {
    /// Its name.
    pub name: &'a PartitionName,
    /// The broker's vhost-user socket for it.
    pub socket: &'a str,
    /// Its memory, if the caller gave it.
    pub memory: Option<&'a Memory>,
    /// Its machine type, if the caller gave it. Only QEMU has them.
    pub machine: Option<&'a MachineType>,
}

/// What a VMM is given.
#[derive(Debug, PartialEq, Eq)]
pub enum Options {
    /// Arguments of its command line, in lines that belong together.
    Arguments(Vec<Vec<String>>),
    /// Text for a file: XML, or source code.
    Text(String),
}

/// A socket's path that a VMM's options cannot express.
#[derive(Debug, thiserror::Error)]
#[error("{vmm} cannot take the path {socket:?}: {why}")]
pub struct Inexpressible {
    /// The VMM's name in sentences.
    pub vmm: &'static str,
    /// The path.
    pub socket: String,
    /// The rule of its syntax, as a clause.
    pub why: &'static str,
}

/// A program that runs virtual machines and has a vhost-user front end.
pub trait Vmm: fmt::Debug + Sync {
    /// The value of `--vmm`.
    fn name(&self) -> &'static str;

    /// Its name in sentences.
    fn title(&self) -> &'static str;

    /// What it is given.
    ///
    /// # Errors
    ///
    /// [`Inexpressible`] if its syntax has no form for the socket's path.
    fn options(&self, machine: &Machine<'_>) -> Result<Options, Inexpressible>;

    /// Where the options go, as a sentence without its end.
    fn place(&self) -> String;

    /// Which user it must run as; `None` is the broker's own.
    fn user(&self, user: Option<&str>) -> Option<String> {
        user.map(|user| format!("{} must run as the user {user}", self.title()))
    }

    /// What else the operator has to know.
    fn notes(&self, _machine: &Machine<'_>) -> Vec<String> {
        Vec::new()
    }
}

impl Options {
    /// As text for a terminal: shell words, or the text itself.
    pub fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Arguments(lines) => lines
                .iter()
                .map(|line| {
                    let words: Vec<String> = line.iter().map(|word| option_word(word)).collect();
                    words.join(" ") + "\n"
                })
                .collect(),
        }
    }
}

impl From<Inexpressible> for Failure {
    fn from(error: Inexpressible) -> Self {
        Self::new(error.to_string()).help("give the VMM the path of a symbolic link to the socket")
    }
}

/// Quotes an option as one shell word. Commas and equals signs need no quotes.
fn option_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:@%+,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        shell_word(text)
    }
}

/// Strings as owned words.
pub fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).into()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// The options of a VMM for a VM `web` with this socket.
    pub fn of(vmm: &dyn Vmm, socket: &str, memory: Option<&str>) -> String {
        let memory = memory.map(|text| text.parse::<Memory>().expect("memory"));
        let name = PartitionName::new("web").expect("a name");
        let machine = Machine {
            name: &name,
            socket,
            memory: memory.as_ref(),
            machine: None,
        };
        match vmm.options(&machine) {
            Ok(options) => options.text(),
            Err(error) => error.to_string(),
        }
    }
}
