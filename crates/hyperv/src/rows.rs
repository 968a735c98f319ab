//! Interprets the rows of WMI queries. It makes no queries, so it is tested on every system.

use hvsock_address::{ServiceId, VmId};
use serde::Deserialize;

use crate::{Missing, ServicePolicy, Switch, Vm, VmKind, VmState};

/// The fields used of `Msvm_ComputerSystem`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ComputerSystem {
    pub(crate) name: Option<String>,
    pub(crate) element_name: Option<String>,
    pub(crate) enabled_state: Option<u16>,
}

/// The fields used of `Msvm_GuestCommunicationServiceSettingData`.
///
/// A field that is missing from the query is an error of the whole query. So each query has its own
/// type.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ServiceSetting {
    #[serde(rename = "InstanceID")]
    pub(crate) instance_id: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) enabled_state_policy: Option<u16>,
}

/// The fields used of `Msvm_GuestServiceInterfaceComponentSettingData`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DefaultSetting {
    #[serde(rename = "InstanceID")]
    pub(crate) instance_id: Option<String>,
    pub(crate) default_enabled_state_policy: Option<u16>,
}

/// The virtual machines among the computer systems.
///
/// The list also contains the host. A user without the rights gets an empty list instead of an
/// error, so an empty list means missing rights.
pub(crate) fn virtual_machines(rows: Vec<ComputerSystem>) -> Result<Vec<Vm>, Missing> {
    if rows.is_empty() {
        return Err(Missing::Rights);
    }
    let vms = rows.into_iter().filter_map(|row| {
        // The `Name` of a machine is its GUID, and that of the host its NetBIOS name. `Caption` also
        // distinguishes them, but in the language of the system.
        let id: VmId = row.name?.parse().ok()?;
        Some(Vm {
            name: row.element_name.unwrap_or_default(),
            id,
            state: row
                .enabled_state
                .map_or(VmState::Unknown, VmState::of_enabled_state),
            kind: VmKind::HyperV,
        })
    });
    Ok(vms.filter(|vm| !vm.id.is_well_known()).collect())
}

/// The policies among the settings of machines. Settings of templates are left out.
pub(crate) fn policies(
    services: Vec<ServiceSetting>,
    defaults: Vec<DefaultSetting>,
) -> Vec<ServicePolicy> {
    let services = services.into_iter().filter_map(|row| {
        Some(ServicePolicy {
            vm: machine_of(&row.instance_id?)?,
            service: Some(row.name?.parse::<ServiceId>().ok()?),
            switch: Switch::of_number(row.enabled_state_policy?)?,
        })
    });
    let defaults = defaults.into_iter().filter_map(|row| {
        Some(ServicePolicy {
            vm: machine_of(&row.instance_id?)?,
            service: None,
            switch: Switch::of_number(row.default_enabled_state_policy?)?,
        })
    });
    services.chain(defaults).collect()
}

/// The machine of the setting with this `InstanceID`: `Microsoft:GUID\…`.
///
/// Source: learn.microsoft.com/windows/win32/hyperv_v2/msvm-computersystem (`InstanceID`). The
/// settings of a checkpoint have its GUID instead, and those of a template the word `Definition`.
pub(crate) fn machine_of(instance_id: &str) -> Option<VmId> {
    let rest = instance_id.strip_prefix("Microsoft:")?;
    let guid = rest.split('\\').next().unwrap_or_default();
    guid.parse().ok().filter(|id: &VmId| !id.is_well_known())
}

/// The id of WSL's machine, from the command line of WSL's helper process.
///
/// Source: microsoft/WSL, src/windows/wslhost/main.cpp and src/windows/common/wslhost.h:
/// `--vm-id {GUID}` in the versions up to 2.x, an option with the value `hcs:{GUID}` since then
/// (`GuestConnector::Serialize`); `wslrelay.exe` likewise. Also parsed by Biswa96/wslbridge2#43.
pub(crate) fn wsl_machine(command_line: &str) -> Option<VmId> {
    ["--vm-id", "hcs:"].iter().find_map(|mark| {
        let (_, rest) = command_line.split_once(mark)?;
        let guid = rest.split([' ', '=', '"']).find(|word| !word.is_empty())?;
        guid.parse().ok().filter(|id: &VmId| !id.is_well_known())
    })
}

