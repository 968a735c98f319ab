//! Changes of an operator to the settings of a registration, as values.
//!
//! [`Edit::apply`] is pure, so that every store makes the same changes.

use hvsock_address::PartitionName;

use super::{AccessRule, Action, Defaults, Override, Policy, Registration};

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
    /// Adds to the lists of an access rule.
    Allow(AccessEdit),
    /// Removes from the lists of an access rule.
    Deny(AccessEdit),
    /// Removes all access rules, so that those of the level below apply: of one child, or of the
    /// registration and all children. Whether the service is enabled does not change.
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
            Self::Reset { child } => child.as_ref(),
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

/// The own setting of a child for which the service is enabled by following the registration.
fn follow(
    registration: &Registration,
    child: &PartitionName,
    inherited: Inherited<'_>,
) -> Result<Option<bool>, EditError> {
    let own = registration.vm.get(child).and_then(|over| over.enabled);
    let base = inherited
        .built_in
        .and_then(|built_in| built_in.vm.get(child)?.enabled);
    match (registration.enabled, own, base) {
        // The built-in registration has another setting for this child.
        (true, _, Some(false)) => Ok(Some(true)),
        (true, ..) => Ok(None),
        (false, Some(true), _) => Ok(Some(true)),
        (false, ..) => Err(EditError::DisabledForAll {
            child: child.clone(),
        }),
    }
}

