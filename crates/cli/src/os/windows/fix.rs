//! The commands of Windows for a [`Fix`].

use hvsock::Fix;

use crate::hint::Help;

/// The help for a fix, if its plain text is not enough.
pub fn help(fix: &Fix) -> Option<Help> {
    Some(match fix {
        Fix::ResumePartition { id, .. } => Help::command(format!("Get-VM -Id {id} | Resume-VM")),
        Fix::StartPartition { id, .. } => Help::command(format!("Get-VM -Id {id} | Start-VM")),
        Fix::ListPartitions => Help::command("hvsock vm list"),
        Fix::StopListener { .. } => Help::command("hvsock status"),
        Fix::EnableHyperV => Help::sentence(
            "enable Hyper-V as administrator with `Enable-WindowsOptionalFeature -Online \
             -FeatureName Microsoft-Hyper-V -All` (on Windows Server `Install-WindowsFeature -Name \
             Hyper-V -IncludeManagementTools`), then restart",
        ),
        _ => return None,
    })
}
