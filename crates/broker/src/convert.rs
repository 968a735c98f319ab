//! Registrations as the registry keeps them and as an operator sees them.

use hvsock_address::{InvalidName, PartitionName, ServiceId};
use hvsock_fabric::{Destination, Verdict};
use hvsock_registry::{AccessRule, Override, Registration};

use crate::model::{
    AccessList, Explanation, NewService, PartitionKind, PartitionState, RefusalReport, Service,
    ServiceOverride, Step,
};

/// The registration that `new` asks for, in the name of `owner`; its id fresh if it names none.
pub(crate) fn registration(
    new: NewService,
    owner: Option<String>,
) -> Result<Registration, InvalidName> {
    let overrides = new.vm.into_iter();
    let vm = overrides.map(|(name, o)| Ok((PartitionName::new(name)?, override_of(o))));
    Ok(Registration {
        enabled: new.enabled,
        bind: rule(new.bind),
        connect: rule(new.connect),
        allow_wildcard_binds: new.allow_wildcard_binds,
        vm: vm.collect::<Result<_, InvalidName>>()?,
        owner,
        creator: new.creator,
        purpose: new.purpose,
        ..Registration::new(new.id.unwrap_or_else(ServiceId::random), new.name)
    })
}

/// What would register `registration` again.
pub(crate) fn new_service(registration: Registration) -> NewService {
    NewService {
        id: Some(registration.id),
        name: registration.name,
        enabled: registration.enabled,
        bind: list(registration.bind),
        connect: list(registration.connect),
        allow_wildcard_binds: registration.allow_wildcard_binds,
        vm: overrides(registration.vm),
        creator: registration.creator,
        purpose: registration.purpose,
    }
}

/// `registration` with what is using it.
pub(crate) fn service(
    registration: Registration,
    in_box: bool,
    listeners: usize,
    connections: usize,
) -> Service {
    Service {
        id: registration.id,
        port: registration.port(),
        alias: registration.id.vsock_alias(),
        name: registration.name,
        enabled: registration.enabled,
        bind: list(registration.bind),
        connect: list(registration.connect),
        allow_wildcard_binds: registration.allow_wildcard_binds,
        vm: overrides(registration.vm),
        owner: registration.owner,
        creator: registration.creator,
        purpose: registration.purpose,
        lease: registration.lease,
        in_box,
        listeners,
        connections,
    }
}

/// An explanation for an operator.
pub(crate) fn explanation(explanation: &hvsock_fabric::Explanation) -> Explanation {
    let refusal = explanation
        .verdict
        .as_ref()
        .err()
        .map(|refusal| RefusalReport {
            reason: refusal.label().into(),
            message: refusal.to_string(),
            errno: refusal.errno(),
            fix: explanation.fix.clone(),
        });
    let steps = explanation.steps.iter().map(|step| Step {
        question: step.question.clone(),
        answer: step.answer.clone(),
        pass: step.pass,
    });
    Explanation {
        verdict: verdict(explanation),
        refusal,
        steps: steps.collect(),
    }
}

/// What would happen, in one sentence.
pub(crate) fn verdict(explanation: &hvsock_fabric::Explanation) -> String {
    match &explanation.verdict {
        Ok(Verdict::Connect { destination, .. }) => match destination {
            Destination::Listener(_) => "the connect would succeed".into(),
            Destination::Guest => {
                "the connect would go to the guest, which takes it if somebody in it listens".into()
            }
        },
        Ok(Verdict::Listen) => "the listen would succeed".into(),
        Err(refusal) => format!("refused: {refusal}"),
    }
}

impl From<hvsock_fabric::PartitionKind> for PartitionKind {
    fn from(kind: hvsock_fabric::PartitionKind) -> Self {
        match kind {
            hvsock_fabric::PartitionKind::Host => Self::Host,
            hvsock_fabric::PartitionKind::Vm => Self::Vm,
            hvsock_fabric::PartitionKind::Container => Self::Container,
        }
    }
}

impl From<hvsock_fabric::PartitionState> for PartitionState {
    fn from(state: hvsock_fabric::PartitionState) -> Self {
        match state {
            hvsock_fabric::PartitionState::Off => Self::Off,
            hvsock_fabric::PartitionState::Running => Self::Running,
            hvsock_fabric::PartitionState::Paused => Self::Paused,
        }
    }
}

impl From<PartitionState> for hvsock_fabric::PartitionState {
    fn from(state: PartitionState) -> Self {
        match state {
            PartitionState::Off => Self::Off,
            PartitionState::Running => Self::Running,
            PartitionState::Paused => Self::Paused,
        }
    }
}

fn rule(list: AccessList) -> AccessRule {
    AccessRule {
        users: list.users,
        groups: list.groups,
        partitions: list.partitions,
    }
}

fn list(rule: AccessRule) -> AccessList {
    AccessList {
        users: rule.users,
        groups: rule.groups,
        partitions: rule.partitions,
    }
}

fn override_of(o: ServiceOverride) -> Override {
    Override {
        enabled: o.enabled,
        bind: rule(o.bind),
        connect: rule(o.connect),
        allow_wildcard_binds: o.allow_wildcard_binds,
    }
}

fn overrides(
    vm: std::collections::BTreeMap<PartitionName, Override>,
) -> std::collections::BTreeMap<String, ServiceOverride> {
    let overrides = vm.into_iter().map(|(name, o)| {
        let o = ServiceOverride {
            enabled: o.enabled,
            bind: list(o.bind),
            connect: list(o.connect),
            allow_wildcard_binds: o.allow_wildcard_binds,
        };
        (name.to_string(), o)
    });
    overrides.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_survives_the_way_out_and_in_but_for_its_owner() {
        let text = r#"{"name": "Backup", "id": "0b2f1f0e-0000-4000-8000-000000000001",
            "enabled": false, "bind": {"users": ["alice"]}, "connect": {"partitions": []},
            "allow_wildcard_binds": false, "creator": "tool", "purpose": "nightly",
            "vm": {"web": {"enabled": true, "connect": {"groups": ["ops"]}}}}"#;
        let new: NewService = serde_json::from_str(text).unwrap();
        let kept = registration(new.clone(), Some("bob".into())).unwrap();
        assert_eq!(kept.owner.as_deref(), Some("bob"));
        assert_eq!(new_service(kept.clone()), new);
        let seen = service(kept, false, 1, 2);
        assert_eq!((seen.vm, seen.listeners, seen.connections), (new.vm, 1, 2));
    }

    #[test]
    fn an_override_for_what_is_no_name_is_refused() {
        let text = r#"{"name": "Backup", "vm": {"../etc": {}}}"#;
        assert!(registration(serde_json::from_str(text).unwrap(), None).is_err());
    }
}
