//! OpenVMM. Source of the syntax: its `openvmm_entry/src/cli_args.rs` (`VhostUserCli`) and `vmm_cli`: the path
//! is the first part up to a comma, brackets nest, and nothing quotes.

use super::vmm::{Inexpressible, Machine, Options, VIRTIO_ID_VSOCK, Vmm, words};

#[derive(Debug)]
pub struct OpenVmm;

impl Vmm for OpenVmm {
    fn name(&self) -> &'static str {
        "openvmm"
    }

    fn title(&self) -> &'static str {
        "OpenVMM"
    }

    fn options(&self, machine: &Machine<'_>) -> Result<Options, Inexpressible> {
        if machine.socket.contains([',', '[', ']']) {
            return Err(Inexpressible {
                vmm: self.title(),
                socket: machine.socket.to_owned(),
                why: "its option has no escape for a comma or bracket",
            });
        }
        let device = format!(
            "{},device_id={VIRTIO_ID_VSOCK},queue_sizes=[128,128,128]",
            machine.socket
        );
        let mut lines = Vec::new();
        if let Some(memory) = machine.memory {
            lines.push(words(["--memory", &format!("{}M", memory.mib())]));
        }
        lines.push(words(["--vhost-user", &device]));
        Ok(Options::Arguments(lines))
    }

    fn place(&self) -> String {
        "Add this to the command line of openvmm".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::vmm::tests::of;
    use super::*;

    #[test]
    fn a_path_with_a_comma_is_refused_because_nothing_quotes_it() {
        assert_eq!(
            of(&OpenVmm, "/a b/web.sock", None),
            "--vhost-user '/a b/web.sock,device_id=19,queue_sizes=[128,128,128]'\n"
        );
        assert!(of(&OpenVmm, "/a,b/web.sock", None).contains("no escape for a comma"));
    }
}
