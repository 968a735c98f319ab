//! The options that give a virtual machine the broker's vhost-user-vsock device, for QEMU and
//! libvirt.
//!
//! As observed with QEMU 7.2: the device reads the context id from its back-end, so there is no
//! option for it. It rejects a socket with `reconnect`, because it starts before such a socket is
//! connected.

use std::str::FromStr;

use hvsock_address::PartitionName;
use serde::Serialize;

use crate::format::shell_word;

/// An amount of memory in QEMU's form: a number with a unit, or in MiB without one.
#[derive(Clone, Debug)]
pub struct Memory(String);

/// Text that is not an amount of memory.
#[derive(Debug, thiserror::Error)]
#[error("expected an amount of memory in QEMU's form, such as 512M or 2G")]
pub struct InvalidMemory;

impl FromStr for Memory {
    type Err = InvalidMemory;

    fn from_str(text: &str) -> Result<Self, InvalidMemory> {
        let digits = text.trim_end_matches(|c: char| "kKMGTmgt".contains(c));
        let unit = &text[digits.len()..];
        let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let is_zero = digits.bytes().all(|b| b == b'0');
        match unit.len() {
            _ if !is_number || is_zero => Err(InvalidMemory),
            // Without a unit, -m means MiB and a memory object bytes.
            0 => Ok(Self(format!("{digits}M"))),
            1 => Ok(Self(text.to_owned())),
            _ => Err(InvalidMemory),
        }
    }
}

/// The options for one virtual machine.
#[derive(Debug, Serialize)]
pub struct Device {
    /// QEMU's arguments. `SIZE` is a placeholder for unknown memory.
    qemu: Vec<String>,
    /// The XML for a libvirt domain.
    pub libvirt: String,
}

/// The number of arguments at the end of [`Device::qemu`] that define the device.
const DEVICE_ARGUMENTS: usize = 4;

impl Device {
    pub fn new(name: &PartitionName, socket: &str, memory: Option<&Memory>) -> Self {
        let size = memory.map_or("SIZE", |memory| &memory.0);
        let mut qemu = match memory {
            Some(Memory(size)) => vec!["-m".to_owned(), size.clone()],
            None => Vec::new(),
        };
        // A comma ends a value in QEMU's options. A doubled comma is a literal one.
        let path = socket.replace(',', ",,");
        qemu.extend([
            "-object".to_owned(),
            format!("memory-backend-memfd,id=hvsock-mem,size={size},share=on"),
            "-machine".to_owned(),
            "memory-backend=hvsock-mem".to_owned(),
        ]);
        let device = [
            "-chardev".to_owned(),
            format!("socket,id=hvsock-{name},path={path}"),
            "-device".to_owned(),
            format!("vhost-user-vsock-pci,chardev=hvsock-{name}"),
        ];
        let libvirt = libvirt(&device);
        qemu.extend(device);
        Self { qemu, libvirt }
    }

    /// QEMU's options as shell words: one line for memory, one for the device.
    pub fn options(&self) -> String {
        let split = self.qemu.len().saturating_sub(DEVICE_ARGUMENTS);
        let (memory, device) = self.qemu.split_at(split);
        [memory, device]
            .map(|part| {
                let words: Vec<String> = part.iter().map(|word| option_word(word)).collect();
                words.join(" ") + "\n"
            })
            .concat()
    }
}

/// Quotes an option as one shell word. Commas and equals signs need no quotes.
fn option_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:@%+,=".contains(c);
    if text.chars().all(plain) {
        text.to_owned()
    } else {
        shell_word(text)
    }
}

/// The XML for a domain: shared memory, and the device as raw arguments, because libvirt has no
/// element for it.
fn libvirt(device: &[String]) -> String {
    let arguments: String = device
        .iter()
        .map(|argument| format!("    <qemu:arg value='{}'/>\n", xml(argument)))
        .collect();
    format!(
        "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n  \
           <memoryBacking>\n    \
             <source type='memfd'/>\n    \
             <access mode='shared'/>\n  \
           </memoryBacking>\n  \
           <qemu:commandline>\n{arguments}  \
           </qemu:commandline>\n\
         </domain>\n"
    )
}

/// `text` within an XML attribute.
fn xml(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(socket: &str, memory: Option<&str>) -> Device {
        let memory = memory.map(|text| text.parse::<Memory>().expect("memory"));
        let name = PartitionName::new("web").expect("a name");
        Device::new(&name, socket, memory.as_ref())
    }

    #[test]
    fn the_memory_of_a_vm_is_a_placeholder_or_given() {
        let open = device("/run/hvsock/vm/web.sock", None);
        assert_eq!(
            open.options(),
            "-object memory-backend-memfd,id=hvsock-mem,size=SIZE,share=on \
             -machine memory-backend=hvsock-mem\n\
             -chardev socket,id=hvsock-web,path=/run/hvsock/vm/web.sock \
             -device vhost-user-vsock-pci,chardev=hvsock-web\n"
        );
        for (text, size) in [("2G", "2G"), ("512", "512M"), ("64m", "64m")] {
            let given = device("/s", Some(text)).options();
            let start =
                format!("-m {size} -object memory-backend-memfd,id=hvsock-mem,size={size},");
            assert!(given.starts_with(&start), "{given}");
        }
        for bad in [
            "",
            "G",
            "0",
            "0G",
            "2GB",
            "2G,share=off",
            "-1",
            "2 G",
            "1.5G",
        ] {
            assert!(bad.parse::<Memory>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_path_with_special_characters_stays_one_value() {
        let device = device("/tmp/a,b's <&/web.sock", None);
        assert!(
            device
                .options()
                .contains(r"'socket,id=hvsock-web,path=/tmp/a,,b'\''s <&/web.sock'"),
            "{}",
            device.options()
        );
        let value = "value='socket,id=hvsock-web,path=/tmp/a,,b&apos;s &lt;&amp;/web.sock'";
        assert!(device.libvirt.contains(value), "{}", device.libvirt);
    }
}
