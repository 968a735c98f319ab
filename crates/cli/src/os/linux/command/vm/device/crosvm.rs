//! crosvm. Source of the syntax: its `src/crosvm/cmdline.rs` (`--vhost-user`) and `serde_keyvalue`: a value in
//! double quotes has `\"` and `\\` as escapes; an unquoted one has no comma, quote or bracket. crosvm seals
//! the guest's memory.

use super::vmm::{Inexpressible, Machine, Options, Vmm, words};

#[derive(Debug)]
pub struct Crosvm;

impl Vmm for Crosvm {
    fn name(&self) -> &'static str {
        "crosvm"
    }

    fn title(&self) -> &'static str {
        "crosvm"
    }

    fn options(&self, machine: &Machine<'_>) -> Result<Options, Inexpressible> {
        let device = format!("vsock,socket={}", quoted(machine.socket));
        let mut lines = Vec::new();
        if let Some(memory) = machine.memory {
            lines.push(words(["--mem", &format!("size={}", memory.mib())]));
        }
        lines.push(words(["--vhost-user", &device]));
        Ok(Options::Arguments(lines))
    }

    fn place(&self) -> String {
        "Add this to the command line of `crosvm run`, without its option --vsock".to_owned()
    }
}

/// A value that the option parser reads as `text`.
fn quoted(text: &str) -> String {
    match text.contains(['"', '\'', ',', '[', ']', '\\']) {
        true => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::vmm::tests::of;
    use super::*;

    #[test]
    fn a_special_path_is_in_double_quotes_with_escapes() {
        let plain = of(&Crosvm, "/run/hvsock/vm/web.sock", Some("1G"));
        assert_eq!(
            plain,
            "--mem size=1024\n--vhost-user vsock,socket=/run/hvsock/vm/web.sock\n"
        );
        let special = of(&Crosvm, r#"/a,b\c"d/web.sock"#, None);
        assert_eq!(
            special,
            "--vhost-user 'vsock,socket=\"/a,b\\\\c\\\"d/web.sock\"'\n"
        );
    }
}
