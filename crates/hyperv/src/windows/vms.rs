//! Lists the virtual machines of this host.
//!
//! WMI lists the machines of Hyper-V. The host compute service lists the others, such as WSL's, for
//! administrators. The Windows registry lists those as well, for every user and without the owner.
//! The command line of a WSL helper process contains the id of WSL's machine.

use std::time::{Duration, Instant};

use hvsock_address::VmId;
use serde::Deserialize;
use windows_registry::{Key, LOCAL_MACHINE};

use super::wmi::{Fault, HYPER_V, Namespace, SYSTEM};
use super::worker::{self, Query};
use crate::rows::{self, ComputerSystem, DefaultSetting, ServiceSetting};
use crate::{Missing, ServicePolicy, Vm, VmKind, VmState, compute_systems};

/// The key of the running compute systems. It exists only while there are any.
///
/// Undocumented. Used by users of linuxkit/virtsock such as rancher-sandbox/rancher-desktop-networking
/// (`vsock.GetVMGUID`) and by nbdd0121/wsld (`vmid.rs`), where type 2 is a virtual machine.
const RUNNING: &str =
    r"SOFTWARE\Microsoft\Windows NT\CurrentVersion\HostComputeService\VolatileStore\ComputeSystem";

/// The time limit for all queries together. WMI's service may have to start first.
pub(super) const LIMIT: Duration = Duration::from_secs(5);

/// Queries in flight.
pub(super) struct Queries {
    hyper_v: Query<Result<HyperV, Missing>>,
    compute_service: Query<Result<Vec<Vm>, Missing>>,
    wsl: Query<Option<VmId>>,
}

/// The results of the queries.
pub(super) struct Found {
    pub(super) vms: Vec<Vm>,
    pub(super) policies: Vec<ServicePolicy>,
    pub(super) missing: Vec<Missing>,
}

/// The results of WMI.
#[derive(Default)]
struct HyperV {
    vms: Vec<Vm>,
    policies: Vec<ServicePolicy>,
    missing: Option<Missing>,
}

/// Starts all queries at once.
pub(super) fn query() -> Queries {
    Queries {
        hyper_v: worker::spawn(hyper_v),
        compute_service: worker::spawn(others),
        wsl: worker::spawn(|| wsl().unwrap_or_default()),
    }
}

impl Queries {
    /// The results that arrive before `deadline`.
    pub(super) fn by(self, deadline: Instant) -> Found {
        let too_late = |what, service| Missing::TimedOut {
            what,
            service,
            after: LIMIT,
        };
        let hyper_v = self.hyper_v.by(deadline);
        let hyper_v = hyper_v.unwrap_or_else(|| Err(too_late("Hyper-V's management", "vmms")));
        let others = self.compute_service.by(deadline);
        let others =
            others.unwrap_or_else(|| Err(too_late("the host compute service", "vmcompute")));
        let wsl = self.wsl.by(deadline).flatten();
        let mut missing = Vec::new();
        let hyper_v = hyper_v.unwrap_or_else(|why| HyperV {
            missing: Some(why),
            ..HyperV::default()
        });
        missing.extend(hyper_v.missing);
        let others = others.unwrap_or_else(|why| {
            missing.push(why);
            in_registry()
        });
        Found {
            vms: rows::merge(hyper_v.vms, others, wsl),
            policies: hyper_v.policies,
            missing,
        }
    }
}

fn hyper_v() -> Result<HyperV, Missing> {
    let namespace = Namespace::open(HYPER_V).map_err(Fault::of_hyper_v)?;
    let query = "SELECT Name, ElementName, EnabledState FROM Msvm_ComputerSystem";
    let machines: Vec<ComputerSystem> = namespace.rows(query).map_err(Fault::of_hyper_v)?;
    let vms = rows::virtual_machines(machines)?;
    // A user who may see the machines may see the policies. Otherwise report the machines alone.
    let (policies, missing) = match policies(&namespace) {
        Ok(policies) => (policies, None),
        // Older versions of Windows do not have these settings.
        Err(Fault::Absent) => (Vec::new(), None),
        Err(fault) => (Vec::new(), Some(fault.of_hyper_v())),
    };
    Ok(HyperV {
        vms,
        policies,
        missing,
    })
}

