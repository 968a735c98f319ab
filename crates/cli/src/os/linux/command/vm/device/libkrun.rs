//! libkrun, version 1.18 or later, a library: the calls in C. Source: its `include/libkrun.h`. Its own vsock
//! device is implicit and would be a second one in the guest.

use super::vmm::{Inexpressible, Machine, Options, Vmm};

#[derive(Debug)]
pub struct Libkrun;

impl Vmm for Libkrun {
    fn name(&self) -> &'static str {
        "libkrun"
    }

    fn title(&self) -> &'static str {
        "libkrun"
    }

    fn options(&self, machine: &Machine<'_>) -> Result<Options, Inexpressible> {
        let memory = machine.memory.map_or_else(String::new, |memory| {
            format!("krun_set_vm_config(ctx, VCPUS, {});\n", memory.mib())
        });
        Ok(Options::Text(format!(
            "{memory}krun_disable_implicit_vsock(ctx);\n\
             krun_add_vhost_user_device(ctx, KRUN_VIRTIO_DEVICE_VSOCK, \"{}\", \"hvsock\",\n    \
                 KRUN_VHOST_USER_VSOCK_NUM_QUEUES, KRUN_VHOST_USER_VSOCK_QUEUE_SIZES);\n",
            c_string(machine.socket)
        )))
    }

    fn place(&self) -> String {
        "Make these calls in the program that starts the VM (libkrun 1.18 or later, built with the \
         feature vhost-user)"
            .to_owned()
    }
}

/// `text` within a string literal of C. Octal escapes end after three digits, unlike hexadecimal ones, and an
/// escaped `?` starts no trigraph.
fn c_string(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' | b'?' => {
                escaped.push('\\');
                escaped.push(char::from(byte));
            }
            b' '..=b'~' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("\\{byte:03o}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::vmm::tests::of;
    use super::*;

    #[test]
    fn a_special_path_is_a_string_literal_of_c() {
        let calls = of(&Libkrun, "/a\"b\\c??/ü1/web.sock", None);
        let literal = r#""/a\"b\\c\?\?/\303\2741/web.sock""#;
        assert!(calls.contains(literal), "{calls}");
        assert!(calls.starts_with("krun_disable_implicit_vsock(ctx);\n"));
    }
}
