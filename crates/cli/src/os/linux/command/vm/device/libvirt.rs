//! libvirt. It has no element for a vhost-user-vsock device, so the device is raw arguments of QEMU.
//! Source of the syntax: libvirt's `formatdomain` and `drvqemu` pages.

use super::qemu;
use super::vmm::{Inexpressible, Machine, Options, Vmm};

#[derive(Debug)]
pub struct Libvirt;

impl Vmm for Libvirt {
    fn name(&self) -> &'static str {
        "libvirt"
    }

    fn title(&self) -> &'static str {
        "libvirt"
    }

    /// The elements of a domain: shared memory, and the device.
    fn options(&self, machine: &Machine<'_>) -> Result<Options, Inexpressible> {
        if machine.socket.chars().any(char::is_control) {
            return Err(Inexpressible {
                vmm: self.title(),
                socket: machine.socket.to_owned(),
                why: "XML has no control characters",
            });
        }
        let arguments: String = qemu::device(machine)
            .iter()
            .map(|argument| format!("    <qemu:arg value='{}'/>\n", xml(argument)))
            .collect();
        let memory = machine.memory.map_or_else(String::new, |memory| {
            format!("  <memory unit='MiB'>{}</memory>\n", memory.mib())
        });
        Ok(Options::Text(format!(
            "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n\
             {memory}  <memoryBacking>\n    \
                 <source type='memfd'/>\n    \
                 <access mode='shared'/>\n  \
               </memoryBacking>\n  \
               <qemu:commandline>\n{arguments}  \
               </qemu:commandline>\n\
             </domain>\n"
        )))
    }

    fn place(&self) -> String {
        "Add this to the domain (`virsh edit`)".to_owned()
    }

    fn user(&self, user: Option<&str>) -> Option<String> {
        Some(match user {
            Some(user) => format!("Its QEMU must run as the user {user}"),
            None => "Its QEMU must run as the broker's user (or give another with --user)".into(),
        })
    }

    fn notes(&self, machine: &Machine<'_>) -> Vec<String> {
        qemu::exchange(machine)
    }
}

/// `text` within an XML attribute.
fn xml(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use super::super::vmm::tests::of;
    use super::*;

    #[test]
    fn a_path_with_special_characters_is_escaped_for_qemu_and_then_for_xml() {
        let xml = of(&Libvirt, "/tmp/a,b's <&/web.sock", None);
        let value = "value='socket,id=hvsock-web,path=/tmp/a,,b&apos;s &lt;&amp;/web.sock'";
        assert!(xml.contains(value), "{xml}");
        let refused = of(&Libvirt, "/tmp/a\u{1}b", None);
        assert!(refused.contains("control characters"), "{refused}");
    }
}
