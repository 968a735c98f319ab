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
        Fix::RemovePartition { partition } => {
            Help::command(format!("hvsock container remove {partition}"))
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
