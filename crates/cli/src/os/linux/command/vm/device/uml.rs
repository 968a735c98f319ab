//! User-mode Linux, a kernel as a program. Source of the syntax: the kernel's
//! `arch/um/drivers/virtio_uml.c` (`SOCKET:ID[:PLATFORM]`, split at the first colon) and
//! `lib/cmdline.c` (`next_arg`: a parameter ends at a space outside double quotes, and nothing escapes a
//! quote).

use super::vmm::{Inexpressible, Machine, Options, VIRTIO_ID_VSOCK, Vmm};

#[derive(Debug)]
pub struct UserModeLinux;

impl Vmm for UserModeLinux {
    fn name(&self) -> &'static str {
        "uml"
    }

    fn title(&self) -> &'static str {
        "User-mode Linux"
    }

    fn options(&self, machine: &Machine<'_>) -> Result<Options, Inexpressible> {
        if machine.socket.contains([':', '"']) || machine.socket.chars().any(char::is_control) {
            return Err(Inexpressible {
                vmm: self.title(),
                socket: machine.socket.to_owned(),
                why: "its kernel parameter has no escape for a colon, double quote or control \
                      character",
            });
        }
        let mut line = Vec::new();
        if let Some(memory) = machine.memory {
            line.push(format!("mem={}M", memory.mib()));
        }
        let value = format!("{}:{VIRTIO_ID_VSOCK}", machine.socket);
        line.push(match machine.socket.contains(char::is_whitespace) {
            true => format!("virtio_uml.device=\"{value}\""),
            false => format!("virtio_uml.device={value}"),
        });
        Ok(Options::Arguments(vec![line]))
    }

    fn place(&self) -> String {
        "Add this to the command line of linux.uml".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::vmm::tests::of;
    use super::*;

    #[test]
    fn a_path_with_a_space_is_in_double_quotes_of_the_kernel_command_line() {
        assert_eq!(
            of(&UserModeLinux, "/run/web.sock", Some("256M")),
            "mem=256M virtio_uml.device=/run/web.sock:19\n"
        );
        assert_eq!(
            of(&UserModeLinux, "/a b,c/web.sock", None),
            "'virtio_uml.device=\"/a b,c/web.sock:19\"'\n"
        );
        assert!(of(&UserModeLinux, "/a:b/web.sock", None).contains("no escape for a colon"));
    }
}
