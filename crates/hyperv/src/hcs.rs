//! Parses the list of the host compute service (HCS). It runs virtual machines that Hyper-V Manager
//! does not show, such as WSL's.

use hvsock_address::VmId;
use serde::Deserialize;

use crate::{Vm, VmKind, VmState};

/// The answer of the host compute service is not a list of compute systems.
#[derive(Debug, thiserror::Error)]
#[error("the list of the host compute service is invalid: {0}")]
pub struct ParseComputeSystemsError(serde_json::Error);

impl From<serde_json::Error> for ParseComputeSystemsError {
    fn from(error: serde_json::Error) -> Self {
        Self(error)
    }
}

/// A compute system: the fields used of the schema's `Properties`.
///
/// Source: learn.microsoft.com/virtualization/api/hcs/schemareference#Properties, and hcsshim's
/// internal/hcs/schema1 (`ContainerProperties`), the schema of the older `vmcompute.dll`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ComputeSystem {
    id: Option<String>,
    runtime_id: Option<String>,
    owner: Option<String>,
    state: Option<String>,
    system_type: Option<String>,
}

/// Parses the JSON of `HcsEnumerateComputeSystems` and returns the virtual machines in it. Leaves out
/// containers and systems without a GUID.
///
/// # Errors
///
/// [`ParseComputeSystemsError`] if `json` is not a list of compute systems.
pub fn compute_systems(json: &str) -> Result<Vec<Vm>, ParseComputeSystemsError> {
    // The service returns `null` for an empty list.
    let systems: Option<Vec<ComputeSystem>> = serde_json::from_str(json)?;
    let systems = systems.unwrap_or_default();
    Ok(systems.into_iter().filter_map(ComputeSystem::vm).collect())
}

impl ComputeSystem {
    fn vm(self) -> Option<Vm> {
        // Both schemas use `VirtualMachine`; the other type is `Container`.
        if self.system_type.as_deref() != Some("VirtualMachine") {
            return None;
        }
        // The runtime id is the VmId of sockets (hcsshim, internal/uvm: `RuntimeID`). The machine's
        // own id is a name: for Hyper-V the same GUID, for older versions of WSL `WSL-…`.
        let guid = |text: &Option<String>| text.as_deref()?.parse::<VmId>().ok();
        let id = guid(&self.runtime_id).filter(|id| *id != VmId::ZERO);
        let id = id
            .or_else(|| guid(&self.id))
            .filter(|id| !id.is_well_known())?;
        let kind = match self.owner.as_deref() {
            // The owner in the output of hcsdiag (microsoft/WSL#4214, #4561).
            Some("WSL") => VmKind::Wsl,
            Some("VMMS") => VmKind::HyperV,
            owner => VmKind::Utility {
                owner: owner.filter(|owner| !owner.is_empty()).map(str::to_owned),
            },
        };
        let name = match &kind {
            VmKind::Wsl => "WSL".to_owned(),
            _ => self.id.unwrap_or_else(|| id.to_string()),
        };
        Some(Vm {
            name,
            id,
            state: state(self.state.as_deref()),
            kind,
        })
    }
}

/// The schema's `State`.
fn state(word: Option<&str>) -> VmState {
    match word {
        Some("Created" | "Stopped") => VmState::Off,
        Some("Running") => VmState::Running,
        Some("Paused") => VmState::Paused,
        Some("SavedAsTemplate") => VmState::Saved,
        _ => VmState::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The output of `hcsdiag list` in microsoft/WSL#4214, in the format of the service.
    const LIST: &str = r#"[
        {"Id":"AD289D34-3DA4-479F-AF67-7DBA64BC6EAF","SystemType":"VirtualMachine","Owner":"VMMS",
         "RuntimeId":"ad289d34-3da4-479f-af67-7dba64bc6eaf","State":"Created"},
        {"Id":"WSL-E71D44E4-9F21-4AC9-92E1-77F8AF8A2DB9","SystemType":"VirtualMachine",
         "Owner":"WSL","RuntimeId":"afd7952d-e55b-5ead-a889-fc7922c6458d","State":"Running",
         "RuntimeOsType":"Linux","SomethingNew":{"Deep":[1,2]}},
        {"Id":"7b7d2ea9c0b3","SystemType":"Container","Owner":"docker",
         "RuntimeId":"3ed0ac22-1c1c-4d0a-9d3c-ed5f2f6bd3a4","State":"Running"},
        {"Id":"box","SystemType":"VirtualMachine","Owner":"",
         "RuntimeId":"5a5e0c0f-0f3a-4f1b-9a39-ef0a0cd9b2a7","State":"Paused"},
        {"Id":"no id","SystemType":"VirtualMachine","State":"Running"},
        {}
    ]"#;

    #[test]
    fn virtual_machines_are_filtered_from_the_list() {
        let vms = compute_systems(LIST).unwrap();
        let found: Vec<_> = vms
            .iter()
            .map(|vm| (vm.name.as_str(), vm.state, vm.kind.to_string()))
            .collect();
        assert_eq!(
            found,
            [
                (
                    "AD289D34-3DA4-479F-AF67-7DBA64BC6EAF",
                    VmState::Off,
                    "hyper-v".to_owned()
                ),
                ("WSL", VmState::Running, "wsl".to_owned()),
                ("box", VmState::Paused, "utility".to_owned()),
            ]
        );
        let wsl = "afd7952d-e55b-5ead-a889-fc7922c6458d".parse();
        assert_eq!(Ok(vms[1].id), wsl);
    }

    #[test]
    fn null_is_an_empty_list_and_other_text_is_an_error() {
        for empty in ["[]", "null", " [ ] "] {
            assert_eq!(compute_systems(empty).unwrap(), []);
        }
        for bad in ["", "{}", "[1]", "[{\"Id\":7}]", "[", "\0"] {
            let text = compute_systems(bad).unwrap_err().to_string();
            assert!(
                text.starts_with("the list of the host compute service"),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_an_error(json in "(?s).{0,200}|\\[(\\{\"Id\":.{0,20}\\}){0,3}\\]") {
            let _ = compute_systems(&json);
        }

        #[test]
        fn no_machine_has_a_well_known_id(
            ids in proptest::collection::vec(proptest::option::of("[0-9a-fA-F{}-]{0,40}|.{0,20}"), 0..6),
            word in 0..VmId::WELL_KNOWN.len(),
        ) {
            let known = VmId::WELL_KNOWN[word].1.to_string();
            let systems: Vec<_> = ids.iter().map(|id| serde_json::json!({
                "Id": id, "RuntimeId": &known, "SystemType": "VirtualMachine",
            })).collect();
            let json = serde_json::Value::from(systems).to_string();
            for vm in compute_systems(&json).unwrap() {
                prop_assert!(!vm.id.is_well_known());
            }
        }
    }
}
