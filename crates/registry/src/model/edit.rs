//! Changes of an operator to the settings of a registration, as values.
//!
//! [`Edit::apply`] is pure, so that every store makes the same changes.

use hvsock_address::PartitionName;

use super::{AccessRule, Action, Defaults, Override, Policy, Registration, TransportSetting};

/// A change to the settings of a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Enables or disables the service for all partitions.
    SetEnabled {
        /// Whether it is enabled afterwards.
        enabled: bool,
        /// Also for the children that have another setting of their own. Otherwise these keep it.
        everywhere: bool,
    },
    /// Enables or disables the service for one child.
    SetEnabledFor {
        /// The child.
        child: PartitionName,
        /// If true, the child has no setting of its own afterwards and follows the registration.
        enabled: bool,
        /// Keeps it enabled for this child also while it is disabled for all others.
        exception: bool,
    },
    /// Sets how the bytes of connections travel.
    SetTransport {
        /// The child whose override to change; `None` changes the registration.
        child: Option<PartitionName>,
        /// The setting. `None` removes it, so that the level below applies.
        transport: Option<TransportSetting>,
    },
    /// Adds to the lists of an access rule.
    Allow(AccessEdit),
    /// Removes from the lists of an access rule.
    Deny(AccessEdit),
    /// Removes all access rules, so that those of the level below apply: of one child, or of the
    /// registration and all children. Whether the service is enabled, and its transport, do not change.
    Reset {
        /// The child.
        child: Option<PartitionName>,
    },
}

/// Whom to add to an access rule, or to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessEdit {
    /// The action that the rule controls.
    pub action: Action,
    /// The child whose override to change; `None` changes the registration.
    pub child: Option<PartitionName>,
    /// Also changes the overrides that have a rule of their own. For the registration.
    pub everywhere: bool,
    /// Users of the partition that owns the registry.
    pub users: Vec<Subject>,
    /// Groups of that partition.
    pub groups: Vec<Subject>,
    /// Children of that partition.
    pub partitions: Vec<Subject>,
    /// Every user of a child that may listen, and not its root only. For [`Action::Bind`].
    pub any_partition_user: bool,
}

/// An entry of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The entry to add. `*` is everyone.
    pub entry: String,
    /// Other spellings of the same user, group or child: its number, name or id.
    pub aliases: Vec<String>,
    /// The number of a user or group. An entry with leading zeros has the same one.
    pub number: Option<u32>,
}

/// What a registration inherits from.
#[derive(Clone, Copy, Debug)]
pub struct Inherited<'a> {
    /// The built-in registration of the same service.
    pub built_in: Option<&'a Registration>,
    /// The settings for what is left out.
    pub defaults: &'a Defaults,
}

/// Why an edit cannot be made. Nothing is changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EditError {
    /// The service is disabled for all partitions, and the child is to follow that.
    #[error("it is disabled for all partitions, so it stays disabled for {child}")]
    DisabledForAll {
        /// The child.
        child: PartitionName,
    },
    /// The service is disabled for a virtual machine, and a container in it is to follow that.
    #[error("it is disabled for {vm}, so it stays disabled for {child}")]
    DisabledForVm {
        /// The virtual machine.
        vm: PartitionName,
        /// The container.
        child: PartitionName,
    },
    /// Everyone is allowed, and a list cannot exclude one of them.
    #[error(
        "{action}.{list} has \"*\", which allows everyone, and a list cannot exclude {entry}; deny \
         \"*\" first, and then allow those who may"
    )]
    Everyone {
        /// The action.
        action: Action,
        /// The list: `users`, `groups` or `partitions`.
        list: &'static str,
        /// The entry to remove.
        entry: String,
    },
}

const EVERYONE: &str = "*";

impl Subject {
    /// An entry without other spellings.
    pub fn new(entry: impl Into<String>) -> Self {
        Self {
            entry: entry.into(),
            aliases: Vec::new(),
            number: None,
        }
    }

    /// Whether an entry of a list is this one.
    pub fn is(&self, entry: &str) -> bool {
        let is_number = || self.number.is_some() && entry.parse().ok() == self.number;
        self.entry == entry || self.aliases.iter().any(|alias| alias == entry) || is_number()
    }
}

impl Edit {
    /// The child whose override this changes.
    pub fn child(&self) -> Option<&PartitionName> {
        match self {
            Self::SetEnabled { .. } => None,
            Self::SetEnabledFor { child, .. } => Some(child),
            Self::Allow(edit) | Self::Deny(edit) => edit.child.as_ref(),
            Self::SetTransport { child, .. } | Self::Reset { child } => child.as_ref(),
        }
    }

