//! Enables or disables a service for one virtual machine.
//!
//! Sources: the pages of `Msvm_VirtualSystemManagementService`'s `AddGuestServiceSettings` and
//! `ModifyGuestServiceSettings` under learn.microsoft.com/windows/win32/hyperv_v2, since Windows 10
//! and Windows Server 2016. The test machines have no Hyper-V, so the tests cover only the text of a
//! setting and the mechanism of a call.

use std::thread;
use std::time::{Duration, Instant};

use hvsock_address::{ServiceId, VmId};
use serde::Deserialize;
use wmi::Variant;

use super::vms::LIMIT;
use super::wmi::{Fault, HYPER_V, Namespace, Output};
use super::worker;
use crate::rows::{ServiceSetting, machine_of};
use crate::{Missing, Switch, embedded};

const SERVICE: &str = "Msvm_VirtualSystemManagementService";

/// The time limit for a change of a setting.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);

/// Why a policy could not be changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// Hyper-V could not be queried.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// Hyper-V has no virtual machine with this id.
    #[error(
        "Hyper-V shows no virtual machine with the id {vm} to this user; an administrator sees \
         all of them"
    )]
    UnknownVm {
        /// The id.
        vm: VmId,
    },
    /// Hyper-V refused the change.
    #[error("Hyper-V did not change the policy: {why}")]
    Refused {
        /// The reason.
        why: String,
    },
}

/// Enables or disables a service for one virtual machine of Hyper-V, or resets it to the machine's
/// default. Requires a Hyper-V administrator. Takes at most 30 seconds.
///
/// # Errors
///
/// [`PolicyError`] if Hyper-V is missing, has no such machine, refuses the change or does not finish
/// in time.
pub fn set_policy(vm: VmId, service: ServiceId, switch: Switch) -> Result<(), PolicyError> {
    let deadline = Instant::now() + CHANGE_LIMIT;
    let changed = worker::spawn(move || change(vm, service, switch, deadline));
    let too_late = Missing::TimedOut {
        what: "Hyper-V's management",
        service: "vmms",
        after: CHANGE_LIMIT,
    };
    changed.by(deadline).unwrap_or(Err(too_late.into()))
}

/// A reference to an object: its path. The query must select the keys of the object.
#[derive(Debug, Deserialize)]
struct Reference {
    #[serde(rename = "__Path")]
    path: String,
}

/// The fields used of `Msvm_ConcreteJob`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Job {
    job_state: Option<u16>,
    error_description: Option<String>,
}

fn change(
    vm: VmId,
    service: ServiceId,
    switch: Switch,
    deadline: Instant,
) -> Result<(), PolicyError> {
    let hyper_v = Namespace::open(HYPER_V)?;
    // The current settings of the machine, not those of a checkpoint.
    let settings: Vec<Reference> = hyper_v.rows(&format!(
        "SELECT * FROM Msvm_VirtualSystemSettingData WHERE VirtualSystemIdentifier = '{}' \
         AND VirtualSystemType = 'Microsoft:Hyper-V:System:Realized'",
        vm.to_string().to_uppercase()
    ))?;
    let settings = settings.into_iter().next();
    let settings = settings.ok_or(PolicyError::UnknownVm { vm })?;
    let management: Vec<Reference> = hyper_v.rows(&format!("SELECT * FROM {SERVICE}"))?;
    let Some(management) = management.into_iter().next() else {
        return Err(Missing::Rights.into());
    };
    let known: Vec<ServiceSetting> = hyper_v.rows(
        "SELECT InstanceID, Name, EnabledStatePolicy \
         FROM Msvm_GuestCommunicationServiceSettingData",
    )?;
    let known = known.into_iter().find(|setting| {
        let of = setting.instance_id.as_deref().and_then(machine_of);
        let about = setting.name.as_deref().and_then(|id| id.parse().ok());
        of == Some(vm) && about == Some(service)
    });
    let output = match known {
        // Without a setting the default applies already.
        None if switch == Switch::Deferred => return Ok(()),
        None => {
            let text = embedded::setting(None, service, switch);
            let parameters = [
                ("AffectedConfiguration", Variant::from(settings.path)),
                ("GuestServiceSettings", Variant::from(vec![text])),
            ];
            hyper_v.call(
                SERVICE,
                &management.path,
                "AddGuestServiceSettings",
                parameters,
            )?
        }
        Some(known) => {
            let text = embedded::setting(known.instance_id.as_deref(), service, switch);
            let parameters = [("GuestServiceSettings", Variant::from(vec![text]))];
            hyper_v.call(
                SERVICE,
                &management.path,
                "ModifyGuestServiceSettings",
                parameters,
            )?
        }
    };
    finish(&hyper_v, &output, deadline)
}

/// Waits until the job of a method has finished.
fn finish(hyper_v: &Namespace, output: &Output, deadline: Instant) -> Result<(), PolicyError> {
    // Source: the pages of both methods.
    const DONE: u32 = 0;
    const JOB_STARTED: u32 = 4096;
    /// Source: learn.microsoft.com/windows/win32/hyperv_v2/msvm-concretejob, `JobState`: 7 is
    /// completed, 32768 completed with warnings; below 7 it is in progress.
    const COMPLETED: [u16; 2] = [7, 32768];
    match (output.number("ReturnValue"), output.text("Job")) {
        (Some(DONE), _) => Ok(()),
        (Some(JOB_STARTED), Some(job)) => loop {
            let job: Job = hyper_v.object(job)?;
            match job.job_state {
                Some(state) if COMPLETED.contains(&state) => return Ok(()),
                Some(state) if state < COMPLETED[0] && Instant::now() < deadline => {
                    thread::sleep(LIMIT / 50);
                }
                state => {
                    let why = job.error_description.filter(|text| !text.is_empty());
                    let why = why.unwrap_or_else(|| format!("its job is in the state {state:?}"));
                    return Err(PolicyError::Refused { why });
                }
            }
        },
        (number, _) => {
            let why = match number {
                // Source: the vendor-specific codes in learn.microsoft.com/windows/win32/hyperv_v2.
                Some(32769) => "access is denied; run as administrator".to_owned(),
                Some(number) => format!("it returned the code {number}"),
                None => "it returned no code".to_owned(),
            };
            Err(PolicyError::Refused { why })
        }
    }
}

impl From<Fault> for PolicyError {
    fn from(fault: Fault) -> Self {
        Self::Missing(fault.of_hyper_v())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The settings and the management object of Hyper-V, and the result of a call, are references.
    #[test]
    fn an_object_is_found_by_its_path() {
        #[derive(Debug, Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct System {
            name: Option<String>,
        }
        let namespace = Namespace::open(super::super::wmi::SYSTEM).unwrap();
        let paths: Vec<Reference> = namespace
            .rows("SELECT * FROM Win32_OperatingSystem")
            .unwrap();
        let [reference] = &paths[..] else {
            panic!("{paths:?}");
        };
        assert!(
            reference.path.contains("Win32_OperatingSystem"),
            "{reference:?}"
        );
        let system: System = namespace.object(&reference.path).unwrap();
        assert!(system.name.is_some_and(|name| !name.is_empty()));
    }

    #[test]
    fn changing_the_policy_of_an_unknown_machine_fails() {
        let vm = VmId::random();
        let error = set_policy(vm, ServiceId::from_port(2761), Switch::Disabled).unwrap_err();
        let known = [
            // Without Hyper-V, and with it.
            PolicyError::Missing(Missing::HyperV),
            PolicyError::UnknownVm { vm },
            PolicyError::Missing(Missing::Rights),
        ];
        assert!(known.contains(&error), "{error}");
    }
}