fn without_rules(over: &Override) -> Override {
    Override {
        enabled: over.enabled,
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
mod tests {
    use hvsock_address::{ElementName, ServiceId, VmId};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::{Principal, Requester};

    fn name(text: &str) -> PartitionName {
        PartitionName::new(text).unwrap()
    }

    fn service() -> Registration {
        let name = ElementName::new("session").unwrap();
        Registration::new(ServiceId::from_port(911), name)
    }

    /// A service that only root may use.
    fn closed() -> Registration {
        let none = || AccessRule {
            users: Some(vec![]),
            groups: Some(vec![]),
            partitions: Some(vec![]),
        };
        Registration {
            bind: none(),
            connect: none(),
            ..service()
        }
    }

    const DEFAULTS: fn() -> Defaults = Defaults::default;

    fn inherited<'a>(built_in: &'a Registration, defaults: &'a Defaults) -> Inherited<'a> {
        Inherited {
            built_in: Some(built_in),
            defaults,
        }
    }

    fn enabled_for(child: &str, enabled: bool, exception: bool) -> Edit {
        Edit::SetEnabledFor {
            child: name(child),
            enabled,
            exception,
        }
    }

    fn access(users: &[&str]) -> AccessEdit {
        AccessEdit {
            action: Action::Connect,
            child: None,
            everywhere: false,
            users: users.iter().copied().map(Subject::new).collect(),
            groups: vec![],
            partitions: vec![],
            any_partition_user: false,
        }
    }

    fn may_connect(one: &Registration, built_in: &Registration, user: &str) -> bool {
        let principal = Principal {
            uid: 1000,
            user: Some(user.to_owned()),
            ..Principal::default()
        };
        let defaults = DEFAULTS();
        let policy = Policy::new(one, Some(built_in), &defaults);
        let decision = policy.access(Action::Connect, &Requester::Process(&principal));
        decision.allowed
    }

    #[test]
    fn a_child_follows_a_later_change_for_all_after_it_was_disabled_and_enabled() {
        let (mut one, defaults) = (service(), DEFAULTS());
        let nothing = Inherited {
            built_in: None,
            defaults: &defaults,
        };
        let before = one.clone();
        enabled_for("web", false, false)
            .apply(&mut one, nothing)
            .unwrap();
        assert_eq!(one.vm[&name("web")].enabled, Some(false));
        enabled_for("WEB", true, false)
            .apply(&mut one, nothing)
            .unwrap();
        assert_eq!(one, before);
    }

    #[test]
    fn a_service_that_is_disabled_for_all_is_enabled_for_one_child_only_as_an_exception() {
        let (mut one, defaults) = (service(), DEFAULTS());
        one.enabled = false;
        let nothing = Inherited {
            built_in: None,
            defaults: &defaults,
        };
        let before = one.clone();
        let error = enabled_for("web", true, false).apply(&mut one, nothing);
        assert_eq!(error, Err(EditError::DisabledForAll { child: name("web") }));
        assert_eq!(one, before);
        enabled_for("web", true, true)
            .apply(&mut one, nothing)
            .unwrap();
        assert_eq!(one.vm[&name("web")].enabled, Some(true));
        // To enable what is enabled must not disable it.
        enabled_for("web", true, false)
            .apply(&mut one, nothing)
            .unwrap();
        assert_eq!(one.vm[&name("web")].enabled, Some(true));
        let everywhere = Edit::SetEnabled {
            enabled: false,
            everywhere: true,
        };
        everywhere.apply(&mut one, nothing).unwrap();
        assert_eq!(one, before);
    }

    #[test]
    fn allowing_a_user_keeps_those_whom_a_lower_level_allows() {
        let (mut one, base) = (service(), closed());
        let defaults = DEFAULTS();
        let mut of_group = base.clone();
        of_group.connect.groups = Some(vec!["ops".to_owned()]);
        let levels = inherited(&of_group, &defaults);
        Edit::Allow(access(&["alice"]))
            .apply(&mut one, levels)
            .unwrap();
        let rule = &one.connect;
        assert_eq!(rule.users.as_deref(), Some(&["alice".to_owned()][..]));
        assert_eq!(rule.groups.as_deref(), Some(&["ops".to_owned()][..]));
        // The owner may listen where nothing is said, and still may after somebody else may too.
        let mut plain = service();
        plain.owner = Some("carol".to_owned());
        let bind = AccessEdit {
            action: Action::Bind,
            ..access(&["dave"])
        };
        let nothing = Inherited {
            built_in: None,
            defaults: &defaults,
        };
        Edit::Allow(bind).apply(&mut plain, nothing).unwrap();
        let users = plain.bind.users.unwrap();
        assert_eq!(users, ["carol", "dave"]);
    }

    #[test]
    fn one_of_everyone_cannot_be_denied_and_nothing_is_changed() {
        let (mut one, defaults) = (service(), DEFAULTS());
        let nothing = Inherited {
            built_in: None,
            defaults: &defaults,
        };
        let before = one.clone();
        let error = Edit::Deny(access(&["alice"]))
            .apply(&mut one, nothing)
            .unwrap_err();
        assert!(
            error.to_string().contains("a list cannot exclude alice"),
            "{error}"
        );
        assert_eq!(one, before);
        Edit::Deny(access(&["*"])).apply(&mut one, nothing).unwrap();
        assert_eq!(one.connect.users, Some(vec![]));
        assert!(!may_connect(&one, &service(), "alice"));
    }

    #[test]
    fn a_user_is_found_in_a_list_by_number_and_by_name() {
        let (mut one, base, defaults) = (service(), closed(), DEFAULTS());
        one.connect.users = Some(vec!["1000".to_owned(), "bob".to_owned()]);
        let alice = Subject {
            entry: "alice".to_owned(),
            aliases: vec!["1000".to_owned()],
            number: Some(1000),
        };
        let edit = AccessEdit {
            users: vec![alice],
            ..access(&[])
        };
        let before = one.clone();
        let levels = inherited(&base, &defaults);
        Edit::Allow(edit.clone()).apply(&mut one, levels).unwrap();
        assert_eq!(one, before);
        Edit::Deny(edit.clone()).apply(&mut one, levels).unwrap();
        assert_eq!(one.connect.users, Some(vec!["bob".to_owned()]));
        // As it was written by hand.
        one.connect.users = Some(vec!["0001000".to_owned(), "bob".to_owned()]);
        let before = one.clone();
        Edit::Allow(edit.clone()).apply(&mut one, levels).unwrap();
        assert_eq!(one, before);
        Edit::Deny(edit).apply(&mut one, levels).unwrap();
        assert_eq!(one.connect.users, Some(vec!["bob".to_owned()]));
    }

    #[test]
    fn a_child_follows_what_holds_for_all_after_its_own_permission_was_withdrawn() {
        let (base, defaults) = (closed(), DEFAULTS());
        let base = Registration {
            only_root_binds: Some(true),
            ..base
        };
        let levels = inherited(&base, &defaults);
        for (action, any_partition_user) in [
            (Action::Connect, false),
            (Action::Bind, false),
            (Action::Bind, true),
        ] {
            for everywhere in [false, true] {
                let mut one = service();
                let before = one.clone();
                let child = Some(name("web"));
                let edit = AccessEdit {
                    action,
                    child: child.clone(),
                    partitions: vec![Subject::new("web")],
                    any_partition_user,
                    ..access(&["alice"])
                };
                Edit::Allow(edit.clone()).apply(&mut one, levels).unwrap();
                assert!(!one.vm.is_empty());
                let child = child.filter(|_| !everywhere);
                let denied = AccessEdit {
                    child,
                    everywhere,
                    ..edit
                };
                Edit::Deny(denied).apply(&mut one, levels).unwrap();
                assert_eq!(one, before, "{action} {everywhere}");
            }
        }
    }

    #[test]
    fn a_reset_removes_access_rules_of_all_children_and_leaves_disabled_what_is() {
        let (mut one, base, defaults) = (service(), closed(), DEFAULTS());
        let levels = inherited(&base, &defaults);
        for child in [None, Some(name("web")), Some(name("db"))] {
            let edit = AccessEdit {
                child,
                ..access(&["alice"])
            };
            Edit::Allow(edit).apply(&mut one, levels).unwrap();
        }
        enabled_for("web", false, false)
            .apply(&mut one, levels)
            .unwrap();
        let child = Some(name("db"));
        Edit::Reset { child }.apply(&mut one, levels).unwrap();
        assert_eq!(one.vm.keys().collect::<Vec<_>>(), [&name("web")]);
        assert!(one.connect.users.is_some());
        Edit::Reset { child: None }.apply(&mut one, levels).unwrap();
        assert!(!may_connect(&one, &base, "alice"));
        assert_eq!(one.vm[&name("web")].enabled, Some(false));
        assert!(one.vm[&name("web")].connect.is_empty() && one.connect.is_empty());
    }

    #[test]
    fn who_is_denied_everywhere_has_no_exception_left_for_a_child() {
        let (mut one, base, defaults) = (service(), closed(), DEFAULTS());
        let levels = inherited(&base, &defaults);
        for child in [Some(name("web")), None] {
            let edit = AccessEdit {
                child,
                ..access(&["alice", "bob"])
            };
            Edit::Allow(edit).apply(&mut one, levels).unwrap();
        }
        enabled_for("db", false, false)
            .apply(&mut one, levels)
            .unwrap();
        let here = access(&["alice"]);
        Edit::Deny(here.clone()).apply(&mut one, levels).unwrap();
        let web = one.vm[&name("web")].connect.users.clone().unwrap();
        assert_eq!(web, ["alice", "bob"]);
        let everywhere = AccessEdit {
            everywhere: true,
            ..here
        };
        Edit::Deny(everywhere).apply(&mut one, levels).unwrap();
        assert_eq!(one.connect.users, Some(vec!["bob".to_owned()]));
        assert!(!one.vm.contains_key(&name("web")), "it follows");
        assert!(one.vm[&name("db")].connect.is_empty());
    }

    const USERS: [&str; 4] = ["alice", "bob", "carol", "*"];

    proptest! {
        /// Compares with a set of users.
        #[test]
        fn whoever_was_allowed_last_may_connect_and_nobody_else(
            steps in vec((0..8usize, vec(select(&USERS[..]), 0..3)), 0..24),
        ) {
            let (mut one, base, defaults) = (service(), closed(), DEFAULTS());
            let levels = inherited(&base, &defaults);
            let mut allowed: Vec<&str> = vec![];
            for (step, users) in steps {
                let (edit, mut want) = (access(&users), allowed.clone());
                let edit = match step {
                    0 => {
                        want.clear();
                        Edit::Reset { child: None }
                    }
                    1..=4 => {
                        for user in users {
                            if !want.contains(&"*") && !want.contains(&user) {
                                want.push(user);
                            }
                        }
                        Edit::Allow(edit)
                    }
                    _ => {
                        for user in users {
                            match user {
                                "*" => want.clear(),
                                user => want.retain(|one| *one != user),
                            }
                        }
                        Edit::Deny(edit)
                    }
                };
                let before = one.clone();
                match edit.apply(&mut one, levels) {
                    Ok(()) => allowed = want,
                    Err(_) => prop_assert_eq!(&one, &before),
                }
                for user in USERS.into_iter().filter(|user| *user != "*") {
                    let may = allowed.contains(&"*") || allowed.contains(&user);
                    prop_assert_eq!(may_connect(&one, &base, user), may, "{} {:?}", user, edit);
                }
                prop_assert!(!may_connect(&one, &base, "dave") || allowed.contains(&"*"));
            }
        }

        #[test]
        fn no_edit_of_one_child_changes_what_holds_for_another(
            steps in vec((0..5usize, any::<bool>(), select(&USERS[..])), 0..12),
        ) {
            let (mut one, base, defaults) = (closed(), closed(), DEFAULTS());
            let levels = inherited(&base, &defaults);
            let before = Policy::new(&one, Some(&base), &defaults).effective().connect.users;
            for (step, flag, user) in steps {
                let child = Some(name("web"));
                let edit = AccessEdit { child: child.clone(), ..access(&[user]) };
                let edit = match step {
                    0 => Edit::Reset { child },
                    1 => enabled_for("web", flag, false),
                    2 => enabled_for("web", flag, true),
                    3 => Edit::Allow(edit),
                    _ => Edit::Deny(edit),
                };
                let _ = edit.apply(&mut one, levels);
                let policy = Policy::new(&one, Some(&base), &defaults);
                for other in [policy, policy.for_child(&name("db"))] {
                    prop_assert_eq!(&other.effective().connect.users, &before);
                    prop_assert!(other.enabled().allowed);
                }
            }
        }
    }

    #[test]
    fn a_child_that_any_user_may_listen_in_is_one_where_not_only_root_may() {
        let (mut one, mut base, defaults) = (service(), closed(), DEFAULTS());
        base.only_root_binds = Some(true);
        base.bind.partitions = Some(vec!["*".to_owned()]);
        let edit = AccessEdit {
            action: Action::Bind,
            child: Some(name("web")),
            any_partition_user: true,
            ..access(&[])
        };
        let may_listen = |one: &Registration, child: &str| {
            let child = name(child);
            let requester = Requester::Child {
                name: &child,
                id: VmId::LOOPBACK,
                groups: &[],
                is_root: false,
            };
            let policy = Policy::new(one, Some(&base), &defaults).for_child(&child);
            policy.access(Action::Bind, &requester).allowed
        };
        assert!(!may_listen(&one, "web"));
        let levels = inherited(&base, &defaults);
        Edit::Allow(edit.clone()).apply(&mut one, levels).unwrap();
        assert!(may_listen(&one, "web") && !may_listen(&one, "db"));
        Edit::Deny(edit).apply(&mut one, levels).unwrap();
        assert!(!may_listen(&one, "web"));
    }
}