    /// Makes the change.
    ///
    /// # Errors
    /// An [`EditError`]; the registration is then unchanged.
    pub fn apply(
        &self,
        registration: &mut Registration,
        inherited: Inherited<'_>,
    ) -> Result<(), EditError> {
        let empty = |one: &Registration| {
            let empty = one.vm.iter().filter(|(_, over)| over.is_empty());
            empty.map(|(child, _)| child.clone()).collect::<Vec<_>>()
        };
        let was_empty = empty(registration);
        match self {
            Self::SetEnabled {
                enabled,
                everywhere,
            } => {
                registration.enabled = *enabled;
                for over in registration.vm.values_mut().filter(|_| *everywhere) {
                    over.enabled = over.enabled.filter(|own| own == enabled);
                }
            }
            Self::SetEnabledFor {
                child,
                enabled,
                exception,
            } => {
                let value = match (enabled, exception) {
                    (false, _) => Some(false),
                    (true, true) => Some(true),
                    (true, false) => follow(registration, child, inherited)?,
                };
                registration.vm.entry(child.clone()).or_default().enabled = value;
            }
            Self::SetTransport {
                child: Some(child),
                transport,
            } => registration.vm.entry(child.clone()).or_default().transport = *transport,
            Self::SetTransport {
                child: None,
                transport,
            } => registration.transport = *transport,
            Self::Allow(edit) => {
                for edit in edit.scopes(registration) {
                    edit.allow(registration, inherited);
                }
            }
            Self::Deny(edit) => {
                let mut edited = registration.clone();
                for edit in edit.scopes(registration) {
                    edit.deny(&mut edited, inherited)?;
                }
                *registration = edited;
            }
            Self::Reset { child: Some(child) } => {
                if let Some(over) = registration.vm.get_mut(child) {
                    *over = without_rules(over);
                }
            }
            Self::Reset { child: None } => {
                registration.bind = AccessRule::default();
                registration.connect = AccessRule::default();
                registration.allow_wildcard_binds = None;
                registration.only_root_binds = None;
                for over in registration.vm.values_mut() {
                    *over = without_rules(over);
                }
            }
        }
        registration
            .vm
            .retain(|child, over| !over.is_empty() || was_empty.contains(child));
        Ok(())
    }
}

/// The own setting of a child for which the service is enabled by following the registration, or the
/// virtual machine that the child is in.
fn follow(
    registration: &Registration,
    child: &PartitionName,
    inherited: Inherited<'_>,
) -> Result<Option<bool>, EditError> {
    let own = registration.vm.get(child).and_then(|over| over.enabled);
    let base = inherited
        .built_in
        .and_then(|built_in| built_in.vm.get(child)?.enabled);
    let vm = child.vm();
    let of_vm = vm.as_ref().and_then(|vm| registration.vm.get(vm)?.enabled);
    match (of_vm.unwrap_or(registration.enabled), own, base) {
        // The built-in registration has another setting for this child.
        (true, _, Some(false)) => Ok(Some(true)),
        (true, ..) => Ok(None),
        (false, Some(true), _) => Ok(Some(true)),
        (false, ..) => {
            let child = child.clone();
            Err(match vm.filter(|_| of_vm.is_some()) {
                Some(vm) => EditError::DisabledForVm { vm, child },
                None => EditError::DisabledForAll { child },
            })
        }
    }
}

fn without_rules(over: &Override) -> Override {
    Override {
        enabled: over.enabled,
        transport: over.transport,
        ..Override::default()
    }
}

impl AccessEdit {
    /// This edit for each scope that it concerns. A child without a rule of its own follows the
    /// registration, which comes first.
    fn scopes(&self, registration: &Registration) -> Vec<AccessEdit> {
        let mut scopes = vec![AccessEdit {
            everywhere: false,
            ..self.clone()
        }];
        if self.everywhere && self.child.is_none() {
            let children = registration.vm.keys().map(|child| AccessEdit {
                child: Some(child.clone()),
                everywhere: false,
                ..self.clone()
            });
            scopes.extend(children);
        }
        scopes
    }

    /// Adds to the lists in force, so that nobody who is allowed by a level below is shut out.
    fn allow(&self, registration: &mut Registration, inherited: Inherited<'_>) {
        let mut lists = self.lists(registration, inherited);
        let changed = [
            add(&mut lists.users, &self.users) | add(&mut lists.groups, &self.groups),
            add(&mut lists.partitions, &self.partitions),
        ];
        self.store(registration, inherited, lists, changed);
        self.set_only_root(registration, inherited, false);
    }

