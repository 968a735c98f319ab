//! The commands of Linux for a [`Fix`].

use hvsock::{Fix, PartitionKind};

use crate::format::command_line;
use crate::hint::Help;

/// The help for a fix, if its plain text is not enough.
pub fn help(fix: &Fix) -> Option<Help> {
    Some(match fix {
        Fix::ResumePartition {
            partition,
            kind: PartitionKind::Vm,
            ..
        } => Help::command(format!(
            "hvsock vm resume {partition}; or resume it in its VMM, if that paused it"
        )),
        Fix::ResumePartition { partition, .. } => {
            Help::command(format!("hvsock container resume {partition}"))
        }
        Fix::StartPartition {
            partition,
            kind: PartitionKind::Vm,
            ..
        } => Help::sentence(format!(
            "start its VMM with what `hvsock vm show {partition}` prints"
        )),
        Fix::StartInManager { manager, vm, .. } if manager == "libvirt" => {
            Help::command(command_line("virsh start", &[vm], ""))
        }
        Fix::StartInManager { manager, vm, .. } if manager == "incus" => {
            Help::command(command_line("incus start", &[vm], ""))
        }
        Fix::RemovePartition { partition } => {
            Help::command(format!("hvsock container remove {partition}"))
        }
        Fix::AddWithoutDevice { partition } => {
            Help::command(format!("hvsock container add {partition} --no-cdi"))
        }
        Fix::ChangeInVm {
            vm,
            container,
            change,
        } => {
            let change = change.word();
            Help::sentence(format!(
                "in {vm}, run `hvsock container {change} {container}`"
            ))
        }
        Fix::ListPartitions | Fix::StopListener { .. } => Help::command("hvsock status"),
        Fix::ListConnections => Help::command("hvsock connections"),
        Fix::StartBroker => Help::sentence("hvsock broker (or --dir DIR, if one runs elsewhere)"),
        Fix::TakeOwnership { path, uid } => {
            Help::command(command_line(&format!("chown {uid}"), &[path], ""))
        }
        Fix::RestrictWrites { path } => Help::command(command_line("chmod go-w", &[path], "")),
        Fix::OpenFolder { path } => Help::command(command_line("chmod a+rx", &[path], "")),
        Fix::RaiseKernelLimit { name, value } => {
            let setting = format!("{name}={value}");
            Help::command(command_line("sysctl -w", &[&setting], ""))
        }
        Fix::StopOtherBroker | Fix::ChooseFolder => {
            Help::sentence("choose another folder with --dir")
        }
        Fix::BecomeOperator => Help::sentence("sudo hvsock …"),
        Fix::StartAgent { partition } => {
            Help::sentence(format!("is `hvsock-agent` running in {partition}?"))
        }
        Fix::RaiseDescriptorLimit => Help::command("ulimit -n 65536"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_started_as_its_link_requires() {
        let partition = || "web".parse().unwrap();
        let (kind, id) = (PartitionKind::Vm, hvsock::VmId::WILDCARD);
        let in_manager = |manager: &str, vm: &str| Fix::StartInManager {
            partition: partition(),
            manager: manager.to_owned(),
            vm: vm.to_owned(),
        };
        let at = |path: Option<&str>| Fix::StartVmm {
            partition: partition(),
            path: path.map(str::to_owned),
        };
        for (fix, want) in [
            (
                Fix::StartPartition {
                    partition: partition(),
                    kind,
                    id,
                },
                "start its VMM with what `hvsock vm show web` prints",
            ),
            (
                at(Some("/run/v.sock")),
                "start the VMM of web, whose socket is /run/v.sock",
            ),
            (at(None), "start the VMM of web"),
            (in_manager("libvirt", "web"), "virsh start web"),
            (in_manager("libvirt", "-w b"), "virsh start -- '-w b'"),
            (in_manager("incus", "web"), "incus start web"),
            (in_manager("machined", "web"), "start web in machined"),
            (
                in_manager("machined", "w 1"),
                "start web in machined, which calls it w 1",
            ),
            (
                Fix::StartWithItsManager,
                "start it with the program that runs it",
            ),
        ] {
            let (Help::Command(text) | Help::Sentence(text)) = crate::fix::help(&fix);
            assert_eq!(text, want);
        }
    }
}
