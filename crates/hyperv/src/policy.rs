//! Policies that enable or disable a service for one virtual machine.

use hvsock_address::{ServiceId, VmId};

/// The policy of one virtual machine for one service.
///
/// Source: `Msvm_GuestCommunicationServiceSettingData`, since Windows 10 and Windows Server 2016
/// (learn.microsoft.com/windows/win32/hyperv_v2/msvm-guestcommunicationservicesettingdata).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServicePolicy {
    /// The virtual machine.
    pub vm: VmId,
    /// The service; `None` is the machine's default for services without a policy
    /// (`DefaultEnabledStatePolicy` of `Msvm_GuestServiceInterfaceComponentSettingData`).
    pub service: Option<ServiceId>,
    /// The policy.
    pub switch: Switch,
}

/// `EnabledStatePolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Switch {
    /// The service is enabled for the virtual machine (2).
    Enabled,
    /// The service is disabled (3).
    Disabled,
    /// The machine's default decides (8).
    Deferred,
}

impl Switch {
    /// The policy with this number; `None` if it is unknown.
    pub fn of_number(number: u16) -> Option<Self> {
        match number {
            2 => Some(Self::Enabled),
            3 => Some(Self::Disabled),
            8 => Some(Self::Deferred),
            _ => None,
        }
    }

    /// The number of this policy.
    pub fn number(self) -> u16 {
        match self {
            Self::Enabled => 2,
            Self::Disabled => 3,
            Self::Deferred => 8,
        }
    }
}

/// Whether the policies enable a service for a virtual machine. `None` means no policy: the service
/// is enabled.
pub(crate) fn switch(policies: &[ServicePolicy], vm: VmId, service: ServiceId) -> Option<bool> {
    let of = |service| {
        let found = policies
            .iter()
            .find(|policy| policy.vm == vm && policy.service == service);
        match found.map(|policy| policy.switch) {
            Some(Switch::Enabled) => Some(true),
            Some(Switch::Disabled) => Some(false),
            Some(Switch::Deferred) | None => None,
        }
    };
    of(Some(service)).or_else(|| of(None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_survives_a_round_trip() {
        let known = (0..=u16::MAX).filter_map(|n| Some((n, Switch::of_number(n)?)));
        let known: Vec<_> = known.collect();
        assert_eq!(known.len(), 3);
        assert!(known.iter().all(|(n, switch)| switch.number() == *n));
    }

    #[test]
    fn the_default_of_the_machine_applies_without_a_policy_or_if_it_is_deferred() {
        use Switch::{Deferred, Disabled, Enabled};
        let (vm, service) = (VmId::random(), ServiceId::random());
        let policy = |service, switch| ServicePolicy {
            vm,
            service,
            switch,
        };
        for (own, default, want) in [
            (None, None, None),
            (None, Some(Disabled), Some(false)),
            (Some(Deferred), Some(Disabled), Some(false)),
            (Some(Deferred), None, None),
            (Some(Enabled), Some(Disabled), Some(true)),
            (Some(Disabled), Some(Enabled), Some(false)),
        ] {
            let policies = own.map(|own| policy(Some(service), own));
            let policies = policies
                .into_iter()
                .chain(default.map(|switch| policy(None, switch)));
            let policies: Vec<_> = policies.collect();
            assert_eq!(switch(&policies, vm, service), want, "{own:?} {default:?}");
            assert_eq!(switch(&policies, VmId::random(), service), None);
        }
    }
}
