//! What could not be asked, and what to do about it.

use std::time::Duration;

/// Something that this machine does not say, so that more virtual machines or policies may be
/// there than are known. Each names the next step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Missing {
    /// Nobody asked, since an answer takes a while.
    #[error("the virtual machines were not asked for; `hvsock vm list` asks")]
    NotAsked,
    /// There is no management of Hyper-V here.
    #[error(
        "Hyper-V is not enabled on this machine; enable it as administrator with \
         `Enable-WindowsOptionalFeature -Online -FeatureName Microsoft-Hyper-V -All` (on Windows \
         Server `Install-WindowsFeature -Name Hyper-V -IncludeManagementTools`), then restart"
    )]
    HyperV,
    /// This user may not see Hyper-V's virtual machines.
    #[error(
        "Windows does not show Hyper-V's virtual machines to this user; run as administrator, or \
         become a member of the group `Hyper-V Administrators` and sign in again"
    )]
    Rights,
    /// An answer took too long.
    #[error(
        "{what} did not answer within {after:?}; see whether the service {service} runs with \
         `Get-Service {service}`"
    )]
    TimedOut {
        /// Who.
        what: &'static str,
        /// The service behind it.
        service: &'static str,
        /// How long it had.
        after: Duration,
    },
    /// The host compute service does not list its systems.
    #[error(
        "the host compute service does not list its virtual machines ({why}); WSL's can be found \
         without it with `wsl.exe -- wslinfo --vm-id`"
    )]
    ComputeService {
        /// Why.
        why: String,
    },
    /// The registrations cannot be read.
    #[error("the services in the registry of Windows cannot be read: {why}")]
    Registry {
        /// Why, and what to do about it.
        why: String,
    },
    /// Windows failed.
    #[error("{what}: {why}; run it again, and see the event log of Windows if it stays so")]
    Failed {
        /// At what.
        what: &'static str,
        /// How.
        why: String,
    },
}