/// Merges the lists: Hyper-V's machines first, then the others, then WSL's, which is identified by
/// its id if the host compute service named no owner.
pub(crate) fn merge(hyper_v: Vec<Vm>, others: Vec<Vm>, wsl: Option<VmId>) -> Vec<Vm> {
    let mut vms = hyper_v;
    for other in others {
        if !vms.iter().any(|vm| vm.id == other.id) {
            vms.push(other);
        }
    }
    if let Some(id) = wsl {
        let known = vms.iter_mut().find(|vm| vm.id == id);
        let wsl = Vm {
            name: "WSL".to_owned(),
            id,
            // It has a helper process, so it runs, unless another source reports its state.
            state: known.as_ref().map_or(VmState::Running, |vm| vm.state),
            kind: VmKind::Wsl,
        };
        match known {
            Some(vm) if vm.kind == VmKind::HyperV => {}
            Some(vm) => *vm = wsl,
            None => vms.push(wsl),
        }
    }
    vms
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "AD289D34-3DA4-479F-AF67-7DBA64BC6EAF";

    fn row(name: &str, element_name: &str, state: u16) -> ComputerSystem {
        ComputerSystem {
            name: Some(name.to_owned()),
            element_name: Some(element_name.to_owned()),
            enabled_state: Some(state),
        }
    }

    fn setting(instance_id: &str, service: &str, policy: u16) -> ServiceSetting {
        ServiceSetting {
            instance_id: Some(instance_id.to_owned()),
            name: Some(service.to_owned()),
            enabled_state_policy: Some(policy),
        }
    }

    fn default(instance_id: &str, policy: u16) -> DefaultSetting {
        DefaultSetting {
            instance_id: Some(instance_id.to_owned()),
            default_enabled_state_policy: Some(policy),
        }
    }

    #[test]
    fn a_row_with_a_guid_as_name_is_a_machine() {
        let rows = vec![row("DESKTOP-1", "DESKTOP-1", 2), row(ID, "My VM", 3)];
        let vms = virtual_machines(rows).unwrap();
        assert_eq!(vms.len(), 1);
        let vm = &vms[0];
        assert_eq!((vm.name.as_str(), vm.state), ("My VM", VmState::Off));
        assert_eq!(vm.id, ID.parse().unwrap());
    }

    #[test]
    fn an_empty_list_without_the_host_means_missing_rights() {
        assert_eq!(virtual_machines(vec![]), Err(Missing::Rights));
        let none = virtual_machines(vec![row("DESKTOP-1", "", 2)]);
        assert_eq!(none, Ok(vec![]));
    }

    #[test]
    fn every_state_number_maps_to_a_state() {
        for (number, state) in [
            (0, VmState::Unknown),
            (2, VmState::Running),
            (3, VmState::Off),
            (4, VmState::Stopping),
            (6, VmState::Saved),
            (9, VmState::Paused),
            (10, VmState::Starting),
            (32768, VmState::Paused),
            (32769, VmState::Saved),
            (32773, VmState::Stopping),
            (32777, VmState::Starting),
            (32785, VmState::Paused),
            (u16::MAX, VmState::Unknown),
        ] {
            assert_eq!(VmState::of_enabled_state(number), state, "{number}");
        }
    }

    #[test]
    fn policies_of_templates_and_invalid_settings_are_left_out() {
        let strange = "{0000ac9-facb-11e6-bd58-64006a7986d3}";
        let good = "999e53d4-3d5c-4c3e-8779-bed06ec056e1";
        let of = format!("Microsoft:{ID}\\6C09BB55-D683-4DA0-8931-C9BF705F6480\\{good}");
        let template = "Microsoft:Definition\\6C09BB55-D683-4DA0-8931-C9BF705F6480\\Default";
        let found = policies(
            vec![
                setting(&of, good, 3),
                setting(&of, strange, 3),
                setting(&of, good, 5),
                setting(template, good, 2),
                ServiceSetting::default(),
            ],
            vec![
                default(&of, 2),
                default(template, 3),
                DefaultSetting::default(),
            ],
        );
        let vm = ID.parse().unwrap();
        let want = [
            (Some(good.parse().unwrap()), Switch::Disabled),
            (None, Switch::Enabled),
        ]
        .map(|(service, switch)| ServicePolicy {
            vm,
            service,
            switch,
        });
        assert_eq!(found, want);
    }

    #[test]
    fn the_id_of_wsls_machine_is_parsed_from_a_command_line() {
        let id: VmId = ID.parse().unwrap();
        for line in [
            format!("\"C:\\Program Files\\WSL\\wslhost.exe\" --vm-id {{{ID}}} --handle 12"),
            format!("wslhost.exe --distro-id {{0f0f}} --vm-id {ID}"),
            format!("wslhost.exe \"--vm-id\" \"{ID}\""),
            format!("wslrelay.exe --mode 1 --vm-id {{{ID}}}"),
            format!("wslhost.exe --guest-connection hcs:{{{ID}}} --handle 12"),
        ] {
            assert_eq!(wsl_machine(&line), Some(id), "{line}");
        }
        for line in [
            "",
            "wslhost.exe",
            "wslhost.exe --vm-id",
            "x --vm-id nonsense",
        ] {
            assert_eq!(wsl_machine(line), None, "{line}");
        }
    }

    #[test]
    fn no_machine_is_listed_twice() {
        let vm = |id: &str, name: &str, kind| Vm {
            name: name.to_owned(),
            id: id.parse().unwrap(),
            state: VmState::Paused,
            kind,
        };
        let other = "afd7952d-e55b-5ead-a889-fc7922c6458d";
        let utility = || VmKind::Utility { owner: None };
        let all = merge(
            vec![vm(ID, "My VM", VmKind::HyperV)],
            vec![vm(ID, ID, VmKind::HyperV), vm(other, other, utility())],
            Some(other.parse().unwrap()),
        );
        let names: Vec<_> = all.iter().map(|vm| (vm.name.as_str(), &vm.kind)).collect();
        assert_eq!(names, [("My VM", &VmKind::HyperV), ("WSL", &VmKind::Wsl)]);
        assert_eq!(all[1].state, VmState::Paused);
        let all = merge(vec![], vec![], Some(other.parse().unwrap()));
        assert_eq!(all[0].state, VmState::Running);
    }

    proptest! {
        #[test]
        fn any_row_is_parsed_without_a_panic(
            name in proptest::option::of("(?s).{0,60}"), state: Option<u16>, policy: Option<u16>,
        ) {
            let text = name.clone().unwrap_or_default();
            let row = ComputerSystem {
                name: name.clone(),
                element_name: name.clone(),
                enabled_state: state,
            };
            prop_assert!(virtual_machines(vec![row]).is_ok());
            let instance_id = name.clone().map(|text| format!("Microsoft:{text}"));
            policies(
                vec![ServiceSetting {
                    instance_id: instance_id.clone(),
                    name,
                    enabled_state_policy: policy,
                }],
                vec![DefaultSetting { instance_id, default_enabled_state_policy: policy }],
            );
            wsl_machine(&format!("--vm-id{text}"));
        }
    }
}