fn policies(namespace: &Namespace) -> Result<Vec<ServicePolicy>, Fault> {
    let services: Vec<ServiceSetting> = namespace.rows(
        "SELECT InstanceID, Name, EnabledStatePolicy \
         FROM Msvm_GuestCommunicationServiceSettingData",
    )?;
    let defaults: Vec<DefaultSetting> = namespace.rows(
        "SELECT InstanceID, DefaultEnabledStatePolicy \
         FROM Msvm_GuestServiceInterfaceComponentSettingData",
    )?;
    Ok(rows::policies(services, defaults))
}

/// The machines of the host compute service, from its own list or else from the registry.
fn others() -> Result<Vec<Vm>, Missing> {
    let failed = |why: String| Err(Missing::ComputeService { why });
    match hvsock_sys::compute_systems(LIMIT) {
        Ok(list) => compute_systems(&list).or_else(|error| failed(error.to_string())),
        // Without the rights or without the service, the registry lists what runs.
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::Unsupported
            ) =>
        {
            Ok(in_registry())
        }
        Err(error) => failed(error.to_string()),
    }
}

/// The running machines of the host compute service, from the registry.
pub(super) fn in_registry() -> Vec<Vm> {
    running(LOCAL_MACHINE, RUNNING)
}

/// The virtual machines among the compute systems under a key.
fn running(root: &Key, path: &str) -> Vec<Vm> {
    /// `ComputeSystemType` of a virtual machine.
    const VIRTUAL_MACHINE: u32 = 2;
    let Ok(key) = root.open(path) else {
        return Vec::new();
    };
    let vms = key.keys().into_iter().flatten().filter_map(|name| {
        let kind = key.open(&name).ok()?.get_u32("ComputeSystemType").ok()?;
        let id = name.parse().ok().filter(|_| kind == VIRTUAL_MACHINE)?;
        Some(Vm {
            name,
            id,
            state: VmState::Running,
            kind: VmKind::Utility { owner: None },
        })
    });
    vms.filter(|vm| !vm.id.is_well_known()).collect()
}

/// The id of WSL's machine, if it runs for this user.
fn wsl() -> Result<Option<VmId>, Fault> {
    let query = "SELECT CommandLine FROM Win32_Process \
                 WHERE Name = 'wslhost.exe' OR Name = 'wslrelay.exe'";
    let processes: Vec<Process> = Namespace::open(SYSTEM)?.rows(query)?;
    let lines = processes.iter().filter_map(|it| it.command_line.as_deref());
    Ok(lines.into_iter().find_map(rows::wsl_machine))
}

/// The fields used of `Win32_Process`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Process {
    command_line: Option<String>,
}

#[cfg(test)]
mod tests {
    use hvsock_address::ServiceId;
    use windows_registry::CURRENT_USER;

    use super::*;

    #[test]
    fn running_compute_systems_are_read_from_the_registry() {
        let path = format!(r"Software\hvsock-test-{}", ServiceId::random());
        assert_eq!(running(CURRENT_USER, &path), []);
        let key = CURRENT_USER.create(&path).unwrap();
        let (vm, container) = (VmId::random(), VmId::random());
        let named = vm.to_string().to_uppercase();
        key.create(&named)
            .unwrap()
            .set_u32("ComputeSystemType", 2)
            .unwrap();
        let other = key.create(container.to_string()).unwrap();
        other.set_u32("ComputeSystemType", 1).unwrap();
        let strange = key.create("no GUID").unwrap();
        strange.set_u32("ComputeSystemType", 2).unwrap();
        key.create(VmId::random().to_string()).unwrap();
        let found = running(CURRENT_USER, &path);
        CURRENT_USER.remove_tree(&path).unwrap();
        let [found] = &found[..] else {
            panic!("{found:?}");
        };
        assert_eq!((found.id, found.state), (vm, VmState::Running));
    }

    #[test]
    fn a_source_that_does_not_answer_is_missing_and_delays_no_other() {
        let start = Instant::now();
        let found = query().by(start + LIMIT);
        assert!(start.elapsed() < LIMIT * 2);
        // Without Hyper-V nothing else is missing.
        if let Some(Missing::HyperV) = found.missing.first() {
            assert_eq!(found.missing.len(), 1);
            assert!(found.vms.iter().all(|vm| vm.kind != VmKind::HyperV));
            assert_eq!(found.policies, []);
        }
    }
}
