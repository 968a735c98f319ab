//! Cloud Hypervisor, version 52 or later. Source of the syntax: its `vmm/src/config.rs`
//! (`GenericVhostUserConfig`) and `option_parser`: in double quotes only a double quote is special, and is
//! doubled; outside of them brackets nest and a comma ends a value.

use super::vmm::{Inexpressible, Machine, Options, VIRTIO_ID_VSOCK, Vmm, words};

#[derive(Debug)]
pub struct CloudHypervisor;

impl Vmm for CloudHypervisor {
    fn name(&self) -> &'static str {
        "cloud-hypervisor"
    }

    fn title(&self) -> &'static str {
        "Cloud Hypervisor"
    }

    fn options(&self, machine: &Machine<'_>) -> Result<Options, Inexpressible> {
        let size = match machine.memory {
            Some(memory) => format!("{}M", memory.mib()),
            None => "SIZE".to_owned(),
        };
        let path = quoted(machine.socket);
        let device =
            format!("socket={path},device_type={VIRTIO_ID_VSOCK},queue_sizes=[128,128,128]");
        Ok(Options::Arguments(vec![
            words(["--memory", &format!("size={size},shared=on")]),
            words(["--generic-vhost-user", &device]),
        ]))
    }

    fn place(&self) -> String {
        "Add both lines to the command line of cloud-hypervisor (version 52 or later)".to_owned()
    }
}

/// A value that the option parser reads as `text`.
fn quoted(text: &str) -> String {
    let special = |c: char| "\"[],".contains(c) || c.is_whitespace();
    match text.contains(special) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::vmm::tests::of;
    use super::*;

    #[test]
    fn a_special_path_is_in_double_quotes_of_the_option_parser() {
        let plain = of(&CloudHypervisor, "/run/web.sock", Some("2G"));
        assert_eq!(
            plain,
            "--memory size=2048M,shared=on\n\
             --generic-vhost-user \
             'socket=/run/web.sock,device_type=19,queue_sizes=[128,128,128]'\n"
        );
        let special = of(&CloudHypervisor, "/a,b]\" c/web.sock", None);
        assert!(
            special.contains(r#"'socket="/a,b]"" c/web.sock",device_type=19,"#),
            "{special}"
        );
    }
}