    fn deny(
        &self,
        registration: &mut Registration,
        inherited: Inherited<'_>,
    ) -> Result<(), EditError> {
        let mut lists = self.lists(registration, inherited);
        let remove = |list, which, subjects| self.remove(list, which, subjects);
        let by_user = remove(&mut lists.users, "users", &self.users)?;
        let by_group = remove(&mut lists.groups, "groups", &self.groups)?;
        let children = remove(&mut lists.partitions, "partitions", &self.partitions)?;
        let changed = [by_user | by_group, children];
        self.store(registration, inherited, lists, changed);
        self.set_only_root(registration, inherited, true);
        Ok(())
    }

    /// The lists in force.
    fn lists(&self, registration: &Registration, inherited: Inherited<'_>) -> Lists {
        let policy = self.policy(registration, inherited);
        let rules = policy.effective();
        let access = match self.action {
            Action::Bind => rules.bind,
            Action::Connect => rules.connect,
        };
        Lists {
            users: access.users,
            groups: access.groups,
            partitions: access.partitions,
        }
    }

    fn policy<'a>(&self, registration: &'a Registration, inherited: Inherited<'a>) -> Policy<'a> {
        let policy = Policy::new(registration, inherited.built_in, inherited.defaults);
        match &self.child {
            Some(child) => policy.for_child(child),
            None => policy,
        }
    }

    /// Stores the lists of users and groups, or of partitions, that changed. A child that would inherit
    /// the same lists gets none of its own, so that it follows later changes for all.
    fn store(
        &self,
        registration: &mut Registration,
        inherited: Inherited<'_>,
        lists: Lists,
        changed: [bool; 2],
    ) {
        let [processes, partitions] = changed;
        if !processes && !partitions {
            return;
        }
        let rule = self.rule(registration);
        if processes {
            (rule.users, rule.groups) = (None, None);
        }
        if partitions {
            rule.partitions = None;
        }
        let inherits = self.child.is_some();
        let below = self.lists(registration, inherited);
        let rule = self.rule(registration);
        if processes
            && !(inherits && (&lists.users, &lists.groups) == (&below.users, &below.groups))
        {
            rule.users = Some(lists.users);
            rule.groups = Some(lists.groups);
        }
        if partitions && !(inherits && lists.partitions == below.partitions) {
            rule.partitions = Some(lists.partitions);
        }
    }

    /// The rule that this edit changes.
    fn rule<'a>(&self, registration: &'a mut Registration) -> &'a mut AccessRule {
        let (bind, connect) = match &self.child {
            None => (&mut registration.bind, &mut registration.connect),
            Some(child) => {
                let over = registration.vm.entry(child.clone()).or_default();
                (&mut over.bind, &mut over.connect)
            }
        };
        match self.action {
            Action::Bind => bind,
            Action::Connect => connect,
        }
    }

    fn set_only_root(
        &self,
        registration: &mut Registration,
        inherited: Inherited<'_>,
        only_root: bool,
    ) {
        let policy = self.policy(registration, inherited);
        if !self.any_partition_user || policy.any_user_binds().allowed != only_root {
            return;
        }
        match &self.child {
            None => registration.only_root_binds = Some(only_root),
            Some(child) => {
                let over = registration.vm.entry(child.clone()).or_default();
                over.only_root_binds = None;
                let below = self.policy(registration, inherited).any_user_binds();
                if below.allowed == only_root {
                    let over = registration.vm.entry(child.clone()).or_default();
                    over.only_root_binds = Some(only_root);
                }
            }
        }
    }

    /// Removes subjects from a list. Returns whether that changed it.
    fn remove(
        &self,
        list: &mut Vec<String>,
        which: &'static str,
        subjects: &[Subject],
    ) -> Result<bool, EditError> {
        let before = list.len();
        for subject in subjects {
            if subject.entry == EVERYONE {
                list.clear();
            } else if list.iter().any(|entry| entry == EVERYONE) {
                return Err(EditError::Everyone {
                    action: self.action,
                    list: which,
                    entry: subject.entry.clone(),
                });
            } else {
                list.retain(|entry| !subject.is(entry));
            }
        }
        Ok(list.len() < before)
    }
}

/// The lists of one rule in force.
struct Lists {
    users: Vec<String>,
    groups: Vec<String>,
    partitions: Vec<String>,
}

/// Adds subjects to a list. Returns whether that changed it.
fn add(list: &mut Vec<String>, subjects: &[Subject]) -> bool {
    let before = list.len();
    for subject in subjects {
        let known = |entry: &String| entry == EVERYONE || subject.is(entry);
        if !list.iter().any(known) {
            list.push(subject.entry.clone());
        }
    }
    list.len() > before
}

#[cfg(test)]
mod tests;
